"""The wrappers of commands: what a tool of the build sees, and that it cannot outlive the build."""

from pathlib import Path

import pytest

from kmbuild import sandbox


def option_values(words: list[str], option: str, count: int) -> list[list[str]]:
    end = words.index("--")
    return [words[place + 1 : place + 1 + count] for place in range(end) if words[place] == option]


def test_a_command_of_the_host_is_killed_with_its_starter_and_has_its_own_mounts_and_processes() -> None:
    expected = "setpriv --pdeathsig KILL -- unshare --mount --pid --fork --kill-child --mount-proc -- mmdebstrap /a"
    assert sandbox.on_host(["mmdebstrap", Path("/a")]) == expected.split()


def test_a_command_in_the_tree_dies_with_its_parent_and_has_a_read_only_root() -> None:
    words = sandbox.in_tree(Path("/tools"), ["true"])
    assert words[:2] == ["bwrap", "--die-with-parent"]
    assert {"--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-net", "--clearenv"} <= set(words)
    assert option_values(words, "--ro-bind", 2) == [["/tools", "/"]]
    assert option_values(words, "--bind", 2) == []
    assert words[-4:] == ["--chdir", "/", "--", "true"]


def test_only_what_is_listed_can_be_written() -> None:
    words = sandbox.in_tree(
        Path("/tools"), ["true"], binds={Path("/w"): "/build"}, read_only={Path("/i"): "/input"}, workdir="/build"
    )
    assert option_values(words, "--bind", 2) == [["/w", "/build"]]
    assert option_values(words, "--ro-bind", 2)[1:] == [["/i", "/input"]]
    assert option_values(words, "--chdir", 1) == [["/build"]]


def test_the_root_is_mounted_before_what_lies_in_it() -> None:
    words = sandbox.in_tree(Path("/tools"), ["true"], binds={Path("/w"): "/build"})
    assert words.index("/tools") < words.index("/proc") < words.index("/w")


def test_network_brings_resolver_and_certificates_and_else_there_is_none() -> None:
    words = sandbox.in_tree(Path("/tools"), ["true"], network=True)
    assert "--unshare-net" not in words
    places = [inside for _, inside in option_values(words, "--ro-bind-try", 2)]
    assert places == ["/etc/resolv.conf", str(sandbox.CA_BUNDLE)]


def test_the_environment_is_the_build_s_own_and_what_is_given_wins() -> None:
    words = sandbox.in_tree(Path("/tools"), ["true"], env={"HOME": "/build", "GOFLAGS": "-mod=readonly"})
    assert dict(option_values(words, "--setenv", 2)) == {
        **sandbox.ENVIRONMENT,
        "HOME": "/build",
        "GOFLAGS": "-mod=readonly",
    }
    assert sandbox.ENVIRONMENT["TZ"] == "UTC"
    assert sandbox.ENVIRONMENT["LC_ALL"] == "C.UTF-8"


def test_of_the_caller_only_proxy_settings_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in sandbox.NETWORK_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("GOFLAGS", "-mod=vendor")
    assert sandbox.network_settings() == {"https_proxy": "http://proxy.example:3128"}

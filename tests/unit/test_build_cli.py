"""The command line: help everywhere, and one line for what a user can get wrong."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import jsonschema
import msgspec
import pytest
import yaml

from kmbuild.cli import kmbuild, main
from kmbuild.config import Config
from kmbuild.image import HOST_TOOLS, refuse_spaces
from kmplan.errors import UserError

NOBODY = 65534


def run(
    *words: str, cwd: Path, path: str | None = None, python: Sequence[str] = (sys.executable,)
) -> subprocess.CompletedProcess[str]:
    """Run kmbuild as a user does."""
    env = {**os.environ, "XDG_CACHE_HOME": str(cwd / "cache"), **({"PATH": path} if path is not None else {})}
    argv = [*python, "-m", "kmbuild", *words]
    return subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, check=False)


def commands(group: click.Group, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield (*prefix, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*prefix, name))


def test_every_command_has_help_for_itself_and_its_options() -> None:
    for words in [(), *commands(kmbuild)]:
        command: click.Command = kmbuild
        for word in words:
            assert isinstance(command, click.Group)
            found = command.get_command(click.Context(command), word)
            assert found
            command = found
        assert command.help, words
        unexplained = [option.name for option in command.params if isinstance(option, click.Option) and not option.help]
        assert unexplained == [], words


@pytest.mark.parametrize("words", [(), *commands(kmbuild)], ids=" ".join)
def test_help_is_shown(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        kmbuild([*words, "--help"], prog_name="kmbuild")
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"Usage: {' '.join(('kmbuild', *words))} ")


def test_the_module_runs_as_the_console_script_does(tmp_path: Path) -> None:
    script = subprocess.run(
        [Path(sys.executable).parent / "kmbuild", "--version"], capture_output=True, text=True, check=True
    )
    assert run("--version", cwd=tmp_path).stdout == script.stdout
    assert script.stdout.startswith("kmbuild, version ")


def test_an_unknown_option_is_a_usage_error(tmp_path: Path) -> None:
    done = run("image", "--colour", cwd=tmp_path)
    assert done.returncode == 2
    assert "No such option" in done.stderr
    assert "Traceback" not in done.stderr


def test_config_show_prints_every_key_and_config_default_is_a_start(tmp_path: Path) -> None:
    shown = run("config", "show", cwd=tmp_path)
    assert yaml.safe_load(shown.stdout) == json.loads(msgspec.json.encode(Config(version=1)))
    assert json.loads(run("config", "show", "--json", cwd=tmp_path).stdout) == yaml.safe_load(shown.stdout)
    (tmp_path / "kubermesh.yaml").write_text(run("config", "default", cwd=tmp_path).stdout)
    assert run("config", "show", cwd=tmp_path).stdout.splitlines()[0] == "# from kubermesh.yaml"


def test_config_check_says_good_or_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "k.yaml"
    path.write_text("version: 1\ndebian: {mirror: 'http://mirror.example/debian'}\n")
    good = run("config", "check", "--config", "k.yaml", cwd=tmp_path)
    assert (good.returncode, good.stdout, good.stderr) == (0, "k.yaml: good\n", "")
    path.write_text("version: 1\ncache: {size_limit_gib: 0}\n")
    bad = run("config", "check", "--config", "k.yaml", cwd=tmp_path)
    assert (bad.returncode, bad.stdout) == (1, "")
    assert bad.stderr == "kmbuild: k.yaml: cache.size_limit_gib: Expected `float` > 0.0\n"


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = run("--debug", "config", "check", "--config", "none.yaml", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "none.yaml: cannot be read: No such file or directory" in done.stderr


def test_the_schema_takes_the_default_file_and_refuses_what_the_tool_refuses(tmp_path: Path) -> None:
    schema = json.loads(run("config", "schema", cwd=tmp_path).stdout)
    validator = jsonschema.Draft202012Validator(schema)
    assert list(validator.iter_errors(yaml.safe_load(run("config", "default", cwd=tmp_path).stdout))) == []
    for bad in ({}, {"version": 2}, {"version": 1, "colour": 1}, {"version": 1, "cache": {"size_limit_gib": 0}}):
        assert list(validator.iter_errors(bad)), bad


def test_an_empty_cache_is_listed_and_checked(tmp_path: Path) -> None:
    assert json.loads(run("cache", "list", "--json", cwd=tmp_path).stdout)["stages"] == []
    assert run("cache", "check", cwd=tmp_path).stdout == "0 stages are whole\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="a program that root may run only")
@pytest.mark.parametrize("words", [("cache", "clean", "--stage", "tre")])
def test_a_stage_that_is_not_in_the_cache_is_one_line(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = run(*words, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        1,
        "kmbuild: --stage tre: nothing of that name in the cache; see `kmbuild cache list`\n",
    )


# Python starts as root, because only root may be able to read it where it lies, then it becomes nobody.
AS_NOBODY = f"""
import importlib.readers, os
from kmbuild.cli import MODULES, main
[importlib.import_module(name) for name in MODULES.values()]
os.getuid() or os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
main()
"""


@pytest.mark.parametrize("words", [("image",), ("cache", "clean")], ids=" ".join)
def test_without_root_it_is_one_line(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, *words],
        cwd="/",  # nobody may not look into the folders of a test
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    expected = f"kmbuild: kmbuild {' '.join(words)} needs root; call it with sudo\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", expected)
    assert not (tmp_path / "cache").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="root is asked for first")
@pytest.mark.parametrize("tool", ["mmdebstrap", "bwrap"])
def test_a_missing_tool_is_one_line(tmp_path: Path, tool: str) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in HOST_TOOLS:
        if name != tool:
            (tools / name).symlink_to("/bin/true")
    done = run("image", cwd=tmp_path, path=str(tools))
    assert (done.returncode, done.stderr) == (1, f"kmbuild: missing on this machine: {tool}; run `make setup`\n")
    assert not (tmp_path / "cache").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="root is asked for first")
def test_a_bad_lock_and_a_bad_configuration_end_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "kubermesh.lock").write_text("version: 1\n")
    lock = run("image", cwd=tmp_path)
    assert (lock.returncode, lock.stderr) == (1, "kmbuild: kubermesh.lock: Object missing required field `suite`\n")
    (tmp_path / "kubermesh.yaml").write_text("version: 1\ncompression: zip\n")
    config = run("image", cwd=tmp_path)
    assert (config.returncode, config.stderr) == (
        1,
        "kmbuild: kubermesh.yaml: compression: Invalid enum value 'zip'; expected one of: fast, small\n",
    )


def test_a_path_with_a_space_is_refused_in_one_line() -> None:
    refuse_spaces(Path("/srv/kubermesh"))
    with pytest.raises(UserError) as raised:
        refuse_spaces(Path("/srv/kubermesh"), Path("/srv/my cache"))
    expected = "/srv/my cache: diskimage-builder cannot work in a path with a space; use a folder without one"
    assert str(raised.value) == expected


@pytest.mark.parametrize(("code", "status"), [(None, 0), (0, 0), (1, 1), (3, 3)])
def test_a_command_ends_with_the_status_it_says(code: int | None, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `verify` does when something did not hold."""

    @click.command("ends")
    def ends() -> None:
        if code is not None:
            raise click.exceptions.Exit(code)

    monkeypatch.setitem(kmbuild.commands, "ends", ends)
    monkeypatch.setattr("sys.argv", ["kmbuild", "ends"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code or 0) == status


def test_a_command_that_is_mistyped_is_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        kmbuild(["flas"], prog_name="kmbuild")
    assert "flash" in capsys.readouterr().err

"""Commands that cannot outlive the build or leave a mount behind.

Tools of the build run inside the tools tree (bubblewrap, bwrap(1)); what has to run on the host runs in mount and
PID namespaces of its own (unshare(1)). The kernel kills either with the thread that started it and drops their mounts.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from kmplan.run import die_with_parent

# The build's own environment: nothing of the caller's locale, time zone or settings reaches a tool.
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
    "HOME": "/tmp",
    "TMPDIR": "/tmp",
}
CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
NETWORK_VARIABLES = (
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "GOPROXY",
    "GOSUMDB",
    "GONOSUMDB",
)


def on_host(argv: Sequence[str | Path]) -> list[str]:
    """Wrap a command of the host: private mounts, and no process of it survives its end."""
    namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]
    return die_with_parent([*namespaces, *(str(word) for word in argv)])


def in_tree(
    root: Path,
    argv: Sequence[str | Path],
    *,
    binds: Mapping[Path, str] | None = None,
    read_only: Mapping[Path, str] | None = None,
    env: Mapping[str, str] | None = None,
    network: bool = False,
    workdir: str = "/",
) -> list[str]:
    """Wrap a command so that it runs with `root` as its read-only root.

    `binds` and `read_only` map host paths to places inside. With `network` the host's resolver, trusted
    certificates are there too; without it the command has no network at all.
    """
    words = ["bwrap", "--die-with-parent", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--hostname", "kmbuild"]
    words += [] if network else ["--unshare-net"]
    words += [
        "--ro-bind",
        str(root),
        "/",
        "--dev",
        "/dev",
        "--proc",
        "/proc",
        "--tmpfs",
        "/tmp",
        "--tmpfs",
        "/run",
        "--tmpfs",
        "/input",
    ]
    if network:
        words += [
            "--ro-bind-try",
            "/etc/resolv.conf",
            "/etc/resolv.conf",
            "--ro-bind-try",
            str(CA_BUNDLE),
            str(CA_BUNDLE),
        ]
    for options, places in (("--ro-bind", read_only), ("--bind", binds)):
        for outside, inside in (places or {}).items():
            words += [options, str(outside), inside]
    words += ["--clearenv"]
    for name, value in {**ENVIRONMENT, **(env or {})}.items():
        words += ["--setenv", name, value]
    return [*words, "--chdir", workdir, "--", *(str(word) for word in argv)]


def network_settings() -> dict[str, str]:
    """The caller's proxy settings: the one thing of its environment that a command with network gets."""
    return {name: os.environ[name] for name in NETWORK_VARIABLES if name in os.environ}

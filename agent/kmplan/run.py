"""The one module that starts processes; the agent's, whose event loop must not wait, are in `kmagent/programs.py`."""

import contextlib
import os
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kmplan.errors import UserError

LOG_TAIL_LINES = 15


class CommandError(UserError):
    """A command that failed: shows it in a form that can be pasted, the end of its output, and where the log is."""

    def __init__(self, argv: Sequence[str], code: int, output: str, log: Path | None = None) -> None:
        tail = [line[-300:] for line in output.strip().splitlines()[-LOG_TAIL_LINES:]]
        place = f"\n  log: {log}" if log else ""
        shown = "".join(f"\n  | {line}" for line in tail)
        super().__init__(f"command failed with {describe_exit(code)}: {shlex.join(argv)}{shown}{place}")
        self.argv = list(argv)
        self.code = code
        self.output = output


def describe_exit(code: int) -> str:
    """Put an exit status into words; a negative one is a signal, as in `subprocess`."""
    return f"signal {-code}" if code < 0 else f"status {code}"


def die_with_parent(argv: Sequence[str]) -> list[str]:
    """Prefix a command so that the kernel kills it when the starting thread dies (prctl(2) PR_SET_PDEATHSIG)."""
    return ["setpriv", "--pdeathsig", "KILL", "--", *argv]


def run(
    argv: Sequence[str | Path],
    *,
    input: str | bytes | None = None,  # noqa: A002 - the name `subprocess` has for it
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    log: Path | None = None,
    check: bool = True,
    timeout_s: float | None = None,
    pass_fds: Sequence[int] = (),
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with its standard output and error in the result.

    With `log`, both go to that file instead (appended), and stdout in the result is the file's new end.
    `env` is added to this process's environment. Raises CommandError when it fails and `check` is set,
    UserError when the program is missing or `timeout_s` is over.
    """
    words = [str(word) for word in argv]
    data = input.encode() if isinstance(input, str) else input
    options: dict[str, Any] = {
        "env": {**os.environ, **(env or {})},
        "cwd": cwd,
        "timeout": timeout_s,
        "pass_fds": pass_fds,
    }
    options |= {"input": data} if data is not None else {"stdin": subprocess.DEVNULL}
    try:
        if log:
            code, out, err = _run_logged(words, log, options)
        else:
            done = subprocess.run(words, capture_output=True, check=False, **options)
            code, out, err = done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    except FileNotFoundError as error:
        if cwd is not None and not cwd.is_dir():
            raise
        raise UserError(f"{words[0]}: not found on this machine", "install it, or run `make setup`") from error
    except subprocess.TimeoutExpired as error:
        raise UserError(f"no end after {timeout_s:g} s: {shlex.join(words)}") from error
    if check and code != 0:
        raise CommandError(words, code, out + err, log)
    return subprocess.CompletedProcess(words, code, out, err)


def _run_logged(words: list[str], log: Path, options: dict[str, Any]) -> tuple[int, str, str]:
    """Run with all output appended to `log`; returns the status and what was appended."""
    with log.open("ab") as sink:
        start = sink.tell()
        done = subprocess.run(words, stdout=sink, stderr=subprocess.STDOUT, check=False, **options)
    with log.open("rb") as written:
        written.seek(start)
        return done.returncode, written.read().decode(errors="replace"), ""


def spawn(
    argv: Sequence[str | Path],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    tied: bool = False,
) -> subprocess.Popen[bytes]:
    """Start a process that outlives this one: own session, output appended to `log`.

    A `tied` one has a pipe as its standard input, whose end tells it that this process is gone, or wants it to end.
    """
    stdin = subprocess.PIPE if tied else subprocess.DEVNULL
    with log.open("ab") as sink:
        return subprocess.Popen(
            [str(word) for word in argv], stdin=stdin, stdout=sink, stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})}, start_new_session=True, pass_fds=pass_fds,
        )  # fmt: skip


def kill_children() -> None:
    """Kill every process that this one has started and not waited for yet, whichever thread did it (proc(5), children)."""
    for listing in Path("/proc/self/task").glob("*/children"):
        for pid in listing.read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


def replace_self(argv: Sequence[str | Path], env: Mapping[str, str] | None = None) -> None:
    """Become another program (execvp(3)): for interactive ones such as kubectl or a console."""
    words = [str(word) for word in argv]
    os.execvpe(words[0], words, {**os.environ, **(env or {})})  # noqa: S606

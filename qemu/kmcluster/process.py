"""Processes that outlive the tool: known by pid and start time, so that only what was started here is ever ended."""

import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from kmplan.errors import UserError


class Process(msgspec.Struct, frozen=True):
    """A process that cannot be mistaken for a later one with the same pid.

    `started` is in clock ticks since the host's boot (field 22 of proc_pid_stat(5)); `boot` is the host's boot id.
    """

    pid: int
    started: int
    boot: str


def boot_id() -> str:
    """The running kernel's boot id."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def read_stat(pid: int) -> tuple[str, int, int] | None:
    """State letter, parent's pid and start time of a process, or None if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command name, field 2, may hold blanks and brackets.
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[1]), int(fields[19])


def identify(pid: int) -> Process:
    """Take down a running process; raises UserError if it has already ended."""
    stat = read_stat(pid)
    if stat is None:
        raise UserError(f"process {pid} ended right after its start")
    return Process(pid=pid, started=stat[2], boot=boot_id())


def is_running(process: Process) -> bool:
    """Whether this very process is there and not a zombie."""
    stat = read_stat(process.pid)
    return stat is not None and stat[0] not in "ZX" and stat[2] == process.started and process.boot == boot_id()


def read_argv(process: Process) -> list[str]:
    """The running process's arguments; empty if it is gone."""
    if not is_running(process):
        return []
    try:
        return Path(f"/proc/{process.pid}/cmdline").read_text().rstrip("\0").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


@contextmanager
def opened(process: Process) -> Iterator[int | None]:
    """A pidfd of the process, or None if it is gone: what is done with it cannot hit another process."""
    if not is_running(process):
        yield None
        return
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        # Its pid may be that of a thread by now, which is another error.
        if is_running(process):
            raise
        yield None
        return
    try:
        yield descriptor if is_running(process) else None
    finally:
        os.close(descriptor)


def send(process: Process, number: int) -> bool:
    """Send a signal; False if the process is gone."""
    with opened(process) as descriptor:
        if descriptor is None:
            return False
        try:
            signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            return False
    return True


def wait_end(process: Process, timeout_s: float) -> bool:
    """Wait until the process has ended; False if it still runs after `timeout_s`."""
    with opened(process) as descriptor:
        if descriptor is None:
            return True
        ended, _, _ = select.select([descriptor], [], [], timeout_s)
    if ended:
        reap(process.pid)
    return bool(ended)


def reap(pid: int) -> None:
    """Take the exit status if it was our own child, so that no zombie stays."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return


def end(process: Process, grace_s: float = 0.0) -> None:
    """End a process: SIGTERM and `grace_s` first if that is not zero, then SIGKILL."""
    if grace_s > 0 and send(process, signal.SIGTERM) and wait_end(process, grace_s):
        return
    send(process, signal.SIGKILL)
    if not wait_end(process, 10):
        raise UserError(f"process {process.pid} does not end, even killed", "see its state in /proc")


def wait_own_network(started: Process, deadline_s: float, log: Path) -> None:
    """Wait until a process has left this one's network namespace.

    Whoever joins its namespace earlier would be in the host's, and change the host's addresses and routes.
    """
    deadline = time.monotonic() + deadline_s
    own = Path("/proc/self/ns/net").readlink()
    while time.monotonic() < deadline and is_running(started):
        try:
            if Path(f"/proc/{started.pid}/ns/net").readlink() != own:
                return
        except FileNotFoundError:
            break
        time.sleep(0.01)
    raise UserError(f"process {started.pid} made no network namespace of its own", f"see {log}")


def first_child(parent: int, deadline_s: float) -> Process | None:
    """The child of `parent` that is process 1 of its own PID namespace, or None if there is none in time."""
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline:
        for path in Path("/proc").glob("[0-9]*/status"):
            if pid := namespace_init(path, parent):
                return identify(pid)
        stat = read_stat(parent)
        if stat is None or stat[0] in "ZX":
            return None
        time.sleep(0.02)
    return None


def namespace_init(status: Path, parent: int) -> int | None:
    """The pid that a /proc/PID/status is about, if it is the first process of a PID namespace made by `parent`."""
    try:
        lines = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
    except (FileNotFoundError, ProcessLookupError):
        return None
    inside = lines.get("NSpid", "").split()
    if lines.get("PPid") == str(parent) and len(inside) > 1 and inside[-1] == "1":
        return int(status.parent.name)
    return None

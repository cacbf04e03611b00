"""Sees to it that no etcd runs here any more: kubelet ends it as a rule, and may stand still itself."""

import contextlib
import fcntl
import os
import signal
import time
from pathlib import Path

from kmplan.errors import UserError

POLITE_S, END_S = 3.0, 60.0


def wait_until_unused(database: Path) -> None:
    """Wait until no etcd has its database open any more (bbolt holds a lock on it); UserError when it does not end.

    One that is told to end waits for its clients, up to half a minute: it is killed, as what it writes from now on is lost.
    """
    if not database.exists():
        return
    start = time.monotonic()
    with database.open("rb") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() - start > END_S:
                    raise UserError(f"etcd still runs after {END_S:g} s") from None
                if time.monotonic() - start > POLITE_S:
                    kill_etcd(database)
                time.sleep(0.1)
            else:
                return


def kill_etcd(database: Path) -> None:
    """End the etcd that has a database open: no other, and none of the agent's own processes, which look at it, too."""
    for comm in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if comm.read_text() == "etcd\n" and any(map(database.samefile, comm.parent.glob("fd/*"))):
                os.kill(int(comm.parent.name), signal.SIGKILL)

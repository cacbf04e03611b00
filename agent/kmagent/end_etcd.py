"""Sees to it that no etcd runs here any more, nor its API server: kubelet ends both as a rule, and may stand still itself."""

import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from kmagent.components import UIDS
from kmplan.errors import UserError

POLITE_S, END_S = 3.0, 60.0


def end(database: Path) -> None:
    """End both; UserError when etcd does not end."""
    with ended(database):
        pass


@contextlib.contextmanager
def ended(database: Path) -> Iterator[None]:
    """End both, and hold the lock that bbolt has on the database: an etcd that kubelet starts once more waits for it."""
    with contextlib.ExitStack() as stack:
        if database.exists():
            lock(stack.enter_context(database.open("rb")), database)
        kill_api_server()
        yield


def lock(file: BinaryIO, database: Path) -> None:
    """Wait until no etcd has its database open any more; UserError when it does not end.

    One that is told to end waits for its clients, up to half a minute: it is killed, as what it writes from now on is lost.
    """
    start = time.monotonic()
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
    for process in _called("etcd"):
        with contextlib.suppress(OSError):
            if any(map(database.samefile, process.glob("fd/*"))):
                os.kill(int(process.name), signal.SIGKILL)


def kill_api_server() -> None:
    """End the control plane's API server here, of which etcd is gone.

    One that is told to end waits for its requests, up to a minute. Kubelets whose requests these are, also those of other
    nodes, mount nothing for their pods meanwhile; and one that is started anew takes it for the one that it is to start.
    """
    for process in _called("kube-apiserver"):
        with contextlib.suppress(OSError):
            if process.stat().st_uid == UIDS["kube-apiserver"]:
                os.kill(int(process.name), signal.SIGKILL)


def _called(name: str) -> Iterator[Path]:
    for comm in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if comm.read_text() == f"{name}\n":
                yield comm.parent

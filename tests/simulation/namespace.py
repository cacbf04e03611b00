"""Network namespaces without names: one lives as long as this process holds it open, so none outlives a crash."""

import ctypes
import os
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from kmplan.run import run

CLONE_NEWNET = 0x40000000
LIBC = ctypes.CDLL(None, use_errno=True)
T = TypeVar("T")


class Namespace:
    """An open network namespace; `close` lets it go, and with it its end of every cable."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    @property
    def path(self) -> Path:
        """A name for commands that run while this process does."""
        return Path(f"/proc/{os.getpid()}/fd/{self.descriptor}")

    def inside(self, argv: Sequence[str | Path]) -> list[str]:
        """The argv that runs a command in it."""
        return ["nsenter", f"--net={self.path}", "--", *map(str, argv)]

    def run(self, *argv: str, text: str = "") -> str:
        """Run a command in it; returns its output."""
        return run(self.inside(argv), input=text).stdout

    def do(self, action: Callable[[], T]) -> T:
        """Run a function in it; sockets that it makes stay in there whoever uses them."""

        def enter() -> T:
            _check(LIBC.setns(self.descriptor, CLONE_NEWNET))
            return action()

        return _in_thread(enter)

    def udp(self, address: str) -> socket.socket:
        """Open an IPv6 datagram socket in it that does not block, bound to an address of its own."""

        def make() -> socket.socket:
            made = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            made.bind((address, 0))
            return made

        return self.do(make)

    def close(self) -> None:
        """Let it go."""
        os.close(self.descriptor)


def new() -> Namespace:
    """Make a namespace."""

    def leave() -> int:
        _check(LIBC.unshare(CLONE_NEWNET))
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY)

    return Namespace(_in_thread(leave))


def of_process(pid: int) -> Namespace:
    """Hold the namespace that a process is in."""
    return Namespace(os.open(f"/proc/{pid}/ns/net", os.O_RDONLY))


def _in_thread(action: Callable[[], T]) -> T:
    """A thread can change its namespace alone; it is never used again."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(action).result()


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))

"""A probe: fifty datagrams a second from one network namespace to another and back; what counts is the longest silence."""

import contextlib
import socket
import threading
import time
from collections.abc import Sequence
from itertools import pairwise
from select import select

from kmplan.errors import UserError

from .namespace import Namespace

PERIOD_S = 0.02


class Probe:
    """Runs from `with` to its end; `answers` are the times (s, monotonic) at which a datagram was back."""

    def __init__(self, here: Namespace, source: str, there: Namespace, target: str) -> None:
        self.answers: list[float] = []
        self._asker, self._echo = here.udp(source), there.udp(target)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Probe":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._asker.close()
        self._echo.close()

    def wait_answers(self, since: float, timeout_s: float, count: int = 25) -> None:
        """Wait until `count` datagrams were back after `since`; raises UserError when they are not in time."""
        deadline = time.monotonic() + timeout_s
        while len(self.answers) < count or self.answers[-count] <= since:
            if time.monotonic() > deadline:
                raise UserError(f"no answers within {timeout_s:g} s")
            time.sleep(PERIOD_S)

    def _run(self) -> None:
        target = self._echo.getsockname()
        next_at = time.monotonic()
        while not self._stop.is_set():
            now = time.monotonic()
            if now >= next_at:
                next_at = max(next_at + PERIOD_S, now)
                with contextlib.suppress(OSError):
                    self._asker.sendto(b"?", target)
            ready, _, _ = select([self._asker, self._echo], [], [], max(0.0, next_at - now))
            for one in ready:
                self._take(one)

    def _take(self, one: socket.socket) -> None:
        with contextlib.suppress(OSError):
            data, peer = one.recvfrom(64)
            if one is self._echo:
                one.sendto(data, peer)
            else:
                self.answers.append(time.monotonic())


def longest_gap(answers: Sequence[float], since: float, until: float) -> float:
    """The longest time without an answer between `since` and `until`, in seconds; an undisturbed way gives PERIOD_S."""
    times = [since, *(time for time in answers if since < time < until), until]
    return max(after - before for before, after in pairwise(times))

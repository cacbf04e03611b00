"""How busy this machine is, by the kernel's account of what waits (PSI, Documentation/accounting/psi.rst), and a pace then."""

import contextlib
from pathlib import Path

FOLDER = Path("/proc/pressure")
RESOURCES = ("cpu", "io")
PERIOD_S = 0.1


class Pressure:
    """Measures from one look to the next, the first of which tells nothing."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._folder = folder
        self._seen: dict[str, int] = {}
        self._at = 0.0
        self._share = 0.0

    def share(self, now: float) -> float:
        """Return the share of the time (0 to 1) in which something waited for a processor, or for a disk: the larger one.

        That is of the last tenth of a second or more, `now` being in seconds (monotonic); 0 where the kernel does not tell.
        """
        if now - self._at >= PERIOD_S:
            seen = {name: total for name in RESOURCES if (total := self._total(name)) is not None}
            waited = [total - self._seen[name] for name, total in seen.items() if name in self._seen]
            self._share = min(1.0, max(waited, default=0) / 1e6 / (now - self._at))
            self._seen, self._at = seen, now
        return self._share

    def _total(self, name: str) -> int | None:
        """Microseconds in which at least one task waited, since the machine started."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            some = (self._folder / name).read_text().splitlines()[0]
            return int(some.rpartition("total=")[2])
        return None


class Pace:
    """Lets everything through at once but on a busy machine, where it is `rate` bytes per second for all who ask.

    It is busy when something waits for a processor or a disk for the share `busy` of the time.
    """

    def __init__(self, pressure: Pressure, busy: float, rate: int) -> None:
        self._pressure, self._busy, self._rate = pressure, busy, rate
        self._free_at = 0.0

    def wait_s(self, count: int, now: float) -> float:
        """Return how long to wait after `count` bytes, in seconds."""
        if self._pressure.share(now) < self._busy:
            return 0.0
        self._free_at = max(now, self._free_at) + count / self._rate
        return self._free_at - now

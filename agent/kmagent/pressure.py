"""How busy this machine is, by the kernel's account of what waits (PSI, Documentation/accounting/psi.rst), and a pace then."""

import contextlib
from pathlib import Path

# What pods wait for, so that a machine which only serves is not busy; where cgroups do not tell (v1), what anything waits for.
PODS, ALL = Path("/sys/fs/cgroup/kubepods.slice"), Path("/proc/pressure")
FILES = ("cpu.pressure", "io.pressure", "cpu", "io")
PERIOD_S, STALE_S = 0.1, 1.0


class Pressure:
    """Measures from one look to the next, in the first of these folders that is there."""

    def __init__(self, *folders: Path) -> None:
        self._folders = folders or (PODS, ALL)
        self._seen: dict[Path, int] = {}
        self._at = -STALE_S
        self._share = 0.0

    def share(self, now: float) -> float:
        """Return the share of the time (0 to 1) in which something waited for a processor, or for a disk: the larger one.

        That is of the last tenth of a second or more, `now` being in seconds (monotonic). After a pause nothing is known of that
        yet: 1. Where the kernel does not tell, 0.
        """
        if now - self._at >= PERIOD_S:
            seen = next(filter(None, map(totals, self._folders)), {})
            waited = max((total - self._seen.get(path, total) for path, total in seen.items()), default=0)
            is_stale = now - self._at >= STALE_S
            self._share = float(bool(seen)) if is_stale else min(1.0, waited / 1e6 / (now - self._at))
            self._seen, self._at = seen, now
        return self._share


def totals(folder: Path) -> dict[Path, int]:
    """Microseconds in which at least one task waited, since the start, by what is waited for."""
    found = {}
    for path in (folder / name for name in FILES):
        with contextlib.suppress(OSError, ValueError, IndexError):
            found[path] = int(path.read_text().splitlines()[0].rpartition("total=")[2])
    return found


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

"""Room for neighbours: all network namespaces share the kernel's table of them (ip-sysctl, `neigh/default/gc_thresh3`)."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

LIMITS = [Path("/proc/sys/net/ipv6/neigh/default") / f"gc_thresh{number}" for number in (3, 2, 1)]
# The one at the other end, and groups: babeld's, the routers', those of multicast listeners and of solicited addresses.
PER_PORT = 8


@contextlib.contextmanager
def room(ports: int) -> Iterator[None]:
    """Let the table hold the neighbours of so many ports: beyond the limit, 1024 by default, packets are not sent."""
    before = [limit.read_text() for limit in LIMITS]
    try:
        for limit, was in zip(LIMITS, before, strict=True):
            limit.write_text(str(max(int(was), PER_PORT * ports)))
        yield
    finally:
        for limit, was in zip(LIMITS, before, strict=True):
            limit.write_text(was)

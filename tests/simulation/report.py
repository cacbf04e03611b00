"""The figures of one mesh, and a table of several."""

import statistics
from collections.abc import Sequence

import msgspec

from kmagent.babel import HELLO_S

HEAD = ["nodes", "cables", "farthest", "hello / update", "whole after", "CPU per node", "memory per node"]


class Figures(msgspec.Struct, frozen=True):
    """One mesh: what it was, and what was measured.

    `farthest` is the largest number of cables between two nodes. `whole_s` is None when not every node had a way to every
    other in time; nothing else was measured then. `core_percent`, `resident_mb` and `anonymous_mb` are per babeld, the mean
    and the largest; `busy_percent` is of all cores, by everything on this machine; `gaps_s` has for every fault the longest
    gap of each repeat.
    """

    nodes: int
    degree: int
    cables: int
    farthest: int
    hello_s: float
    update_s: float
    whole_s: float | None = None
    core_percent: tuple[float, float] = (0.0, 0.0)
    resident_mb: tuple[float, float] = (0.0, 0.0)
    anonymous_mb: tuple[float, float] = (0.0, 0.0)
    busy_percent: float = 0.0
    gaps_s: dict[str, list[float]] = {}

    @property
    def is_scaled(self) -> bool:
        """Whether the timers are not those of a real node."""
        return self.hello_s != HELLO_S


def table(rows: Sequence[Figures]) -> str:
    """The figures as a Markdown table; a mark tells of timers that are not a real node's."""
    faults = list(dict.fromkeys(fault for row in rows for fault in row.gaps_s))
    lines = [[*HEAD, *faults], ["---"] * (len(HEAD) + len(faults)), *(cells(row, faults) for row in rows)]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    if any(row.is_scaled for row in rows):
        text += f"\n\\* Timers scaled to this machine, whose cores all nodes share; a real node says hello every {HELLO_S:g} s.\n"
    return text


def cells(row: Figures, faults: Sequence[str]) -> list[str]:
    """One mesh's line of the table."""
    mark = " \\*" if row.is_scaled else ""
    timers = f"{row.hello_s:g} s / {row.update_s:g} s{mark}"
    head = [str(row.nodes), str(row.cables), f"{row.farthest} hops", timers]
    if row.whole_s is None:
        return [*head, "not in time", *["-"] * (2 + len(faults))]
    memory = f"{row.resident_mb[0]:.1f} MB, {row.anonymous_mb[0]:.1f} its own"
    gaps = [spread(row.gaps_s[fault]) if row.gaps_s.get(fault) else "-" for fault in faults]
    return [*head, f"{row.whole_s:.1f} s", f"{row.core_percent[0]:.2f} %", memory, *gaps]


def spread(values: Sequence[float]) -> str:
    """Median and extremes."""
    return f"{statistics.median(values):.2f} s ({min(values):.2f} to {max(values):.2f})"

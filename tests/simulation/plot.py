"""The figures as one picture: how soon a mesh is whole, what it costs, and how long faults are felt, over its size."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from .report import Figures

WIDTH, HEIGHT = 300, 200
LEFT, TOP, BETWEEN = 44, 44, 60
LINES = 5
COLOURS = ("#1f6feb", "#d1541f", "#1a7f37")


@dataclass(frozen=True)
class Point:
    """What was measured at a size: extremes and median, and whether the timers were not those of a real node."""

    nodes: int
    low: float
    value: float
    high: float
    scaled: bool


Series = dict[str, list[Point]]


@dataclass(frozen=True)
class Axes:
    """One panel's place and scale: values from 0 to `top`, and up to `most` nodes."""

    left: float
    top: float
    most: int

    def x(self, nodes: float) -> float:
        """Where a size is."""
        return self.left + WIDTH * nodes / (1.05 * self.most)

    def y(self, value: float) -> float:
        """Where a value is."""
        return TOP + HEIGHT * (1 - value / self.top)


def draw(rows: Sequence[Figures]) -> str:
    """Return the picture as SVG; meshes that never were whole are left out."""
    rows = sorted((row for row in rows if row.whole_s is not None), key=lambda row: row.nodes)
    faults = dict.fromkeys(fault for row in rows for fault in row.gaps_s)
    panels: list[tuple[str, Series]] = [
        ("whole after a cold start, s", {"": [point(row, [row.whole_s or 0.0]) for row in rows]}),
        ("CPU per node, % of a core", {"": [point(row, [row.core_percent[0]]) for row in rows]}),
        ("memory of its own per node, MB", {"": [point(row, [row.anonymous_mb[0]]) for row in rows]}),
        ("longest gap after a fault, s", {fault: [point(row, row.gaps_s[fault]) for row in rows] for fault in faults}),
    ]
    parts = [panel(title, series, LEFT + at * (WIDTH + BETWEEN)) for at, (title, series) in enumerate(panels)]
    width, height = LEFT + len(panels) * (WIDTH + BETWEEN), TOP + HEIGHT + 68
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n'
        f"{''.join(parts)}{text(LEFT, TOP + HEIGHT + 56, legend(rows))}</svg>\n"
    )


def legend(rows: Sequence[Figures]) -> str:
    """Say what the points are, and whose timers are not a real node's."""
    scaled = [f"{row.nodes} nodes: hello {row.hello_s:g} s, update {row.update_s:g} s" for row in rows if row.is_scaled]
    hollow = f" Hollow: timers scaled to the one machine that runs all nodes ({'; '.join(scaled)})." if scaled else ""
    return f"Faults: median, lowest and highest.{hollow}"


def point(row: Figures, values: Sequence[float]) -> Point:
    """What a mesh says of one quantity."""
    return Point(row.nodes, min(values), statistics.median(values), max(values), row.is_scaled)


def ceiling(value: float) -> float:
    """The end of an axis: 1, 2, 4 or 8 times a power of ten, at least `value`."""
    power = 10.0 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return next(step * power for step in (1, 2, 4, 8, 10) if step * power >= value)


def panel(title: str, series: Series, left: float) -> str:
    """One diagram."""
    points = [point for line in series.values() for point in line]
    axes = Axes(left, ceiling(max(point.high for point in points)), max(point.nodes for point in points))
    parts = [text(left, TOP - 18, title), grid(axes, sorted({point.nodes for point in points}))]
    for number, (name, line) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        # Beside one another, or the whiskers of one hide those of another.
        parts.append(curve(axes, line, 5 * (number - (len(series) - 1) / 2), colour))
        parts.append(text(left + 8, TOP + 12 + 15 * number, name, colour=colour))
    return "".join(parts)


def grid(axes: Axes, sizes: Sequence[int]) -> str:
    """Lines at round values, and the sizes below."""
    parts = []
    for value in (axes.top * step / (LINES - 1) for step in range(LINES)):
        ends = f'x1="{axes.left}" y1="{axes.y(value):.1f}" x2="{axes.left + WIDTH}" y2="{axes.y(value):.1f}"'
        parts.append(f'<line {ends} stroke="#d0d7de"/>\n')
        parts.append(text(axes.left - 6, axes.y(value) + 4, f"{value:g}", anchor="end"))
    parts += [text(axes.x(nodes), TOP + HEIGHT + 16, str(nodes), anchor="middle") for nodes in sizes]
    parts.append(text(axes.left + WIDTH, TOP + HEIGHT + 32, "nodes", anchor="end"))
    return "".join(parts)


def curve(axes: Axes, points: Sequence[Point], shift: float, colour: str) -> str:
    """Points with whiskers, and a line through those of the same timers."""
    parts = []
    for before, after in pairwise(points):
        if before.scaled == after.scaled:
            ends = [(axes.x(one.nodes) + shift, axes.y(one.value)) for one in (before, after)]
            parts.append(stroke(ends[0], ends[1], colour))
    for one in points:
        x = axes.x(one.nodes) + shift
        parts.append(stroke((x, axes.y(one.low)), (x, axes.y(one.high)), colour))
        fill = "white" if one.scaled else colour
        parts.append(f'<circle cx="{x:.1f}" cy="{axes.y(one.value):.1f}" r="3.5" fill="{fill}" stroke="{colour}"/>\n')
    return "".join(parts)


def stroke(start: tuple[float, float], end: tuple[float, float], colour: str) -> str:
    """A line."""
    ends = f'x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}"'
    return f'<line {ends} stroke="{colour}"/>\n'


def text(x: float, y: float, words: str, anchor: str = "start", colour: str = "#24292f") -> str:
    """Words; `anchor` as of SVG's text-anchor."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{words}</text>\n' if words else ""

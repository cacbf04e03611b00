"""Where to draw the nodes of a graph: far apart on paper when many cables are between them."""

import math
from collections.abc import Iterable, Sequence

ROUNDS = 150
# Angles that are tried when the drawing is turned, per quarter.
TURNS = 90
# In distances between neighbours: what is too near, what is in line, and by how much all may be drawn bigger.
NEAR, ALMOST, MAX_FACTOR = 0.9, 0.12, 1.6

Place = tuple[float, float]
Edge = tuple[int, int]


def arrange(count: int, edges: Sequence[Edge]) -> list[Place]:
    """Place nodes 0 to count-1 (at least one); neighbours are about 1 apart, and node 0 is above and left of the middle.

    Distances on paper follow those in the graph (stress majorization: Gansner, Koren, North 2004), from a circle on.
    The same graph gives the same drawing.
    """
    wanted = distances(count, edges)
    places = circle(count, wanted[0])
    for _ in range(ROUNDS):
        for node in range(count):
            places[node] = improve(node, places, wanted[node])
    xs, ys = zip(*upright(widen(places), edges), strict=True)
    return list(zip(align(xs), align(ys), strict=True))


def distances(count: int, edges: Iterable[Edge]) -> list[list[int]]:
    """Cables on the shortest way between every two nodes; where there is none, one more than the longest."""
    neighbours: list[set[int]] = [set() for _ in range(count)]
    for a, b in edges:
        neighbours[a].add(b)
        neighbours[b].add(a)
    found = [search(node, neighbours) for node in range(count)]
    far = max((length for row in found for length in row.values()), default=0) + 1
    return [[row.get(node, far) for node in range(count)] for row in found]


def search(start: int, neighbours: Sequence[set[int]]) -> dict[int, int]:
    """Distances from one node, in breadth."""
    found, new, length = {start: 0}, {start}, 0
    while new:
        length += 1
        new = {there for here in new for there in neighbours[here]} - set(found)
        found |= dict.fromkeys(new, length)
    return found


def circle(count: int, from_first: Sequence[int]) -> list[Place]:
    """All nodes on a circle, those near to each other in the graph near on it."""
    order = sorted(range(count), key=lambda node: (from_first[node], node))
    # Every second one goes left, so that both sides of a ring grow from the first node.
    order = order[::2] + order[1::2][::-1]
    angles = {node: 2 * math.pi * place / count for place, node in enumerate(order)}
    return [(math.cos(angles[node]), math.sin(angles[node])) for node in range(count)]


def improve(node: int, places: Sequence[Place], wanted: Sequence[int]) -> Place:
    """A better place for a node: where the others would have it, the near ones' word counting more."""
    x, y = places[node]
    sum_x = sum_y = weights = 0.0
    for other, (other_x, other_y) in enumerate(places):
        if other == node:
            continue
        weight = wanted[other] ** -2
        reach = wanted[other] / (math.hypot(x - other_x, y - other_y) or 1e-9)
        sum_x += weight * (other_x + (x - other_x) * reach)
        sum_y += weight * (other_y + (y - other_y) * reach)
        weights += weight
    return (sum_x / weights, sum_y / weights) if weights else (0.0, 0.0)


def upright(places: Sequence[Place], edges: Sequence[Edge]) -> list[Place]:
    """Turn and mirror a drawing so that many edges are level or plumb, and node 0 is up on the left."""

    def slant(turned: Sequence[Place]) -> float:
        return sum(
            abs(math.sin(2 * math.atan2(turned[b][1] - turned[a][1], turned[b][0] - turned[a][0]))) for a, b in edges
        )

    turns = [turn(places, math.pi / 2 * step / TURNS) for step in range(TURNS)]
    best = min(turns, key=lambda turned: round(slant(turned), 6), default=list(places))
    centre_x = sum(x for x, _ in best) / (len(best) or 1)
    centre_y = sum(y for _, y in best) / (len(best) or 1)
    flip_x = -1 if best and best[0][0] > centre_x + 1e-6 else 1
    flip_y = -1 if best and best[0][1] > centre_y + 1e-6 else 1
    return [(flip_x * (x - centre_x), flip_y * (y - centre_y)) for x, y in best]


def widen(places: Sequence[Place]) -> list[Place]:
    """Draw all bigger when two nodes are much nearer to each other than neighbours should be."""
    gaps = [math.dist(one, other) for index, one in enumerate(places) for other in places[:index]]
    factor = min(max(1.0, NEAR / max(min(gaps, default=1.0), 1e-9)), MAX_FACTOR)
    return [(x * factor, y * factor) for x, y in places]


def align(values: Sequence[float]) -> list[float]:
    """Make values that are almost the same the same."""
    groups: list[list[float]] = []
    for value in sorted(values):
        if groups and value - groups[-1][0] <= ALMOST:
            groups[-1].append(value)
        else:
            groups.append([value])
    same = {value: sum(group) / len(group) for group in groups for value in group}
    return [same[value] for value in values]


def turn(places: Iterable[Place], angle: float) -> list[Place]:
    """Turn about the origin."""
    cos, sin = math.cos(angle), math.sin(angle)
    return [(x * cos - y * sin, x * sin + y * cos) for x, y in places]

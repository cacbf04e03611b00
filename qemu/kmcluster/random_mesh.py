"""Random partial meshes: a ring through all nodes, and chords until every node has its number of cables."""

import random

from kmcluster.topology import MAX_NODES, MAX_PORTS
from kmplan.errors import UserError

Edge = tuple[int, int]
TRIES = 1000


def draw(nodes: int, degree: int, seed: int) -> list[Edge]:
    """Edges of a random connected mesh in which every node has `degree` neighbours; the same for the same arguments.

    Where `nodes` times `degree` is odd one node has one less. Raises UserError when there is no such mesh.
    """
    check(nodes, degree)
    source = random.Random(seed)  # noqa: S311
    if nodes == 2:
        return [(1, 2)]
    for _ in range(TRIES):
        order = source.sample(range(1, nodes + 1), nodes)
        ring = [ordered(order[place - 1], order[place]) for place in range(nodes)]
        if chords := add_chords(source, ring, nodes, degree):
            return sorted(chords)
    raise UserError(f"no mesh of {nodes} nodes with degree {degree} found", "try another --seed")


def check(nodes: int, degree: int) -> None:
    """Raise UserError unless there can be a ring with chords of that degree."""
    if not 2 <= nodes <= MAX_NODES:
        raise UserError(f"--nodes {nodes}: expected 2 to {MAX_NODES}")
    least, most = min(2, nodes - 1), min(nodes - 1, MAX_PORTS)
    if not least <= degree <= most:
        raise UserError(f"--degree {degree}: expected {least} to {most} for {nodes} nodes")


def ordered(one: int, other: int) -> Edge:
    """An edge is written with the smaller number first."""
    return min(one, other), max(one, other)


def add_chords(source: random.Random, ring: list[Edge], nodes: int, degree: int) -> set[Edge] | None:
    """Add random chords to a ring; None when a dead end is reached."""
    edges = set(ring)
    lack = dict.fromkeys(range(1, nodes + 1), degree - 2)
    while sum(lack.values()) > 1:
        here = source.choice([node for node in lack if lack[node] == max(lack.values())])
        free = [node for node in lack if node != here and lack[node] and ordered(here, node) not in edges]
        if free:
            there = source.choice(free)
            edges.add(ordered(here, there))
        else:
            there = next((node for node in lack if node != here and lack[node]), here)
            if not swap(source, edges, set(ring), here, there):
                return None
        lack[here] -= 1
        lack[there] -= 1
    return edges


def swap(source: random.Random, edges: set[Edge], ring: set[Edge], here: int, there: int) -> bool:
    """Give `here` and `there` one more each by taking a chord between two others apart; False if none can be."""
    chords = sorted(edges - ring)
    for one, other in source.sample(chords, len(chords)):
        new = {ordered(here, one), ordered(there, other)}
        if len(new) == 2 and not {here, there} & {one, other} and not new & edges:
            edges.remove((one, other))
            edges.update(new)
            return True
    return False


def to_yaml(nodes: int, edges: list[Edge]) -> str:
    """A topology file with these edges as cables; node 1 is the seed, and ports are taken in order."""
    used = dict.fromkeys(range(1, nodes + 1), 0)
    lines = ["version: 1", "nodes:", "  - {role: seed}", *["  - {role: blank}"] * (nodes - 1), "cables:"]
    for a, b in edges:
        lines.append(f'  - {{a: "{a}:eth{used[a]}", b: "{b}:eth{used[b]}"}}')
        used[a] += 1
        used[b] += 1
    return "\n".join(lines) + "\n"

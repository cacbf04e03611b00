"""Which node should vote next: the one that most different ways lead to, that has been up for long and has room on its disk."""

import json
import re
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise

from kmagent.registry import Node

# More ways than this make no node a better one: a single cable or node that breaks cuts none of two.
ENOUGH_PATHS = 2
YOUNG_S = 300.0
MAX_NEIGHBOURS, MAX_OFFERS = 256, 64
TEXT = re.compile(r"[\x20-\x7e]{1,80}\Z")
LITTLE_BYTES = 2 * 2**30


@dataclass(frozen=True)
class Report:
    """What a node says of itself: the numbers of its neighbours, seconds since it started, and free bytes of `/var`.

    `offers` say in words what machines do that it offers a system, by its ports.
    """

    neighbours: frozenset[int] = frozenset()
    up_s: float = 0.0
    free_bytes: int = 0
    offers: Mapping[str, str] = field(default_factory=dict)


def to_text(report: Report) -> str:
    """Return the JSON that is sent and kept."""
    return json.dumps({**asdict(report), "neighbours": sorted(report.neighbours)})


def from_text(text: str) -> Report:
    """Read that JSON; ValueError in words when it is something else."""
    data = json.loads(text)
    if not isinstance(data, dict):
        raise ValueError("a report is a JSON object")
    neighbours, up_s, free_bytes = data.get("neighbours"), data.get("up_s"), data.get("free_bytes")
    offers = data.get("offers", {})
    if not isinstance(neighbours, list) or len(neighbours) > MAX_NEIGHBOURS or {*map(type, neighbours)} - {int}:
        raise ValueError(f"neighbours: expected at most {MAX_NEIGHBOURS} numbers")
    if not isinstance(up_s, int | float) or not isinstance(free_bytes, int):
        raise ValueError("up_s, free_bytes: expected numbers")
    if not isinstance(offers, dict) or len(offers) > MAX_OFFERS or not all(map(is_text, [*offers, *offers.values()])):
        raise ValueError(f"offers: expected at most {MAX_OFFERS} short texts by port")
    return Report(frozenset(neighbours), float(up_s), free_bytes, offers)


def is_text(value: object) -> bool:
    """Tell whether this can be shown to people."""
    return isinstance(value, str) and TEXT.match(value) is not None


Reports = Mapping[int, Report]
# A node's number and one of its sides; a way ends behind the entry of a voter.
Place = tuple[int, str]
END: Place = (0, "end")


def best(nodes: Iterable[Node], reports: Reports, voters: frozenset[int]) -> Node | None:
    """Return the node that should vote next; of equals the one admitted first. None when there is none."""
    links = links_of(reports)

    def rank(node: Node) -> tuple[int, bool, bool, float, int]:
        report = reports.get(node.number, Report())
        paths = disjoint_paths(links, node.number, voters)
        return -paths, report.up_s < YOUNG_S, report.free_bytes < LITTLE_BYTES, node.admitted, node.number

    return min(nodes, key=rank, default=None)


def links_of(reports: Reports) -> dict[int, set[int]]:
    """Return who is joined to whom by a cable: what either end says counts."""
    links: dict[int, set[int]] = {}
    for number, report in reports.items():
        for other in report.neighbours:
            links.setdefault(number, set()).add(other)
            links.setdefault(other, set()).add(number)
    return links


def disjoint_paths(links: Mapping[int, set[int]], start: int, ends: frozenset[int], most: int = ENOUGH_PATHS) -> int:
    """Count ways from `start` to different `ends` that share no node but `start` (Menger's theorem), up to `most`.

    Every node has an entry and an exit with room for one way; each way that is found takes its steps out of `room` and
    puts them in backwards, so that a later one may undo them (Ford and Fulkerson).
    """
    room: dict[Place, set[Place]] = {}
    for here, others in links.items():
        room[here, "in"] = {(here, "out")} if here not in ends else {END}
        room[here, "out"] = {(other, "in") for other in others}
    found = 0
    while found < most and (way := _way(room, (start, "out"))):
        for here_, there in pairwise(way):
            room[here_].remove(there)
            room.setdefault(there, set()).add(here_)
        found += 1
    return found


def _way(room: Mapping[Place, set[Place]], start: Place) -> list[Place]:
    """Return the places of a shortest way to the end; empty when there is none."""
    came_from: dict[Place, Place] = {}
    queue = deque([start])
    while queue:
        here = queue.popleft()
        for there in sorted(room.get(here, set()) - came_from.keys() - {start}):
            came_from[there] = here
            queue.append(there)
        if END in came_from:
            way = [END]
            while way[-1] != start:
                way.append(came_from[way[-1]])
            return way[::-1]
    return []

"""A simulated mesh: nodes in namespaces, and veth pairs as cables between them."""

import contextlib
import os
import random
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from kmcluster.cable import Cable, Port
from kmcluster.random_mesh import add_chords, ordered
from kmplan.addresses import AddressPlan, random_prefix
from kmplan.errors import UserError

from . import namespace, neighbours
from .node import Node, Routing, facts_of

SETTLE_S = 30


def draw(nodes: int, degree: int, seed: int) -> list[Cable]:
    """Cables of a random mesh: a ring through all nodes, and chords until each has `degree` neighbours.

    Raises UserError when there is no such mesh.
    """
    if nodes < 3 or not 2 <= degree < nodes:
        raise UserError(
            f"no mesh of {nodes} nodes with {degree} cables each", "use 3 nodes or more, and a degree from 2 up"
        )
    source = random.Random(seed)  # noqa: S311
    edges = None
    while edges is None:
        order = source.sample(range(1, nodes + 1), nodes)
        edges = add_chords(source, [ordered(order[at - 1], order[at]) for at in range(nodes)], nodes, degree)
    used = dict.fromkeys(range(1, nodes + 1), 0)
    cables = []
    for number, (a, b) in enumerate(sorted(edges), 1):
        cables.append(Cable(number=number, a=Port(a, used[a]), b=Port(b, used[b])))
        used[a] += 1
        used[b] += 1
    return cables


class Mesh:
    """All nodes by their numbers, and what the cables make of them."""

    def __init__(self, nodes: dict[int, Node], cables: Sequence[Cable], routing: Routing) -> None:
        self.nodes, self.cables, self.routing = nodes, len(cables), routing
        pairs = [pair for cable in cables for pair in ((cable.a, cable.b), (cable.b, cable.a))]
        self._far_end = {(here.node, here.name): there.node for here, there in pairs}
        self._port = {(here.node, there.node): here.name for here, there in pairs}
        self._wanted = set().union(*(node.announced for node in nodes.values()))

    def start(self) -> None:
        """Start babeld on all nodes at the same moment."""
        reader, writer = os.pipe()
        try:
            gate = Path(f"/proc/{os.getpid()}/fd/{reader}")
            for node in self.nodes.values():
                node.start(gate)
        finally:
            os.close(writer)
            os.close(reader)

    def is_whole(self, node: Node) -> bool:
        """Whether a node has a way to every other."""
        return self._wanted - node.announced <= node.ways().keys()

    def path(self, source: int, target: int) -> list[int]:
        """The nodes that a packet passes, both ends included. Raises UserError when it does not arrive now."""
        passed = [source]
        while passed[-1] != target:
            port = self.nodes[passed[-1]].ways().get(self.nodes[target].address_key, "")
            there = self._far_end.get((passed[-1], port))
            if there is None or there in passed:
                raise UserError(f"no way from node {source} to node {target}: after {passed} comes {there}")
            passed.append(there)
        return passed

    def port(self, node: int, neighbour: int) -> str:
        """The port of a node that leads to a neighbour."""
        return self._port[node, neighbour]

    def distances(self, start: int) -> dict[int, int]:
        """How many cables away every node is."""
        neighbours: dict[int, list[int]] = {}
        for here, there in self._port:
            neighbours.setdefault(here, []).append(there)
        found, queue = {start: 0}, deque([start])
        while queue:
            here = queue.popleft()
            new = [there for there in neighbours[here] if there not in found]
            found |= dict.fromkeys(new, found[here] + 1)
            queue += new
        return found


@contextlib.contextmanager
def open_mesh(count: int, degree: int, seed: int, tree: Path, routing: Routing) -> Iterator[Mesh]:
    """Make a mesh, with all ports up and babeld not started; whatever happens, nothing of it is left."""
    cables = draw(count, degree, seed)
    ends = [end for cable in cables for end in (cable.a, cable.b)]
    plan = AddressPlan(random_prefix())
    nodes: dict[int, Node] = {}
    with tempfile.TemporaryDirectory(prefix="kubermesh-simulation-") as folder, neighbours.room(len(ends)):
        try:
            for number in range(1, count + 1):
                ports = [end.name for end in ends if end.node == number]
                nodes[number] = Node(facts_of(plan, number), ports, Path(folder), tree, routing)
            _connect(nodes, cables)
            for node in nodes.values():
                node.bring_up()
            if wait_until(lambda: all(node.has_links() for node in nodes.values()), SETTLE_S) is None:
                raise UserError(f"not every port has a link-local address after {SETTLE_S} s")
            yield Mesh(nodes, cables, routing)
        finally:
            for node in nodes.values():
                node.stop()
                node.namespace.close()


def wait_until(look: Callable[[], bool], timeout_s: float, period_s: float = 0.05) -> float | None:
    """Wait until `look` is true; returns the seconds it took, None when it was not in time."""
    start = time.monotonic()
    while not look():
        if time.monotonic() - start > timeout_s:
            return None
        time.sleep(period_s)
    return time.monotonic() - start


def _connect(nodes: dict[int, Node], cables: Iterable[Cable]) -> None:
    def place(end: Port) -> str:
        return f"name {end.name} netns {nodes[end.node].namespace.path}"

    # Made from a namespace of no node: a name that is used by both ends is free in it.
    workshop = namespace.new()
    batch = "".join(f"link add {place(cable.a)} type veth peer {place(cable.b)}\n" for cable in cables)
    workshop.run("ip", "-batch", "-", text=batch)
    workshop.close()

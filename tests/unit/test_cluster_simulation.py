"""The simulation of large meshes: its parts that need no root."""

import random
from collections import Counter
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest
from simulation import measure, mesh, node, plot, probe, report
from simulation.__main__ import options, routing

from kmcluster.cable import Cable, Port
from kmplan.addresses import AddressPlan
from kmplan.errors import UserError

PLAN = AddressPlan.parse("fd12:3456:789a::/48")
KEY = "00" * 16


def line6(prefix: str, flags: str, port: str) -> str:
    """A line of /proc/net/ipv6_route."""
    key, nothing = node.key6(IPv6Network(prefix)), "0" * 32
    return f"{key} {nothing} 00 fe800000000000000000000000000001 00000400 00000001 00000000 {flags}     {port}\n"


IPV6_ROUTE = (
    line6("fd12:3456:789a::2/128", "00000003", "eth1")
    + line6("fd12:3456:789a:1::/64", "00200200", "lo")
    + line6("fd12:3456:789a:2::/64", "00000003", "eth1")
)
ROUTE = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
*\t0001000A\t00000000\t0200\t0\t0\t0\t00FFFFFF\t0\t0\t0
eth1\t0002000A\t00000000\t0001\t0\t0\t1024\t00FFFFFF\t0\t0\t0
"""


class FakeNode:
    """A node whose ways are given."""

    def __init__(self, number: int, ways: dict[str, str]) -> None:
        self.facts = node.facts_of(PLAN, number)
        self._ways = ways

    address_key = node.Node.address_key
    announced = node.Node.announced

    def ways(self) -> dict[str, str]:
        return self._ways


def line(count: int, ways: dict[int, dict[str, str]]) -> mesh.Mesh:
    """Nodes in a line: the left neighbour is at eth0, the right one at eth1 (at eth0 of node 1)."""
    right = {1: 0}
    cables = [Cable(n, Port(n, right.get(n, 1)), Port(n + 1, 0)) for n in range(1, count)]
    nodes = {number: FakeNode(number, ways.get(number, {})) for number in range(1, count + 1)}
    return mesh.Mesh(nodes, cables, node.Routing(0.2, 2, KEY))  # type: ignore[arg-type]


def key(number: int) -> str:
    return node.key6(IPv6Network(f"{PLAN.node(number)}/128"))


@pytest.mark.parametrize(("nodes", "degree"), [(8, 3), (16, 4), (100, 4), (200, 4)])
def test_every_node_has_its_number_of_cables_and_every_port_one(nodes: int, degree: int) -> None:
    cables = mesh.draw(nodes, degree, 1)
    ends = [end for cable in cables for end in (cable.a, cable.b)]
    assert len(set(ends)) == len(ends)
    assert Counter(end.node for end in ends) == dict.fromkeys(range(1, nodes + 1), degree)
    assert mesh.draw(nodes, degree, 1) == cables != mesh.draw(nodes, degree, 2)


@pytest.mark.parametrize(("nodes", "degree"), [(2, 1), (4, 4), (16, 1)])
def test_a_mesh_that_cannot_be_is_refused(nodes: int, degree: int) -> None:
    with pytest.raises(UserError, match=f"no mesh of {nodes} nodes"):
        mesh.draw(nodes, degree, 1)


def test_babeld_is_told_what_the_agent_tells_it_but_for_the_intervals() -> None:
    facts = node.facts_of(PLAN, 7)
    real = node.configuration(facts, ["eth0"], Path("/x"), node.Routing(0.2, 2, KEY))
    slow = node.configuration(facts, ["eth0"], Path("/x"), node.Routing(1, 4, KEY))
    different = [pair for pair in zip(real.splitlines(), slow.splitlines(), strict=True) if pair[0] != pair[1]]
    (((before, after)),) = different
    assert "hello-interval 0.2 update-interval 2 " in before
    assert "hello-interval 1 update-interval 4 " in after
    assert f"key id eth0 type blake2s128 value {KEY}" in real


def test_destinations_are_written_as_the_kernel_does() -> None:
    assert node.key6(IPv6Network("fd12:3456:789a:2::/64")) == "fd123456789a00020000000000000000 40"
    assert node.key4(IPv4Network("10.0.2.0/24")) == "0002000A 00FFFFFF"


def test_only_routes_that_lead_somewhere_count() -> None:
    assert node.read_ways(IPV6_ROUTE, ROUTE) == {
        key(2): "eth1",
        node.key6(IPv6Network("fd12:3456:789a:2::/64")): "eth1",
        node.key4(IPv4Network("10.0.2.0/24")): "eth1",
    }


def test_a_node_is_whole_when_it_has_a_way_to_all_of_every_other() -> None:
    of_two = node.read_ways(IPV6_ROUTE, ROUTE)
    pair = line(2, {1: of_two})
    assert pair.is_whole(pair.nodes[1])
    for missing in of_two:
        fewer = line(2, {1: {name: port for name, port in of_two.items() if name != missing}})
        assert not fewer.is_whole(fewer.nodes[1]), missing


def test_a_path_follows_the_routes_from_node_to_node() -> None:
    chain = line(4, {1: {key(4): "eth0"}, 2: {key(4): "eth1"}, 3: {key(4): "eth1"}})
    assert chain.path(1, 4) == [1, 2, 3, 4]
    assert chain.port(2, 3) == "eth1"
    assert chain.distances(1) == {1: 0, 2: 1, 3: 2, 4: 3}


@pytest.mark.parametrize("third", [{}, {key(4): "eth0"}])
def test_a_path_that_ends_or_goes_round_is_told(third: dict[str, str]) -> None:
    chain = line(4, {1: {key(4): "eth0"}, 2: {key(4): "eth1"}, 3: third})
    with pytest.raises(UserError, match="no way from node 1 to node 4"):
        chain.path(1, 4)


def test_faults_are_between_the_ends_and_never_at_one() -> None:
    for path in ([1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 4, 5]):
        assert path[len(path) // 2] not in (path[0], path[-1])
        here, there = measure.middle_link(path)
        assert path.index(there) == path.index(here) + 1


def test_the_ends_of_a_probe_are_far_apart() -> None:
    chain = line(5, {})
    for seed in range(10):
        here, there = measure.far_pair(chain, random.Random(seed))  # noqa: S311
        assert abs(here - there) == max(here - 1, 5 - here)
    with pytest.raises(UserError, match="no node between"):
        measure.far_pair(line(2, {}), random.Random(1))  # noqa: S311


@pytest.mark.parametrize(
    ("answers", "gap"),
    [([0.5, 1.5, 2.5, 3.5], 1.0), ([0.5, 1.1, 3.9], 2.8), ([], 3.0), ([1.2], 2.8)],
)
def test_the_longest_gap_reaches_from_the_beginning_to_the_end(answers: list[float], gap: float) -> None:
    assert probe.longest_gap(answers, 1.0, 4.0) == pytest.approx(gap)


def test_timers_are_a_real_nodes_unless_the_machine_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert (routing(100, None, None).hello_s, routing(100, None, None).update_s) == (0.2, 2)
    assert (routing(200, None, None).hello_s, routing(200, None, None).update_s) == (3, 12)
    assert (routing(200, 0.5, None).hello_s, routing(200, 0.5, None).update_s) == (0.5, 12)
    assert options(["--nodes", "16,50"]).nodes == [16, 50]


def figures(nodes: int, hello_s: float = 0.2, whole_s: float | None = 2.5) -> report.Figures:
    gaps = {"silent loss": [0.5, 0.7, 0.6], "link down": [0.1]}
    return report.Figures(
        nodes=nodes, degree=4, cables=2 * nodes, farthest=4, hello_s=hello_s, update_s=10 * hello_s, whole_s=whole_s,
        core_percent=(0.3, 0.5), resident_mb=(2.5, 2.6), gaps_s=gaps if whole_s else {},
    )  # fmt: skip


def test_the_table_marks_scaled_timers_and_meshes_that_were_never_whole() -> None:
    text = report.table([figures(16), figures(200, 1.0), figures(300, whole_s=None)])
    real, scaled, never = (row for row in text.splitlines() if row.startswith(("| 16", "| 200", "| 300")))
    assert "0.60 s (0.50 to 0.70)" in real
    assert "\\*" not in real
    assert "1 s / 10 s \\*" in scaled
    assert "not in time" in never
    assert "scaled to this machine" in text
    assert len({row.count("|") for row in text.splitlines() if row.startswith("|")}) == 1


def test_figures_survive_json() -> None:
    rows = [figures(16), figures(300, whole_s=None)]
    assert msgspec.json.decode(msgspec.json.encode(rows), type=list[report.Figures]) == rows


def shapes(drawn: str, name: str) -> Iterator[dict[str, str]]:
    return (shape.attrib for shape in ElementTree.fromstring(drawn).iter(f"{{http://www.w3.org/2000/svg}}{name}"))  # noqa: S314


def test_the_picture_has_every_point_and_scaled_ones_are_hollow() -> None:
    drawn = plot.draw([figures(16), figures(50), figures(200, 1.0), figures(300, whole_s=None)])
    circles = list(shapes(drawn, "circle"))
    assert len(circles) == 3 * 5
    assert sum(circle["fill"] == "white" for circle in circles) == 5
    _, _, width, height = (float(word) for word in next(shapes(drawn, "svg"))["viewBox"].split())
    assert all(0 < float(c["cx"]) < width and 0 < float(c["cy"]) < height for c in circles)
    assert "200 nodes: hello 1 s" in drawn


@pytest.mark.parametrize(("value", "end"), [(0.37, 0.4), (1.0, 1.0), (2.9, 4.0), (9.0, 10.0), (0.0, 1.0)])
def test_axes_end_at_round_values(value: float, end: float) -> None:
    assert plot.ceiling(value) == pytest.approx(end)

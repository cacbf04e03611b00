"""Topology files: what is taken, and the one line that a bad one gets."""

from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner

from kmbuild.cluster import cluster
from kmcluster import random_mesh, topology
from kmcluster.topology import Role
from kmplan import document
from kmplan.errors import UserError

TWO = "version: 1\nnodes: [{role: seed}, {}]\ncables:\n"


def read(name: str) -> topology.Topology:
    return topology.read_topology(topology.find_topology(name))


def test_these_topologies_are_shipped_and_valid() -> None:
    shapes = {name: (len(read(name).nodes), len(read(name).cables)) for name in topology.shipped_names()}
    assert shapes == {
        "one": (1, 0),
        "pair": (2, 1),
        "netboot": (2, 1),
        "line3": (3, 2),
        "ring5": (5, 5),
        "mesh5": (5, 7),
        "star": (6, 9),
        "grid9": (9, 12),
    }


def test_small_topologies_are_small_for_qemu() -> None:
    for name in ("pair", "line3"):
        assert {node.memory_mib for node in read(name).nodes if node.role is Role.BLANK} == {2048}


def test_every_leaf_of_the_star_is_on_both_hubs() -> None:
    edges = {(cable.a.node, cable.b.node) for cable in topology.plug(read("star"))}
    assert edges == {(1, 2)} | {(hub, leaf) for hub in (1, 2) for leaf in (3, 4, 5, 6)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("version: 1\nnodes: []\n", "nodes: Expected `array` of length >= 1"),
        ("version: 2\nnodes: [{role: seed}]\n", "version: Expected `int` <= 1"),
        ("nodes: [{role: seed}]\n", "Object missing required field `version`"),
        ("version: 1\nnodes: [{role: sead}]\n", "nodes[0].role: Invalid enum value 'sead'"),
        ("version: 1\nnodes: [{role: seed, memory_mib: 12}]\n", "nodes[0].memory_mib: Expected `int` >= 1024"),
        ("version: 1\nnodes: [{role: seed, cpus: two}]\n", "nodes[0].cpus: Expected `int`, got `str`"),
        ("version: 1\nnodes: [{role: seed, ram: 1}]\n", "nodes[0]: Object contains unknown field `ram`"),
        ("version: 1\nnodes: [{role: seed, ports: 17}]\n", "nodes[0].ports: Expected `int` <= 16"),
        ("version: 1\nnodes: [{role: blank}]\n", "exactly one with `role: seed`, none is"),
        ("version: 1\nnodes: [{role: seed}, {role: seed}]\n", "exactly one with `role: seed`, nodes 1, 2 are"),
        (f"version: 1\nnodes: [{{role: seed}}{', {}' * 64}]\n", "nodes: Expected `array` of length <= 64"),
        ("version: 1\nnodes: [\n", "not YAML"),
        (TWO + "- {a: '1:eth0', b: 'two'}", "cables[0].b: Expected `str` matching regex"),
        (TWO + "- {a: '1:eth0', b: '2:eth0', mtu: 1279}", "cables[0].mtu: Expected `int` >= 1280"),
        (TWO + "- {a: '1:eth0', b: '2:eth0', mtu: 9001}", "cables[0].mtu: Expected `int` <= 9000"),
        (TWO + "- {a: '1:eth0', b: '2:eth0', length: 3}", "cables[0]: Object contains unknown field `length`"),
        (TWO + "- {a: '1:eth0', b: '3:eth0'}", "cables[0].b: 3:eth0: no node 3; there are 2"),
        (TWO + "- {a: '1:eth0', b: '2:eth16'}", "cables[0].b: 2:eth16: node 2 can have 16 ports, counted from eth0"),
        (TWO + "- {a: '1:eth0', b: '1:eth1'}", "cables[0]: both ends are on node 1"),
        (
            TWO + "- {a: '1:eth0', b: '2:eth0'}\n- {a: '1:eth1', b: '2:eth0'}",
            "cables[1].b: 2:eth0 is taken by cables[0].b",
        ),
        (
            "version: 1\nnodes: [{role: seed, ports: 1}, {}]\ncables: [{a: '2:eth0', b: '1:eth1'}]",
            "cables[0].b: 1:eth1: node 1 has 1 port(s), counted from eth0",
        ),
        (
            "version: 1\nnodes: [{}, {role: seed}, {}, {}]\ncables: [{a: '1:eth0', b: '3:eth0'}]",
            "cables: no way from the seed to node 1, 3, 4",
        ),
    ],
)
def test_a_bad_topology_is_one_line_with_file_and_place(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as raised:
        topology.read_topology(path)
    message = str(raised.value)
    assert message.startswith(str(path))
    assert expected in message
    assert "\n" not in message


def test_an_unknown_name_lists_the_shipped_ones() -> None:
    with pytest.raises(UserError, match=r"nonsuch: no such topology; shipped ones: .*one"):
        topology.find_topology("nonsuch")


def test_a_path_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(TWO + "- {a: '1:eth0', b: '2:eth0'}")
    assert [node.role for node in read(str(path)).nodes] == [Role.SEED, Role.BLANK]


def test_a_node_has_the_ports_it_says_or_those_its_cables_use(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("version: 1\nnodes: [{role: seed, ports: 4}, {}]\ncables: [{a: '1:eth0', b: '2:eth1'}]")
    assert topology.count_ports(read(str(path))) == [4, 2]


@pytest.mark.parametrize("nodes", [2, 3, 4, 5, 8, 17, 64])
@pytest.mark.parametrize("seed", range(5))
def test_a_random_mesh_is_connected_and_of_the_degree_asked_for(nodes: int, seed: int) -> None:
    for degree in range(min(2, nodes - 1), min(nodes, 17)):
        edges = random_mesh.draw(nodes, degree, seed)
        text = random_mesh.to_yaml(nodes, edges)
        drawn = document.parse(text, topology.Topology, "random")
        topology.check(drawn, "random")
        assert len(set(edges)) == len(edges)
        ends = Counter(node for edge in edges for node in edge)
        lacking = [degree - ends[node] for node in range(1, nodes + 1) if ends[node] != degree]
        assert lacking == ([1] if nodes * degree % 2 else [])


def test_a_random_mesh_is_a_function_of_its_seed() -> None:
    assert random_mesh.draw(16, 4, 7) == random_mesh.draw(16, 4, 7) != random_mesh.draw(16, 4, 8)


def test_a_random_mesh_is_whole_without_any_one_node() -> None:
    edges = random_mesh.draw(12, 3, 1)
    for gone in range(1, 13):
        left = [edge for edge in edges if gone not in edge]
        cables = topology.plug(
            topology.Topology(
                version=1, nodes=[], cables=[topology.DrawnCable(a=f"{a}:eth0", b=f"{b}:eth0") for a, b in left]
            )
        )
        start = 2 if gone == 1 else 1
        assert topology.reach(start, cables) == set(range(1, 13)) - {gone}


@pytest.mark.parametrize(
    ("nodes", "degree", "expected"),
    [
        (1, 1, "--nodes 1: expected 2 to 64"),
        (65, 4, "--nodes 65: expected 2 to 64"),
        (5, 5, "--degree 5: expected 2 to 4 for 5 nodes"),
        (5, 1, "--degree 1: expected 2 to 4 for 5 nodes"),
        (2, 2, "--degree 2: expected 1 to 1 for 2 nodes"),
    ],
)
def test_an_impossible_mesh_is_one_line(nodes: int, degree: int, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        random_mesh.draw(nodes, degree, 1)


def test_a_random_topology_can_be_given_to_up(tmp_path: Path) -> None:
    path = tmp_path / "mesh.yaml"
    printed = CliRunner().invoke(cluster, ["topology", "random", "--nodes", "6", "--degree", "3", "--seed", "2"])
    path.write_text(printed.stdout)
    assert topology.count_ports(read(str(path))) == [3] * 6


def test_a_shipped_topology_is_shown_as_it_is() -> None:
    shown = CliRunner().invoke(cluster, ["topology", "show", "pair"]).stdout
    assert shown == topology.find_topology("pair").read_text()
    assert "pair " in CliRunner().invoke(cluster, ["topology", "list"]).stdout

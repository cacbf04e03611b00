"""Topology files: what is taken, and the one line that a bad one gets."""

from pathlib import Path

import pytest

from kmcluster import topology
from kmcluster.topology import Role
from kmplan.errors import UserError


@pytest.mark.parametrize("name", topology.shipped_names())
def test_every_shipped_topology_is_valid(name: str) -> None:
    assert topology.read_topology(topology.find_topology(name)).nodes


def test_one_is_one_seed() -> None:
    (node,) = topology.read_topology(topology.find_topology("one")).nodes
    assert node.role is Role.SEED


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
        ("version: 1\nnodes: [{role: blank}]\n", "exactly one with `role: seed`, none is"),
        ("version: 1\nnodes: [{role: seed}, {role: seed}]\n", "exactly one with `role: seed`, nodes 1, 2 are"),
        ("version: 1\nnodes: [\n", "not YAML"),
    ],
)
def test_a_bad_topology_is_one_line_with_file_and_place(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as raised:
        topology.read_topology(path)
    message = str(raised.value)
    assert str(path) in message
    assert expected in message
    assert "\n" not in message


def test_an_unknown_name_lists_the_shipped_ones() -> None:
    with pytest.raises(UserError, match=r"nonsuch: no such topology; shipped ones: .*one"):
        topology.find_topology("nonsuch")


def test_a_path_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("version: 1\nnodes: [{role: seed}, {}]\n")
    assert [node.role for node in topology.read_topology(topology.find_topology(str(path))).nodes] == [
        Role.SEED,
        Role.BLANK,
    ]

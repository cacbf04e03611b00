"""Machines under OVMF that live on their sticks (`install.to: stick`): what their disks hold stays theirs."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from machines import Node, bad_words, below_root, boot, wait_for

from kmbuild.cluster import make_directory
from kmcluster.qemu_stick import LEFT

pytestmark = pytest.mark.turn(2)

# The partitions of a stick that has been booted.
STICK = ["kubermesh-esp", "kubermesh-a", "kubermesh-a-verity", "_empty", "_empty", "kubermesh-var"]
LIVES = "this machine lives on it: leave it in"


@pytest.fixture(scope="module")
def sticks(alone: None, busybox: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Node]]:
    """The seed and a second machine. Each stick says which cluster it is for, and where the machine shall live."""
    directory = tmp_path_factory.mktemp("clusters") / "sticks"
    make_directory(directory, "sticks", voters=1, install={"to": "stick"})
    topology = Path(__file__).parent / "sticks.yaml"
    booted = boot("qemu", busybox, topology, "sticks", "--cluster", directory)
    next(booted)
    yield [Node("sticks", number) for number in (1, 2)]
    next(booted, None)


def check_home(node: Node) -> None:
    """The system and its data are on the stick, and nothing is on the disk that was not there before."""
    assert below_root(node) == {"sda2", "sda3"}
    assert node.host.mount_point("/var").device == "/dev/sda6"
    assert node.output("lsblk", "--noheadings", "--output=PARTLABEL", "/dev/sda").split() == STICK
    assert node.output("lsblk", "--noheadings", "--output=LABEL", "/dev/vda").split() == [LEFT]
    assert LIVES in node.status()["disk"]


def test_they_are_nodes(sticks: list[Node]) -> None:
    """The second one was told by its stick whom it belongs to."""
    seed, second = sticks
    assert second.status()["role"] == "worker" and second.neighbour("eth0") == seed.machine.name
    for node in sticks:
        check_home(node)
        assert LIVES in "\n".join(node.console_lines())
        assert node.output("systemctl", "--failed", "--no-legend", "--plain") == ""


def test_they_are_the_same_nodes_after_a_power_cut(sticks: list[Node]) -> None:
    """Both at once: all that the cluster knows is on sticks then."""
    seed = sticks[0]
    seed.kubectl("create", "configmap", "kept", "--from-literal=kept=yes")
    before = [node.status()["node"]["number"] for node in sticks]
    boots = [node.output("cat", "/proc/sys/kernel/random/boot_id") for node in sticks]
    for node in sticks:
        node.power("cut")
    for node in sticks:
        node.power("on")
    for node in sticks:
        node.wait_ready(900)
        check_home(node)
    assert [node.status()["node"]["number"] for node in sticks] == before
    assert all(node.output("cat", "/proc/sys/kernel/random/boot_id") not in boots for node in sticks)
    assert seed.kubectl("get", "configmap", "kept", "-o", "jsonpath={.data.kept}") == "yes"
    wait_for("neighbour", lambda: sticks[1].neighbour("eth0") == seed.machine.name, 120, 1)


def test_no_machine_has_told_of_a_fault(sticks: list[Node]) -> None:
    assert bad_words("sticks") == {}

"""What is told of a cluster: its links from both ends, its pods, its tables."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from test_cluster_state import make_cluster

from kmbuild.cluster import cluster as command
from kmbuild.status_command import cable_row, node_row
from kmcluster import picture, report, state
from kmcluster.cable import Cable, Port
from kmcluster.state import Cluster, Machine
from kmcluster.topology import Node


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "kubermesh/clusters"


def port(name: str, cost: int | None = 96, *, since_s: float = 5.0, authenticated: bool = True) -> dict[str, Any]:
    return {"name": name, "neighbour": {"cost": cost, "authenticated": authenticated, "since_s": since_s}}


def pair() -> Cluster:
    """Two machines, two cables; the second is lossy."""
    cluster = make_cluster("pair")
    cluster.machines.append(Machine(name="pair-2", number=2, node=Node()))
    cluster.cables = [
        Cable(1, Port(1, 0), Port(2, 0)),
        Cable(2, Port(2, 1), Port(1, 1), loss_percent=(30, 10), delay_ms=15),
    ]
    return cluster


class FakeDriver:
    """A driver whose machines are on and say what they are given to say; None is one that is off."""

    def __init__(self, *said: dict[str, Any] | None) -> None:
        self.said = said

    def power(self, machine: Machine) -> str:
        return "off" if self.said[machine.number - 1] is None else "on"

    def read_status(self, machine: Machine) -> dict[str, Any] | None:
        return self.said[machine.number - 1]

    def console(self, machine: Machine) -> Path:
        return Path("/console.log")


def described(monkeypatch: pytest.MonkeyPatch, *said: dict[str, Any] | None, **options: Any) -> dict[str, Any]:
    monkeypatch.setattr(report, "driver_of", lambda cluster: FakeDriver(*said))
    return report.describe(pair(), **options)


def test_a_link_is_up_when_both_ends_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    one = {"ports": [port("eth0", since_s=9), port("eth1", 256)]}
    two = {"ports": [port("eth0", 131), port("eth1", 65535)]}
    first, second = described(monkeypatch, one, two)["cables"]
    assert (first["nodes"], first["up"], first["cost"], first["since_s"]) == (["pair-1", "pair-2"], True, [96, 131], 5)
    assert (second["nodes"], second["up"], second["cost"], second["since_s"]) == (
        ["pair-2", "pair-1"],
        False,
        [None, 256],
        None,
    )


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"name": "eth0", "neighbour": None},
        port("eth0", None),
        port("eth0", 65535),
        port("eth0", authenticated=False),
    ],
)
def test_no_cost_without_a_trusted_neighbour_that_is_reached(given: dict[str, Any]) -> None:
    assert report.cost_of(given) is None


def test_a_node_counts_its_links_and_tells_the_worst(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = described(monkeypatch, {"ports": [port("eth0"), port("eth1", 256)]}, None)["nodes"]
    assert one["links"] == {"up": 2, "total": 2, "worst_cost": 256}
    assert two["links"] == {"up": 0, "total": 2, "worst_cost": None}
    assert (two["power"], two["state"], two["role"]) == ("off", "off", None)


def test_pods_are_counted_by_node() -> None:
    """Those that are ready, of all that have not ended."""
    text = """\
pair-1   Running     True
pair-1   Running     False
pair-1   Pending     <none>
pair-2   Running     True
pair-2   Succeeded   False
pair-2   Failed      False
<none>   Pending     False
"""
    assert report.tally(text) == {
        "pair-1": {"ready": 1, "total": 3},
        "pair-2": {"ready": 1, "total": 1},
        "<none>": {"ready": 0, "total": 1},
    }


def test_a_machine_that_is_off_has_no_pods(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the API still counts on it."""
    monkeypatch.setattr(report, "count_pods", lambda cluster: {"pair-2": {"ready": 3, "total": 3}})
    one, two = described(monkeypatch, {"role": "voter"}, None, ask_api=True)["nodes"]
    assert (one["pods"], two["pods"]) == ({"ready": 0, "total": 0}, None)
    assert node_row(two)[8] == "-"
    assert picture.health(two) == ""


def test_an_api_that_does_not_answer_leaves_pods_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no image, and so no kubectl."""
    one, two = described(monkeypatch, {"role": "voter"}, None, ask_api=True)["nodes"]
    assert one["pods"] is two["pods"] is None
    assert node_row(one)[8] == "-"


def test_the_tables_of_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    one = {
        "role": "voter",
        "state": "ready",
        "conditions": {"api": True},
        "routes": 7,
        "node": {"name": "pair-1", "addresses": ["fd00::1", "10.0.1.1"]},
        "ports": [port("eth0"), port("eth1", 256)],
        "events": [{"name": "node-ready", "boot_s": 9.04}],
    }
    monkeypatch.setattr(report, "count_pods", lambda cluster: {"pair-1": {"ready": 5, "total": 6}})
    two = {"node": {"name": "pair-3"}, "ports": [port("eth1", 131)]}
    shown = described(monkeypatch, one, two, ask_api=True)
    shown["nodes"][0]["disk_faults"] = ["full"]
    rows = [node_row(node) for node in shown["nodes"]]
    assert rows[0] == ["pair-1", "voter", "on, disk full", "ready", "2/2", "256", "7", "ok", "5/6", "9.0 s", "fd00::1"]
    assert rows[1] == ["pair-2 (pair-3)", "-", "on", "unknown", "1/2", "131", "-", "-", "0/0", "-", "-"]
    assert [cable_row(cable) for cable in shown["cables"]] == [
        ["pair-1:eth0", "pair-2:eth0", "plugged", "down", "96", "-", "-"],
        ["pair-2:eth1", "pair-1:eth1", "lossy, 30 % / 10 %, 15 ms", "up", "131", "256", "5 s"],
    ]


def test_status_draws_a_picture_beside_its_words(tmp_path: Path) -> None:
    with state.locked("pair", make=True):
        pair().save()
    result = CliRunner().invoke(command, ["status", "--json", "--svg", str(tmp_path / "a.svg")])
    assert [node["power"] for node in json.loads(result.stdout)["nodes"]] == ["off", "off"]
    assert (tmp_path / "a.svg").read_text().startswith("<svg ")
    refused = CliRunner().invoke(command, ["status", "--svg", str(tmp_path / "none/a.svg")])
    assert str(refused.exception) == f"{tmp_path}/none/a.svg: No such file or directory"


def test_the_state_of_an_older_tool_is_read() -> None:
    """Machines without disk faults, as before there were any."""
    raw = json.loads(msgspec.json.encode(make_cluster(), enc_hook=str))
    del raw["machines"][0]["disk_faults"]
    assert msgspec.convert(raw, Cluster, dec_hook=state.decode).machines[0].disk_faults == []

"""`kmbuild cluster` on the command line, as far as no machine is needed."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from test_cluster_state import make_cluster

from kmbuild import evidence_command
from kmbuild.cluster import cluster, copy_of
from kmcluster import state
from kmcluster.bench import Order, check_boot
from kmcluster.image import Image
from kmcluster.topology import Boot, Node, Role, Topology, read_topology
from kmplan.errors import UserError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "kubermesh/clusters"


def refused(*arguments: str) -> str:
    result = CliRunner().invoke(cluster, arguments)
    assert isinstance(result.exception, UserError), result
    assert "\n" not in str(result.exception)
    return str(result.exception)


def saved(*names: str) -> None:
    for name in names:
        with state.locked(name):
            make_cluster(name).save()


@pytest.mark.parametrize(
    "arguments", [["status"], ["kubeconfig"], ["kubectl", "--", "get", "nodes"], ["power", "1", "on"], ["console", "1"]]
)
def test_without_a_cluster_it_says_how_to_get_one(arguments: list[str]) -> None:
    assert refused(*arguments) == "no cluster on this machine; `kmbuild cluster up` makes one"


def test_two_clusters_want_a_name() -> None:
    saved("one", "two")
    assert refused("status") == "more than one cluster on this machine; say which one: one, two"
    assert refused("down") == "more than one cluster on this machine; say which one: one, two"


def test_a_refused_command_makes_no_folder(home: Path) -> None:
    assert refused("power", "--name", "ghost", "1", "on") == (
        "no cluster ghost on this machine; `kmbuild cluster up` makes one"
    )
    assert not (home / "ghost").exists()


def test_an_unknown_topology_is_named_with_the_known_ones() -> None:
    assert refused("up", "nonsuch").startswith("nonsuch: no such topology; shipped ones: ")


def test_a_missing_image_says_how_to_build_one(tmp_path: Path, home: Path) -> None:
    assert refused("up", "one", "--image", str(tmp_path)) == f"{tmp_path}: no image here; build one with `make image`"
    assert not (home / "one").exists()


def test_a_command_in_a_machine_that_is_off() -> None:
    saved("one")
    assert refused("exec", "1", "--", "true") == "one-1 is off; `kmbuild cluster power one-1 on`"


def test_an_unknown_node() -> None:
    saved("one")
    assert refused("exec", "2", "--", "true") == "2: no such node in cluster one; nodes: one-1"


def test_list_and_status_speak_json() -> None:
    saved("one")
    listed = CliRunner().invoke(cluster, ["list", "--json"])
    assert json.loads(listed.stdout) == [{"name": "one", "driver": "nspawn", "nodes": 1, "on": 0}]
    shown = json.loads(CliRunner().invoke(cluster, ["status", "--json"]).stdout)
    assert [(node["name"], node["power"], node["state"]) for node in shown["nodes"]] == [("one-1", "off", "off")]


def test_down_removes_what_a_crash_left(home: Path) -> None:
    saved("one")
    (home / "half").mkdir()
    assert CliRunner().invoke(cluster, ["down", "--all"]).stdout == "half: gone\none: gone\n"
    assert list(home.iterdir()) == []
    assert CliRunner().invoke(cluster, ["down", "one"]).exit_code == 0
    assert json.loads(CliRunner().invoke(cluster, ["down", "--json"]).stdout) == []


def test_a_stick_is_for_virtual_machines_that_have_one(tmp_path: Path) -> None:
    topology = tmp_path / "stick.yaml"
    topology.write_text("version: 1\nnodes: [{role: seed, boot: stick}]\n")
    image = Image(*(tmp_path / name for name in ("raw", "erofs", "manifest", "tools", "kubectl")))
    order = Order("one", read_topology(topology), "nspawn", image, None, lambda *_: None, lambda *_: None)
    with pytest.raises(UserError, match="a container cannot boot by `stick`; use --driver qemu"):
        check_boot(order)
    saved("one")
    assert refused("stick", "1", "pull") == "one-1 has no stick; `boot: stick` in the topology gives it one"


def test_a_stick_of_ones_own_is_for_the_one_node_that_boots_from_it(tmp_path: Path) -> None:
    """With the cluster directory that it was flashed with."""
    flashed, made = tmp_path / "stick.img", tmp_path / "made.img"
    flashed.write_bytes(b"a stick")
    stick, disk = Node(role=Role.SEED, boot=Boot.STICK), Node(role=Role.SEED)
    with pytest.raises(UserError, match=r"--stick: .*; name that one, too: --cluster DIR"):
        copy_of(flashed, Topology(version=1, nodes=[stick]), None)
    with pytest.raises(UserError, match="--stick: 0 nodes boot from one"):
        copy_of(flashed, Topology(version=1, nodes=[disk]), tmp_path)
    image = Image(flashed, flashed, flashed, tmp_path, tmp_path)
    copy_of(flashed, Topology(version=1, nodes=[stick]), tmp_path)(image, made, {})
    assert made.read_bytes() == b"a stick"
    missing = CliRunner().invoke(cluster, ["up", "one", "--stick", str(tmp_path / "none")])
    assert missing.exit_code == 2 and "does not exist" in missing.output


def test_a_console_is_shown_as_it_is_or_line_by_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Up to the end of what was written before the machine was seen off."""
    path = tmp_path / "console.log"
    path.write_bytes(b"Linux\r\nhalf a ")
    powers = iter(["on", "on", "off"] * 2)

    def power(_: object) -> str:
        with path.open("ab") as file:
            file.write(b"line\n\xff" if (now := next(powers)) == "off" else b"")
        return now

    saved("one")
    driver = SimpleNamespace(console=lambda _: path, power=power)
    monkeypatch.setattr(evidence_command, "driver_of", lambda _: driver)
    monkeypatch.setattr(evidence_command, "CONSOLE_POLL_S", 0)
    shown = CliRunner().invoke(cluster, ["console", "1", "--follow"]).stdout_bytes
    assert shown == b"Linux\r\nhalf a line\n\xff"
    path.write_bytes(b"Linux\r\nhalf a ")
    lines = CliRunner().invoke(cluster, ["console", "1", "--follow", "--json"]).stdout.splitlines()
    assert [json.loads(line)["line"] for line in lines] == ["Linux", "half a line", "\ufffd"]

"""`kmbuild cluster` on the command line, as far as no machine is needed."""

import contextlib
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from test_cluster_state import make_cluster

from kmbuild import evidence_command
from kmbuild.cluster import cluster, copy_of
from kmcluster import bench, process, state
from kmcluster.bench import Order, check_boot
from kmcluster.image import Image
from kmcluster.nspawn import NspawnDriver
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
        with state.locked(name, make=True):
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


def test_a_node_that_is_reset_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is off for a moment, and other processes then; whoever resets it holds the lock."""
    saved("one")
    made, lock = state.load("one"), contextlib.ExitStack()
    driver, on = NspawnDriver(made), {"init": process.identify(os.getpid())}

    def reset(_: float) -> None:
        made.machines[0].processes = on
        made.save()
        lock.close()

    lock.enter_context(state.locked("one"))
    monkeypatch.setattr(state.time, "sleep", reset)
    for _ in range(2):
        found = evidence_command.find_on(driver, "one", "1")
        assert found is not None and found.processes == on


def test_a_node_that_is_off_or_gone_is_followed_no_more(home: Path) -> None:
    saved("one")
    driver = NspawnDriver(state.load("one"))
    assert evidence_command.find_on(driver, "one", "1") is None
    state.remove(home / "one")
    assert evidence_command.find_on(driver, "one", "1") is None


def test_logs_are_followed_while_a_node_starts_again_and_to_the_end_of_its_disk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    saved("one")
    said = iter(["first\n", "one-1 is frozen", "then\n", "last\n"])
    powers = iter(["frozen", "on", "off", "off"])

    def read(*_arguments: object, as_json: bool) -> str:
        if (words := next(said)).endswith("\n"):
            return words
        raise UserError(words)

    monkeypatch.setattr(evidence_command.node_logs, "read", read)
    monkeypatch.setattr(evidence_command, "driver_of", lambda _: SimpleNamespace(power=lambda _: next(powers)))
    monkeypatch.setitem(evidence_command.POLL_S, "native", 0)
    assert CliRunner().invoke(cluster, ["logs", "1", "--follow"]).output == "first\nthen\nlast\n"
    assert [*said, *powers] == []


def test_up_begins_anew_what_an_up_that_was_killed_has_left(
    monkeypatch: pytest.MonkeyPatch, home: Path, tmp_path: Path
) -> None:
    """Its image may be another cluster's as well, and that one runs."""
    others, image, half = tmp_path / "others.erofs", tmp_path / "new.erofs", home / "one"
    others.write_text("old")
    image.write_text("new")
    (half / "served").mkdir(parents=True)
    (half / "machines/one-1/credentials").mkdir(parents=True)
    (half / "image.erofs").hardlink_to(others)
    topology = Topology(version=1, nodes=[Node(role=Role.SEED)])
    order = Order("one", topology, "nspawn", Image(image, image, image, tmp_path, tmp_path), tmp_path, print, print)
    driver = SimpleNamespace(power_on=lambda _: None, apply_cables=lambda _: None)
    monkeypatch.setattr(bench, "check_host", lambda _: None)
    monkeypatch.setattr(bench, "check_image", lambda _: {"roothash": "abc", "artefacts": {}})
    monkeypatch.setattr(bench, "driver_of", lambda _: driver)
    monkeypatch.setattr(bench.inotify, "check", lambda _: None)
    monkeypatch.setattr(bench.seed, "make_bundle", lambda *_: b"keys")
    assert bench.up(order) == state.load("one")
    assert (half / "image.erofs").read_text() == "new"
    assert others.read_text() == "old"


def test_a_console_is_shown_as_it_is_or_line_by_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Up to the end of what was written before the machine was seen off."""
    path = tmp_path / "console.log"
    path.write_bytes(b"Linux\r\nhalf a ")
    steps = iter([("on", b""), ("on", b"line\n"), ("off", b""), ("off", b"\xff")] * 2)

    def power(_: object) -> str:
        now, written = next(steps)
        with path.open("ab") as file:
            file.write(written)
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

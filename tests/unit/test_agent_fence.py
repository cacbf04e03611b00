"""Who may still be served when the cluster may have been begun anew."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from agent_fakes import FACTS
from agent_recoveries import FakePeers, Node, registry_of

from kmagent import control_plane, end_etcd, fence
from kmagent.components import UIDS
from kmagent.fence import Fence
from kmagent.orders import Orders
from kmagent.paths import Paths
from kmagent.registry import Registry
from kmagent.state import State


@pytest.mark.parametrize(
    ("nodes", "voters", "heard", "current"),
    [
        (1, {1}, {}, True),
        # A single voter has nobody who could say otherwise but those that know of more.
        (5, {1}, {}, True),
        (5, {1}, {2: 1, 3: 2}, False),
        (5, {1}, {2: 1, 3: 1, 4: 2}, True),
        (3, {1, 2, 3}, {}, False),
        (3, {1, 2, 3}, {2: 1}, True),
        (5, {1, 2, 3}, {2: 1}, False),
        (5, {1, 2, 3}, {2: 1, 4: 1}, True),
        # All voters are here, and few others.
        (9, {1, 2, 3}, {2: 1, 3: 1}, True),
        (9, {1, 2, 3}, {2: 1, 3: 2}, False),
        (9, {1, 2, 3}, {2: 1}, False),
        (5, {1, 2, 3}, {2: 1, 3: 2, 4: 2, 5: 2}, False),
        # One alone that was told of an epoch which a majority never kept.
        (5, {1, 2, 3}, {2: 1, 3: 1, 5: 2}, True),
        # Who is not registered has no say.
        (5, {1, 2, 3}, {2: 1, 8: 1, 9: 1}, False),
    ],
)
def test_etcd_is_served_when_nothing_newer_can_have_begun(
    nodes: int, voters: set[int], heard: dict[int, int], current: bool
) -> None:
    assert fence.is_current(1, 1, registry_of(nodes, voters), heard) is current


def test_no_old_voter_is_served_once_a_majority_keeps_the_order() -> None:
    """Whoever of the others it hears, and whichever voter began anew."""
    random = Random(7)  # noqa: S311 - no secret
    for _ in range(5000):
        nodes = random.randint(3, 11)
        voters = set(random.sample(range(1, nodes + 1), random.choice([3, 5]) if nodes >= 5 else 3))
        survivor = random.choice(sorted(voters))
        keep = {survivor, *random.sample(range(1, nodes + 1), nodes // 2 + 1)}
        for me in voters - keep:
            heard = {one: 2 if one in keep else 1 for one in range(1, nodes + 1) if random.random() < 0.7 and one != me}
            assert not fence.is_current(me, 1, registry_of(nodes, voters), heard), (nodes, voters, keep, heard)


@pytest.mark.parametrize(
    ("order", "epoch", "serves"),
    [
        ({"force": True}, 1, True),
        # It has begun: from now on the others are asked as ever.
        ({"force": True}, 2, False),
        # A majority keeps this one, and answers.
        ({}, 1, False),
        ({"force": True, "number": 1}, 1, False),
        ({"force": True, "epoch": 1}, 1, False),
    ],
)
def test_the_last_machine_begins_without_the_others_when_somebody_says_so(
    tmp_path: Path, order: dict[str, Any], epoch: int, serves: bool
) -> None:
    node = Node(tmp_path)
    node.paths.order.write_text(node.order(**order))
    facts = replace(FACTS, number=3, cluster_id=node.cluster_id, epoch=2)
    state = State()
    keeper = Fence(state, node.paths, facts, Orders(state, node.paths, facts), FakePeers(node, {}))
    assert keeper._may_serve(replace(registry_of(5, {1, 2, 3}), epoch=epoch), {}) is serves


def test_who_began_the_cluster_and_has_nothing_of_it_begins_no_other(tmp_path: Path) -> None:
    """Its etcd alone was lost: with an empty folder it would be the first member of another cluster."""
    node = Node(tmp_path)
    facts = replace(FACTS, number=3, cluster_id=node.cluster_id, began=True)
    state = State()
    keeper = Fence(state, node.paths, facts, Orders(state, node.paths, facts), FakePeers(node, {}))
    known, none = registry_of(3, {1, 2, 3}), Registry("shop")
    assert keeper._lost(known) == ""
    shutil.rmtree(node.paths.etcd / "member")
    assert "etcd's data are gone" in keeper._lost(known)
    # It is the first boot of all; or it joins others, with their data.
    assert keeper._lost(none) == ""
    keeper._facts = replace(facts, began=False)
    assert keeper._lost(known) == ""


def fenced(node: Node, known: Registry, states: dict[int, dict[str, Any]], runs_s: float = 0.3, **facts: Any) -> str:
    """Why node 3 serves nothing after a while, when it starts where these answer; empty when it does."""
    node.paths.registry.write_text(asyncio.run(node.shop.ledger.authority.sign(known)))
    me, state = replace(FACTS, number=3, cluster_id=node.cluster_id, probe_scale=0.01, **facts), State()
    orders = Orders(state, node.paths, me)

    async def scenario() -> str:
        fence.close(state, node.paths, orders)
        running = asyncio.create_task(Fence(state, node.paths, me, orders, FakePeers(node, states)).run())
        await asyncio.sleep(runs_s)
        running.cancel()
        return state.fenced

    return asyncio.run(scenario())


def test_a_registry_that_cannot_be_read_is_not_taken_for_a_first_boot(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.paths.registry.write_text("spoiled")
    me, state = replace(FACTS, number=3, cluster_id=node.cluster_id), State()
    keeper = Fence(state, node.paths, me, Orders(state, node.paths, me), FakePeers(node, {}))
    assert "cannot be read" in keeper._lost(keeper._registry())


def test_the_only_voter_listens_before_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mesh leads nowhere when it starts; others may have begun anew without it."""
    node, known = Node(tmp_path), registry_of(3, {3})
    monkeypatch.setattr(fence, "LISTEN_S", 5000)
    assert fenced(node, known, {}) == fence.ASKING
    assert fenced(node, known, {1: {"epoch": 1}}) == ""
    assert "1 nodes say" in fenced(node, known, {1: {"epoch": 2}})
    monkeypatch.setattr(fence, "LISTEN_S", 5)
    assert fenced(node, known, {}) == ""


def test_an_agent_that_is_started_anew_goes_on_with_the_time_that_it_was_alone(tmp_path: Path) -> None:
    """Others begin anew by themselves: whoever is cut off ends its etcd before, however often its agent was ended."""
    node, known = Node(tmp_path), registry_of(5, {1, 2, 3})
    node.paths = replace(node.paths, manifests=tmp_path / "kubelet")
    node.paths.manifests.mkdir()
    (node.paths.manifests / "etcd.yaml").touch()
    for alone_s, closed in ((0, False), (60, True)):
        node.paths.agreed.write_text(str(time.monotonic() - alone_s))
        assert bool(fenced(node, known, {}, 0.6, auto_recover_after_s=8)) is closed


HOLD = """
import fcntl, sys, time
open("/proc/self/comm", "w").write(sys.argv[2])
file = open(sys.argv[1], "rb")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("given", [True, False], ids=["now", "by an agent before this one"])
def test_an_etcd_that_is_fenced_does_not_serve_on_though_kubelet_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: bool
) -> None:
    paths = Paths(run=tmp_path, manifests=tmp_path / "kubelet", state=tmp_path / "state")
    database = paths.etcd / "member/snap/db"
    database.parent.mkdir(parents=True)
    database.touch()
    paths.manifests.mkdir()
    if given:
        (paths.manifests / "etcd.yaml").touch()
    etcd = subprocess.Popen([sys.executable, "-c", HOLD, database, "etcd"], stdout=subprocess.PIPE, text=True)
    assert etcd.stdout is not None and etcd.stdout.readline() == "held\n"
    monkeypatch.setattr(end_etcd, "POLITE_S", 0.1)
    state = State(facts=replace(FACTS, role="voter"))
    state.fence("no majority answers")

    async def scenario() -> None:
        running = asyncio.create_task(control_plane.run(state, paths, lambda: True))
        await asyncio.to_thread(etcd.wait, 20)
        running.cancel()

    try:
        asyncio.run(scenario())
    finally:
        etcd.kill()
        etcd.stdout.close()
    assert not (paths.manifests / "etcd.yaml").exists()


def test_only_the_control_planes_own_api_server_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [sys.executable, "-c", HOLD]
    for name in ("data", "other"):
        (tmp_path / name).touch()
    started = [
        subprocess.Popen([*words, tmp_path / file, name], stdout=subprocess.PIPE, text=True)
        for file, name in (("data", "kube-apiserver"), ("other", "kube-proxy"))
    ]
    try:
        assert [one.stdout.readline() for one in started if one.stdout] == ["held\n", "held\n"]
        monkeypatch.setitem(UIDS, "kube-apiserver", os.getuid() + 1)
        end_etcd.kill_api_server()
        assert [one.poll() for one in started] == [None, None]
        monkeypatch.setitem(UIDS, "kube-apiserver", os.getuid())
        end_etcd.kill_api_server()
        assert started[0].wait(20) == -signal.SIGKILL and started[1].poll() is None
    finally:
        for one in started:
            one.kill()
            one.communicate()

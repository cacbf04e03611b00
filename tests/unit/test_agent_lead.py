"""The leading node: what it asks for again and again, and what only when it hears of news."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from agent_fakes import FACTS, FIRST, MESH_KEY, EtcdMember, KubernetesApi, Shop, Told
from agent_sockets import live, until

from kmagent import lead, mesh_nodes, network, outages, rollout
from kmagent.facts import Facts
from kmagent.http import Response
from kmagent.lead import Leader
from kmagent.membership import Membership
from kmagent.mesh import Self
from kmagent.registry import Registry
from kmagent.snapshots import Snapshots
from kmagent.state import State


class Counting(KubernetesApi):
    """The API, which knows how often it was asked for what."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    async def request(self, method: str, path: str, body: bytes | None = None, content_type: str = "") -> Response:
        self.asked.append(path.partition("?")[0])
        return await super().request(method, path, body, content_type)

    def rounds(self) -> int:
        return self.asked.count(mesh_nodes.PATH)


@dataclass
class Whole:
    """A mesh that leads to every node."""

    me: Self
    prefixes: frozenset[str] = frozenset()
    asked: int = 0

    def routes(self) -> frozenset[str]:
        self.asked += 1
        return self.prefixes

    def reaches(self, me: Facts, number: int) -> bool:
        return True


@dataclass
class Led:
    """A cluster of one node, which leads; turns are short, and settled it soon is."""

    shop: Shop
    api: Counting
    mesh: Whole
    told: Told
    state: State

    async def turns(self, number: int) -> None:
        """Let some turns pass: in each, it asks twice which routes there are."""
        wanted = self.mesh.asked + 2 * number
        await until(lambda: self.mesh.asked >= wanted)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    monkeypatch.setattr(Snapshots, "take_if_due", lambda *_: None)
    monkeypatch.setattr(rollout, "PERIOD_S", 0.0)
    # Who begins to lead does not know who has just returned, and looks for a minute.
    monkeypatch.setattr(outages, "RETURN_S", 0.0)
    for name in ("PERIOD_S", "BUSY_S", "SETTLED_S"):
        monkeypatch.setattr(lead, name, 0.001)
    shop = Shop(tmp_path / "shop")
    shop.etcd.members = [EtcdMember("1", network.peer_url(FACTS.prefix, 1), FACTS.name)]
    shop.paths.staged.mkdir(parents=True)
    for name in ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"):
        (shop.paths.staged / f"{name}.yaml").write_text("- --secure-port=6443\n")
    return shop


@asynccontextmanager
async def leading(shop: Shop, *, watches: bool) -> AsyncIterator[Led]:
    mesh = Whole(Self("shop", 1, "shop-1", {1: MESH_KEY}, registered=frozenset({1})))
    led = Led(shop, Counting(), mesh, Told(works=watches), State())
    for condition in ("etcd", "api", "addons"):
        led.state.conditions[condition] = True
    parts: tuple[Any, ...] = (led.state, shop.paths, FACTS, shop.ledger, mesh, led.api, led.told)
    task = asyncio.create_task(Leader(*parts).run(Registry("shop").put(FIRST), MESH_KEY))
    try:
        await led.turns(lead.SETTLED_TURNS + 10)
        yield led
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def test_a_settled_cluster_s_objects_are_looked_at_when_there_is_news(shop: Shop) -> None:
    async def scenario() -> None:
        async with leading(shop, watches=True) as led:
            assert led.state.leads and led.api.writes, "its node is shown"
            before = led.api.rounds()
            await led.turns(50)
            assert led.api.rounds() == before
            led.told.tell()
            await led.turns(5)
            assert led.api.rounds() == before + 1
            # A route that has gone is news as well.
            led.mesh.prefixes = frozenset({"fd12:3456:789a::2/128"})
            await led.turns(5)
            assert led.api.rounds() > before + 1

    live(scenario())


def test_news_that_do_not_end_leave_a_pause_between_turns(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with leading(shop, watches=True) as led:
            for name, seconds in {"BUSY_S": 0.05, "PERIOD_S": 5, "SETTLED_S": 5}.items():
                monkeypatch.setattr(lead, name, seconds)
            await led.turns(1)
            before, start = led.mesh.asked, time.monotonic()
            while time.monotonic() < start + 0.5:
                led.told.tell()
                await asyncio.sleep(0.001)
            # Twice in each turn, and one that had begun before.
            assert 2 <= led.mesh.asked - before <= 2 * (1 + (time.monotonic() - start) / 0.05)

    live(scenario())


def test_who_hears_of_no_news_looks_at_each_turn(shop: Shop) -> None:
    async def scenario() -> None:
        async with leading(shop, watches=False) as led:
            before = led.api.rounds()
            await led.turns(50)
            assert led.api.rounds() >= before + 45

    live(scenario())


def test_what_failed_is_looked_at_again_at_the_next_turn(shop: Shop) -> None:
    async def scenario() -> None:
        async with leading(shop, watches=True) as led:
            led.api.collections.remove(mesh_nodes.PATH)
            led.told.tell()
            await led.turns(5)
            before = led.api.rounds()
            await led.turns(5)
            assert led.api.rounds() >= before + 8, "it asks for all and tries to show its node"
            led.api.collections.add(mesh_nodes.PATH)
            await led.turns(5)
            before = led.api.rounds()
            await led.turns(50)
            assert led.api.rounds() == before

    live(scenario())


@pytest.mark.parametrize(
    ("module", "name"),
    # A node that came back may deny pods yet; settings were looked at so short a time ago that they are left for later.
    [(outages, "RETURN_S"), (rollout, "PERIOD_S")],
)
def test_what_is_not_over_is_looked_at_again_at_the_next_turn(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str
) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(module, name, 3600.0)
        async with leading(shop, watches=True) as led:
            before = led.api.rounds()
            await led.turns(20)
            assert led.api.rounds() >= before + 18

    live(scenario())


def test_what_happened_while_etcd_was_not_ready_is_looked_at(shop: Shop) -> None:
    async def scenario() -> None:
        async with leading(shop, watches=True) as led:
            led.state.conditions["etcd"] = False
            await asyncio.sleep(0.05)
            led.told.tell()
            before = led.api.rounds()
            led.state.set("etcd", value=True)
            await led.turns(3)
            assert led.api.rounds() > before

    live(scenario())


def test_snapshots_are_taken_though_members_are_not_what_they_should_be(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    monkeypatch.setattr(Snapshots, "take_if_due", lambda _, registry, reachable: taken.append(len(registry.nodes)))

    async def refuse() -> list[Any]:
        raise OSError("etcdserver: unhealthy cluster")

    async def scenario() -> None:
        async with leading(shop, watches=True) as led:
            monkeypatch.setattr(shop.ledger.etcd, "members", refuse)
            taken.clear()
            await led.turns(5)
            assert len(taken) >= 4 and {*taken} == {1}

    live(scenario())


def test_a_node_that_leads_again_looks_at_once(shop: Shop) -> None:
    async def scenario() -> None:
        async with leading(shop, watches=True) as led:
            shop.etcd.leader = "2"
            await led.turns(3)
            assert not led.state.leads
            before = led.api.rounds()
            shop.etcd.leader = "1"
            await led.turns(3)
            assert led.state.leads and led.api.rounds() > before

    live(scenario())


def test_a_leader_without_an_api_server_has_another_voter_lead(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody would be given up, admitted or approved meanwhile, though the API is served elsewhere."""
    monkeypatch.setattr(lead, "BLIND_S", 0.0)
    shop.etcd.members.append(EtcdMember("2", network.peer_url(FACTS.prefix, 2), "shop-2"))

    async def scenario() -> None:
        await shop.begin()
        await shop.ledger.change(lambda old: old.put(replace(shop.node(2), role="voter")))
        async with leading(shop, watches=True) as led:
            led.state.conditions["api"] = False
            await led.turns(20)
            # Nobody else serves it either.
            assert shop.etcd.leader == "1"
            led.mesh.prefixes = frozenset({f"{FACTS.api}/128"})
            await until(lambda: shop.etcd.leader != "1")

    live(scenario())


def test_who_begins_to_lead_knows_who_shall_not_vote_before_there_is_an_api(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[frozenset[int]] = []
    monkeypatch.setattr(
        Membership, "reconcile", lambda self, seen_now, now: asyncio.sleep(0, seen.append(seen_now.barred))
    )
    label = {"metadata": {"name": "shop-1", "labels": {"kubermesh.io/control-plane": "never"}}, "spec": {}}

    async def scenario() -> None:
        async with leading(shop, watches=True) as led:
            led.api.collections.add("/api/v1/nodes")
            led.api.objects["/api/v1/nodes/shop-1"] = label
            led.told.tell()
            await until(lambda: seen[-1] == frozenset({1}))
        seen.clear()
        async with leading(shop, watches=True) as led:
            led.state.conditions["addons"] = False
            assert seen[0] == frozenset({1})

    live(scenario())

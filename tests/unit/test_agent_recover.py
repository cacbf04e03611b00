"""An order that was given long ago: it is carried out unless the cluster has gone on without it."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from agent_fakes import FACTS
from agent_recoveries import FakePeers, Node, registry_of

from kmagent import fence, recover
from kmagent.fence import Fence
from kmagent.follow import RestartError
from kmagent.orders import Orders
from kmagent.state import State

LEADS, ALONE = {"has_leader": True}, {"has_leader": False}


@pytest.fixture
def node(tmp_path: Path) -> Node:
    node = Node(tmp_path)
    node.paths.registry.write_text(asyncio.run(node.shop.ledger.authority.sign(registry_of(5, {1, 2, 3}))))
    return node


def says(epoch: int, etcd: dict[str, bool] | None = None, role: str = "voter", **more: Any) -> dict[str, Any]:
    return {"epoch": epoch, "role": role, "etcd": etcd, **more}


@pytest.mark.parametrize(
    ("states", "gone_on"),
    [
        ({}, False),
        ({1: says(1, LEADS), 2: says(1, LEADS)}, True),
        ({1: says(1, LEADS)}, True),
        # One more than those knows of it: that is a majority.
        ({1: says(1, LEADS), 4: says(2, role="worker"), 5: says(2, role="worker")}, False),
        ({1: says(1, LEADS), 4: says(2, role="worker")}, True),
        # Two that are lost to each other, one that cannot know, and those that have followed.
        ({1: says(1, ALONE), 2: says(1, None)}, False),
        ({4: says(1, LEADS, role="standby")}, False),
        ({1: says(2, LEADS)}, False),
    ],
)
def test_an_order_is_old_when_voters_have_a_leader_and_no_majority_knows_of_it(
    states: dict[int, dict[str, Any]], gone_on: bool
) -> None:
    assert recover.goes_on(2, 5, states.values()) is gone_on


def carry_out(node: Node, states: dict[int, dict[str, Any]], **order: Any) -> FakePeers:
    """Run what carries an order out, for as long as it takes to ask around once."""
    node.paths.order.write_text(node.order(**order))
    facts = replace(FACTS, number=3, cluster_id=node.cluster_id)
    peers, state = FakePeers(node, states), State()

    async def scenario() -> None:
        running = asyncio.create_task(recover.run(state, node.paths, facts, Orders(state, node.paths, facts), peers))
        done, _ = await asyncio.wait([running], timeout=0.2)
        running.cancel()
        for task in done:
            task.result()

    asyncio.run(scenario())
    return peers


def test_an_order_of_long_ago_takes_nothing_from_a_cluster_that_has_gone_on(node: Node) -> None:
    with pytest.raises(RestartError):
        carry_out(node, {1: says(1, LEADS), 2: says(1, LEADS)})
    assert not node.paths.order.exists()
    assert Orders(State(), node.paths, FACTS).withdrawn == 2


def test_an_order_is_given_to_all_where_the_cluster_does_not_go_on(node: Node) -> None:
    assert len(carry_out(node, {1: says(1, ALONE), 4: says(1, role="worker")}).given) == 1
    assert node.paths.order.exists()


def test_who_keeps_an_order_that_was_withdrawn_serves_again(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fence, "WITHDRAWN_S", 0.01)
    node.paths.order.write_text(node.order(number=1))
    facts = replace(FACTS, number=3, cluster_id=node.cluster_id)
    state, peers = State(), FakePeers(node, {1: says(2, None, withdrawn=0)})
    orders = Orders(state, node.paths, facts)
    keeper = Fence(state, node.paths, facts, orders, peers)

    async def scenario() -> None:
        running = asyncio.create_task(keeper.run())
        await asyncio.sleep(0.1)
        assert not running.done() and state.fenced
        peers.said = {1: says(1, None, withdrawn=2)}
        with pytest.raises(RestartError):
            await asyncio.wait_for(running, 5)

    asyncio.run(scenario())
    assert not orders.overtaken and not node.paths.order.exists()

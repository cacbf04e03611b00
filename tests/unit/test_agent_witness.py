"""A voter that begins the cluster anew by itself."""

import asyncio
import contextlib
from dataclasses import replace
from typing import Any

import pytest
from agent_fakes import FACTS
from agent_recoveries import FakePeers, Node, registry_of

from kmagent import keep_order, witness
from kmagent.node_api import NodeApi
from kmagent.orders import Orders
from kmagent.state import State


def voter(revision: int | None, *, has_leader: bool = False, role: str = "voter") -> dict[str, Any]:
    return {"role": role, "etcd": {"revision": revision, "has_leader": has_leader}, "epoch": 1}


@pytest.mark.parametrize(
    ("states", "best"),
    [
        ({1: voter(7)}, True),
        ({1: voter(7), 2: voter(8)}, False),
        ({1: voter(8), 2: voter(8)}, True),
        ({2: voter(8), 1: voter(8)}, True),
        # A standby does not notice that a leader is gone, and never begins anew by itself.
        ({1: voter(7), 2: voter(9, has_leader=True, role="standby")}, True),
        ({1: voter(7, role="standby")}, False),
        ({1: voter(None), 2: voter(3)}, False),
        # Its data may go further.
        ({1: voter(7), 2: voter(None)}, False),
        ({2: voter(3)}, False),
    ],
)
def test_the_voter_that_is_best_off_begins_anew(states: dict[int, dict[str, Any]], best: bool) -> None:
    assert witness.is_best(1, states) is best


@pytest.mark.parametrize(
    ("states", "lost"),
    [
        ({3: voter(7)}, True),
        ({3: voter(7), 4: voter(7, has_leader=True, role="standby")}, True),
        # This one's etcd alone is broken; or others are about to elect a leader.
        ({3: voter(7), 2: voter(9, has_leader=True)}, False),
        ({3: voter(7), 2: voter(9)}, False),
    ],
)
def test_voters_are_lost_when_most_do_not_answer(states: dict[int, dict[str, Any]], lost: bool) -> None:
    assert witness.are_lost(registry_of(5, {1, 2, 3}), states) is lost


@pytest.mark.parametrize(
    ("others", "gives"),
    [([4, 5], True), ([4], False), ([2, 4, 5], False)],
    ids=["majority", "minority", "a better voter"],
)
def test_a_voter_that_lost_the_others_orders_to_begin_anew_once_a_majority_is_there(
    node: Node, others: list[int], gives: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = replace(FACTS, number=3, cluster_id=node.cluster_id, auto_recover_after_s=0.2)
    known = registry_of(5, {1, 2, 3})
    node.paths.registry.write_text(asyncio.run(node.shop.ledger.authority.sign(known)))
    states = {number: {"role": "worker", "etcd": None, "epoch": 1} for number in others} | (
        {2: voter(9)} if 2 in others else {}
    )
    state = State()
    orders, peers = Orders(state, node.paths, facts), FakePeers(node, states)
    api = NodeApi(state, node.paths, facts, orders, peers, None)
    monkeypatch.setattr(api, "describe", lambda: asyncio.sleep(0, voter(8)))
    taken: list[str] = []

    async def take(packed: str) -> bool:
        taken.append(packed)
        return True

    monkeypatch.setattr(orders, "take", take)
    watch = witness.Witness(state, node.paths, facts, orders, peers, api, node.shop.ledger.authority)

    async def scenario() -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(watch.run(), 1.0)

    asyncio.run(scenario())
    assert bool(taken) is gives
    if gives:
        assert keep_order.keep(node.paths, taken[0]) == {"state": "kept", "epoch": 2}

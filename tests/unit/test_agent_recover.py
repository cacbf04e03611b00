"""An order that was given long ago: it is carried out unless the cluster has gone on without it."""

import asyncio
import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from agent_fakes import FACTS
from agent_recoveries import FakePeers, Node, registry_of

from kmagent import keep_order, orders, peers, recover
from kmagent.facts import Facts
from kmagent.follow import RestartError
from kmagent.http import Client, Response
from kmagent.orders import Orders
from kmagent.peers import Peers
from kmagent.registry import Registry
from kmagent.state import State
from kmplan.errors import UserError

LEADS, ALONE = {"has_leader": True}, {"has_leader": False}


@pytest.fixture
def node(tmp_path: Path) -> Node:
    node = Node(tmp_path)
    node.paths.registry.write_text(asyncio.run(node.shop.ledger.authority.sign(registry_of(5, {1, 2, 3}))))
    return node


def facts_of(node: Node) -> Facts:
    return replace(FACTS, number=3, cluster_id=node.cluster_id)


def says(epoch: int, etcd: dict[str, bool] | None = None, role: str = "voter", **more: Any) -> dict[str, Any]:
    return {"epoch": epoch, "own_epoch": epoch, "withdrawn": 0, "role": role, "etcd": etcd, **more}


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


def carry_out(node: Node, states: dict[int, dict[str, Any]], *, is_new: bool = True, **order: Any) -> FakePeers:
    """Run what carries an order out, for as long as it takes to ask around once."""
    node.paths.order.write_text(node.order(**order))
    if is_new:
        node.paths.order_taken.write_text("2")
    peers, state = FakePeers(node, states), State()

    async def scenario() -> None:
        orders = Orders(state, node.paths, facts_of(node))
        running = asyncio.create_task(recover.run(state, node.paths, facts_of(node), orders, peers))
        done, _ = await asyncio.wait([running], timeout=0.2)
        running.cancel()
        for task in done:
            task.result()

    asyncio.run(scenario())
    return peers


def test_an_order_of_long_ago_takes_nothing_from_a_cluster_that_has_gone_on(node: Node) -> None:
    with pytest.raises(RestartError):
        carry_out(node, {1: says(1, LEADS), 2: says(1, LEADS)})
    known = Orders(State(), node.paths, facts_of(node))
    assert known.newest is None and known.withdrawn == 2 and not known.overtaken
    # It is not taken again, whoever gives it, and none has its number.
    with pytest.raises(UserError, match="epoch 2, and this node knows of 2"):
        keep_order.keep(node.paths, node.order())
    assert keep_order.keep(node.paths, node.order(epoch=3))["state"] == "kept"


@pytest.mark.parametrize(
    ("states", "order"),
    [
        # The cluster does not go on; or somebody meant it all the same.
        ({1: says(1, ALONE), 4: says(1, role="worker")}, {}),
        ({1: says(1, LEADS)}, {"force": True}),
    ],
)
def test_an_order_is_given_to_all_where_nobody_goes_on(
    node: Node, states: dict[int, dict[str, Any]], order: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recover, "child", lambda *_: asyncio.sleep(0, {"state": "failed", "message": "not here"}))
    assert len(carry_out(node, states, **order).given) == 1
    assert node.paths.order.exists()


@pytest.mark.parametrize(
    ("states", "given", "over"),
    [
        # All were off, and nobody has a leader yet: most know nothing of it, or keep it, or are not there yet.
        ({1: says(1, ALONE), 2: says(1), 4: says(1)}, 0, True),
        ({1: says(1, ALONE), 2: says(1)}, 0, False),
        ({1: says(2), 2: says(2)}, 1, False),
    ],
)
def test_an_order_that_was_given_before_this_machine_started_is_old_when_most_know_nothing_of_it(
    node: Node, states: dict[int, dict[str, Any]], given: int, over: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recover, "child", lambda *_: asyncio.sleep(0, {"state": "failed", "message": "not here"}))
    with pytest.raises(RestartError) if over else contextlib.nullcontext():
        assert len(carry_out(node, states, is_new=False).given) == given
    assert node.paths.order.exists() is not over


def test_an_order_that_too_few_keep_is_given_up_after_a_while(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two are gone for good: most will never say that they know nothing of it."""
    monkeypatch.setattr(recover, "AGAIN_S", 0.01)
    monkeypatch.setattr(recover, "UNDECIDED_S", 0.05)
    with pytest.raises(RestartError):
        carry_out(node, {4: says(1), 5: says(2)}, is_new=False)
    assert carry_out(node, {4: says(1)}, is_new=False, epoch=3).given == []
    assert node.paths.order.exists()


@pytest.mark.parametrize(
    ("states", "order", "over"),
    [
        ({1: says(1, LEADS), 4: says(1), 5: says(1)}, {}, True),
        # Too few to know, nobody leads, or somebody meant it to begin without a majority.
        ({1: says(1, LEADS), 4: says(1)}, {}, False),
        ({1: says(1, ALONE), 4: says(1), 5: says(1)}, {}, False),
        ({1: says(1, LEADS), 4: says(1), 5: says(1)}, {"force": True}, False),
    ],
)
def test_the_order_of_a_node_that_is_gone_is_kept_by_nobody_for_ever(
    node: Node, states: dict[int, dict[str, Any]], order: dict[str, Any], over: bool
) -> None:
    with pytest.raises(RestartError) if over else contextlib.nullcontext():
        assert carry_out(node, states, number=2, **order).given == []
    assert node.paths.order.exists() is not over


def test_what_is_withdrawn_has_no_keys_of_the_cluster(node: Node) -> None:
    with pytest.raises(RestartError):
        carry_out(node, {1: says(1, LEADS), 2: says(1, LEADS)}, sealed="c2VhbGVk")
    assert "c2VhbGVk" not in node.paths.withdrawn.read_text()
    # Cut off when it was put aside: it does not come back.
    node.paths.order.write_text(node.order())
    assert Orders(State(), node.paths, facts_of(node)).newest is None


def test_what_has_begun_goes_on(node: Node) -> None:
    """The power was cut when etcd's data were those of the new epoch, and what the node is was not written yet."""
    node.paths.begun(2).touch()
    assert len(carry_out(node, {1: says(1, LEADS), 2: says(1, LEADS)}).given) == 1


@pytest.mark.parametrize(
    ("withdrawn", "has", "over"),
    # A later order that it has withdrawn is all that it tells; and one that it has begun goes on.
    [(0, 1, False), (2, 1, True), (3, 1, True), (3, 2, False)],
)
def test_who_keeps_an_order_asks_the_node_that_it_names(node: Node, withdrawn: int, has: int, over: bool) -> None:
    states = {1: says(1, None, withdrawn=withdrawn, own_epoch=has), 2: says(1, LEADS, withdrawn=2)}
    with pytest.raises(RestartError) if over else contextlib.nullcontext():
        assert carry_out(node, states, number=1).given == []
    assert node.paths.order.exists() is not over


def test_a_node_of_an_earlier_version_is_asked_as_well(node: Node) -> None:
    old = {key: value for key, value in says(1, None).items() if key not in ("withdrawn", "own_epoch")}
    assert carry_out(node, {1: old}, number=1).given == []
    assert node.paths.order.exists()


@pytest.mark.parametrize(("behind", "own_epoch", "taken"), [(True, 2, True), (False, 2, False), (True, 1, False)])
def test_a_voter_that_was_left_behind_asks_for_the_order(
    node: Node, monkeypatch: pytest.MonkeyPatch, behind: bool, own_epoch: int, taken: bool
) -> None:
    """It was cut off with a majority and has not heard of it. Whose order did not begin yet says nothing."""
    states = {1: says(2, LEADS, own_epoch=own_epoch, signed_order=node.order(number=1)), 2: says(1, LEADS)}

    async def keep(argv: list[str], *, input: str, check: bool) -> tuple[int, str]:  # noqa: A002 - as it is called
        return 0, json.dumps(keep_order.keep(node.paths, input))

    monkeypatch.setattr(orders, "run_async", keep)

    async def scenario() -> bool:
        state = State(left_behind=behind)
        known = Orders(state, node.paths, facts_of(node))
        running = asyncio.create_task(recover.run(state, node.paths, facts_of(node), known, FakePeers(node, states)))
        await asyncio.wait([running], timeout=0.2)
        running.cancel()
        return known.overtaken

    assert asyncio.run(scenario()) is taken


def test_another_order_that_came_meanwhile_stays(node: Node) -> None:
    node.paths.order.write_text(node.order())
    orders = Orders(State(), node.paths, facts_of(node))
    old = orders.newest
    assert old is not None
    node.paths.order.write_text(node.order(epoch=3, force=True))
    assert asyncio.run(orders.withdraw(old)) is False
    assert orders.newest is not None and orders.newest.epoch == 3


def test_an_answer_that_cannot_be_counted_with_is_none(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that was admitted may lie, and must not end the agents of others."""
    peers = Peers(node.paths, facts_of(node))
    answers: dict[int, Any] = {1: says(2), 2: says(2, own_epoch=None), 3: says(2, withdrawn="x"), 4: {"epoch": "2"}}
    answers |= {5: {"epoch": 2}, 6: says(2, "x"), 7: says(2, {"has_leader": 1}), 8: says(2, role=[])}  # type: ignore[arg-type]
    answers |= {9: says(2, {"has_leader": True, "revision": "9"}), 10: says(2, signed_order=7)}
    monkeypatch.setattr(peers, "_ask_all", lambda *_: asyncio.sleep(0, answers))
    assert asyncio.run(peers.states(Registry("shop"))).keys() == {1, 5}


@pytest.mark.parametrize("answer", [b"[" * 100_000, b"x" * (peers.MOST + 1), None], ids=["deep", "long", "slow"])
def test_a_node_whose_answer_does_not_end_keeps_nobody_from_asking(
    node: Node, monkeypatch: pytest.MonkeyPatch, answer: bytes | None
) -> None:
    """Every voter asks all nodes before it starts etcd."""

    async def request(client: Client, *_: Any) -> Response:
        if answer is None:
            await asyncio.sleep(60)
        if client._most is not None and len(answer or b"") >= client._most:
            raise OSError("too long")
        return Response(200, answer or b"")

    monkeypatch.setattr(Client, "request", request)
    monkeypatch.setattr(peers, "ANSWER_S", 0.05)
    asked = Peers(node.paths, facts_of(node))
    assert asyncio.run(asyncio.wait_for(asked.states(registry_of(5, {1, 2, 3})), 20)) == {}

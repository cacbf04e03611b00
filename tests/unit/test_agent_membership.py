"""The membership's keeper against etcd's rules: whatever is interrupted, another one goes on from there."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest
from agent_fakes import FACTS, Crash, EtcdMember, Machine, Shop

from kmagent import membership, network
from kmagent.candidates import Report
from kmagent.etcd import Etcd
from kmagent.http import Response
from kmagent.ledger import Ledger
from kmagent.membership import LEARNER_S, OPERATION, PATIENCE_S, Membership, Seen
from kmagent.registry import Registry

FACTS3 = replace(FACTS, voters=3, voter_grace_s=60.0)


def url(number: int) -> str:
    return network.peer_url(FACTS.prefix, number)


class Cluster:
    """Five nodes, of which 1 leads; its keeper may be killed and begin anew. `up` are the nodes that are there."""

    def __init__(self, shop: Shop) -> None:
        self.shop, self.now, self.up = shop, 0.0, {1, 2, 3, 4, 5}
        # How many members there were when each snapshot was asked for.
        self.snapshots: list[int] = []
        self.is_slow = False
        self.keeper = self.another()
        shop.etcd.members = [EtcdMember("1", url(1), "shop-1")]
        asyncio.run(shop.begin())
        for _ in range(4):
            asyncio.run(shop.admit(Machine()))

    def another(self) -> Membership:
        return Membership(self.shop.another_ledger(), FACTS3, self.prepare)

    async def prepare(self, registry: Registry, reachable: frozenset[int]) -> bool:
        assert len(registry.nodes) == 5 and reachable <= self.up
        self.snapshots.append(len(self.shop.etcd.members))
        return self.is_slow

    def turn(self, barred: frozenset[int] = frozenset()) -> bool:
        """One turn of the leading agent, and what machines do meanwhile."""
        self.shop.etcd.members = [
            replace(one, active=number_of(one) in self.up) if one.name else one for one in self.shop.etcd.members
        ]
        done = asyncio.run(self.keeper.reconcile(Seen(frozenset(self.up), barred, self.shop.etcd.local), self.now))
        self.start()
        self.now += 5
        return done

    def start(self) -> None:
        """A member that was added starts at some time, and catches up some time later."""
        self.shop.etcd.members = [
            replace(one, name=f"shop-{number_of(one)}", in_step=bool(one.name)) if number_of(one) in self.up else one
            for one in self.shop.etcd.members
        ]

    def settle(self) -> None:
        """Take turns until nothing is due, also when what is waited for is over."""
        quiet = 0
        for _ in range(400):
            quiet = 0 if self.turn() else quiet + 1
            if quiet > FACTS3.voter_grace_s / 5 + 3:
                return
        raise AssertionError(self.shop.etcd.members)

    @property
    def voters(self) -> set[int]:
        return {number_of(one) for one in self.shop.etcd.members if not one.learner}

    @property
    def learners(self) -> set[int]:
        return {number_of(one) for one in self.shop.etcd.members if one.learner}

    def roles(self) -> dict[int, str]:
        known, _ = asyncio.run(self.shop.ledger.registry())
        return {one.number: one.role for one in known.nodes}

    def is_well(self, voters: int = 3) -> bool:
        named = {role: {number for number, has in self.roles().items() if has == role} for role in ("voter", "standby")}
        assert named == {"voter": self.voters, "standby": self.learners}
        return len(self.voters & self.up) == voters and len(self.learners & self.up) == 1


def number_of(member: EtcdMember) -> int:
    return next(number for number in range(1, 10) if member.url == url(number))


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(Shop(tmp_path / "shop"))


def test_a_new_cluster_gets_three_voters_and_one_that_is_warm(cluster: Cluster) -> None:
    cluster.settle()
    assert (cluster.voters, cluster.learners) == ({1, 2, 3}, {4})
    assert cluster.is_well()
    assert cluster.turn() is False
    # One before each change: three were added, two of them made to vote.
    assert {*cluster.snapshots} == {1, 2, 3} and len(cluster.snapshots) >= 5


def test_a_voter_that_is_away_for_long_is_replaced_and_one_that_returns_in_time_is_not(cluster: Cluster) -> None:
    cluster.settle()
    cluster.up.remove(3)
    for _ in range(10):
        cluster.turn()
    cluster.up.add(3)
    cluster.settle()
    assert cluster.voters == {1, 2, 3}
    cluster.up.remove(3)
    cluster.settle()
    assert (cluster.voters, cluster.learners) == ({1, 2, 4}, {5})
    cluster.up.add(3)
    cluster.settle()
    assert cluster.voters == {1, 2, 4} and cluster.roles()[3] == "worker"
    assert cluster.is_well()


def test_a_node_without_a_disk_never_votes(cluster: Cluster) -> None:
    async def forget_disk(number: int) -> None:
        node = (await cluster.shop.ledger.registry())[0].find(number=number)
        assert node is not None
        await cluster.shop.ledger.change(lambda old: old.put(replace(node, diskless=True)))

    asyncio.run(forget_disk(2))
    cluster.settle()
    assert (cluster.voters, cluster.learners) == ({1, 3, 4}, {5})
    cluster.up.remove(3)
    cluster.settle()
    assert (cluster.voters, cluster.learners) == ({1, 4, 5}, set())


def test_the_grace_goes_on_when_another_node_leads(cluster: Cluster) -> None:
    cluster.settle()
    other, everyone = cluster.another(), frozenset({1, 2, 3, 4, 5})
    cluster.up.remove(3)
    for _ in range(8):
        cluster.turn()
        other.stand_by(everyone, frozenset(cluster.up), cluster.now)
    assert 3 in cluster.voters
    cluster.keeper = other
    # 40 of 60 s are over.
    for _ in range(6):
        cluster.turn()
    assert 4 in cluster.voters
    cluster.settle()
    # One that was there again in between is not away any longer; nor does who was cut off itself know anything.
    cluster.up.add(3)
    cluster.settle()
    cluster.up.remove(2)
    for forgets in (False, True):
        cluster.keeper = another = cluster.another()
        another.stand_by(everyone, frozenset(cluster.up), cluster.now)
        cluster.now += 100
        if forgets:
            another.forget()
        else:
            another.stand_by(everyone, everyone, cluster.now)
        cluster.turn()
        assert 2 in cluster.voters


def test_an_etcd_that_does_not_answer_is_away_even_if_its_node_is_there(cluster: Cluster) -> None:
    cluster.settle()
    for _ in range(20):
        cluster.shop.etcd.members = [replace(one, active=number_of(one) != 2) for one in cluster.shop.etcd.members]
        asyncio.run(cluster.keeper.reconcile(Seen(frozenset(cluster.up), leader=cluster.shop.etcd.local), cluster.now))
        cluster.start()
        cluster.now += 5
    assert 2 not in cluster.voters and len(cluster.voters) == 3


def mute(cluster: Cluster, turns: int, barred: frozenset[int], *up: int) -> set[int]:
    """The voters after as many turns of 5 s in which these nodes are there, and nobody hears of the third one's etcd."""
    for _ in range(turns):
        cluster.shop.etcd.members = [replace(one, active=number_of(one) != 3) for one in cluster.shop.etcd.members]
        seen = Seen(frozenset(up), barred, cluster.shop.etcd.local)
        asyncio.run(cluster.keeper.reconcile(seen, cluster.now))
        cluster.now += 5
    return cluster.voters


def test_a_voter_that_comes_and_goes_and_never_serves_is_replaced(cluster: Cluster) -> None:
    cluster.settle()
    for _ in range(5):
        assert mute(cluster, 2, frozenset(), 1, 2, 4, 5) == {1, 2, 3}
        mute(cluster, 3, frozenset(), 1, 2, 3, 4, 5)
    assert mute(cluster, 3, frozenset(), 1, 2, 3, 4, 5) == {1, 2, 4}


def test_where_no_other_node_may_vote_one_takes_its_own_place_when_its_etcd_is_broken(cluster: Cluster) -> None:
    """Not one that was off for longer than is waited: its etcd starts later than the mesh leads there."""
    only_three = frozenset({4, 5})
    for _ in range(60):
        cluster.turn(only_three)
    assert mute(cluster, 20, only_three, 1, 2, 4, 5) == {1, 2, 3}
    assert mute(cluster, 11, only_three, 1, 2, 3, 4, 5) == {1, 2, 3}
    assert mute(cluster, 4, only_three, 1, 2, 3, 4, 5) == {1, 2}
    for _ in range(20):
        cluster.turn(only_three)
    assert cluster.voters == {1, 2, 3}


def test_a_voter_that_returns_is_waited_for_anew(cluster: Cluster) -> None:
    """Though another node could take its place: its etcd starts later than the mesh leads there."""
    for _ in range(60):
        cluster.turn()
    assert mute(cluster, 11, frozenset(), 1, 2, 4, 5) == {1, 2, 3}
    assert mute(cluster, 11, frozenset(), 1, 2, 3, 4, 5) == {1, 2, 3}
    assert 3 not in mute(cluster, 4, frozenset(), 1, 2, 3, 4, 5)


def test_what_etcd_was_sent_is_read_of_its_metrics() -> None:
    text = b"""# TYPE etcd_network_peer_received_bytes_total counter
etcd_network_peer_received_bytes_total{From="0"} 168
etcd_network_peer_received_bytes_total{From="afec4ba3669f2dd"} 1.2345678e+07
etcd_network_peer_sent_bytes_total{To="afec4ba3669f2dd"} 12
"""

    class Metrics:
        async def request(self, *_: str) -> Response:
            return Response(200, text)

    found = asyncio.run(Etcd(Metrics(), Metrics()).received())  # type: ignore[arg-type]
    assert found == {"0": 168.0, "792286888519660253": 12345678.0}


def test_an_etcd_that_was_started_anew_is_there(cluster: Cluster) -> None:
    cluster.settle()
    # The counters begin at nought with the leader's etcd, and tell nothing of before.
    cluster.shop.etcd.received.clear()
    cluster.keeper = cluster.another()
    cluster.settle()
    assert cluster.voters == {1, 2, 3} and cluster.is_well()


@pytest.mark.parametrize("died", [set(), {3}, {4}])
def test_an_agent_that_is_killed_at_any_moment_leaves_what_the_next_one_can_end(tmp_path: Path, died: set[int]) -> None:
    """Killed before each of its first 120 requests to etcd; each time another begins, with no memory of it."""
    for moment in range(120):
        cluster = Cluster(Shop(tmp_path / f"shop-{moment}"))
        if died:
            cluster.settle()
            cluster.up -= died
            cluster.turn()
            cluster.now += 100
        cluster.shop.etcd.crash_in = moment
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(membership, "PATIENCE_S", 10.0)
            try:
                for _ in range(30):
                    cluster.turn()
            except Crash:
                cluster.shop.etcd.crash_in = None
                cluster.keeper = cluster.another()
            cluster.shop.etcd.crash_in = None
            cluster.settle()
        assert cluster.is_well(), (moment, cluster.shop.etcd.members)
        assert cluster.voters & died == set()


def test_only_one_of_two_leaders_acts_and_one_that_is_gone_is_not_waited_for_long(cluster: Cluster) -> None:
    note = json.dumps({"by": 2, "what": "something"})
    asyncio.run(cluster.shop.ledger.etcd.put(OPERATION, note))
    assert cluster.turn() is True
    assert cluster.roles()[2] == "worker"
    cluster.now += PATIENCE_S
    assert cluster.turn() is True
    assert cluster.roles()[2] == "standby"


def test_who_was_overtaken_between_looking_and_acting_does_nothing(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide, etcd = membership.decide, cluster.shop.etcd

    def slow(view: membership.View) -> membership.Action | None:
        """Another one begins and ends an operation meanwhile."""
        monkeypatch.setattr(membership, "decide", decide)
        etcd.revision += 1
        etcd.values[OPERATION] = ("", etcd.revision)
        return decide(view)

    monkeypatch.setattr(membership, "decide", slow)
    assert cluster.turn() is True
    assert set(cluster.roles().values()) == {"voter", "worker"}
    assert cluster.turn() is True
    assert "standby" in cluster.roles().values()


def test_a_promotion_that_is_refused_again_and_again_takes_one_snapshot(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others would push out those of the last two hours, while the learner still catches up."""
    monkeypatch.setattr(cluster, "start", lambda: None)
    cluster.turn()
    for _ in range(10):
        cluster.turn()
    monkeypatch.undo()
    cluster.start()
    before = len(cluster.snapshots)
    monkeypatch.setattr(cluster, "start", lambda: None)
    for _ in range(10):
        cluster.turn()
    assert len(cluster.snapshots) <= before + 1


def test_what_was_seen_before_a_snapshot_that_took_time_is_looked_at_again(cluster: Cluster) -> None:
    cluster.settle()
    cluster.up.remove(3)
    cluster.is_slow = True
    cluster.now += 1000
    for _ in range(5):
        cluster.turn()
    assert cluster.voters == {1, 2, 3} and cluster.shop.etcd.values[OPERATION][0] == ""
    cluster.up.add(3)
    cluster.is_slow = False
    cluster.settle()
    assert cluster.voters == {1, 2, 3}


def test_who_acted_for_too_long_does_not_end_what_another_has_begun(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = json.dumps({"by": 2, "what": "something else"})

    async def slow(self: Membership, *_: object) -> bool:
        await self._ledger.etcd.put(OPERATION, theirs)
        return True

    monkeypatch.setattr(Membership, "_act", slow)
    assert cluster.turn() is True
    assert cluster.shop.etcd.values[OPERATION][0] == theirs


def test_a_promotion_that_was_refused_once_and_is_not_due_any_more_is_forgotten(cluster: Cluster) -> None:
    """The voter came back: who was to take its place stays warm, and is not held to be stuck."""
    cluster.settle()
    warm = cluster.learners
    cluster.up.remove(3)
    for _ in range(15):
        cluster.shop.etcd.members = [replace(one, in_step=not one.learner) for one in cluster.shop.etcd.members]
        cluster.turn()
    assert cluster.keeper._refused
    cluster.up.add(3)
    for _ in range(int(LEARNER_S / 5) + 5):
        cluster.turn()
    assert cluster.learners == warm


def test_a_learner_that_never_starts_costs_nothing_and_gives_its_place_away(cluster: Cluster) -> None:
    cluster.settle()
    cluster.shop.etcd.members = [
        replace(one, name="", in_step=False) if one.learner else one for one in cluster.shop.etcd.members
    ]
    cluster.up.remove(4)
    cluster.settle()
    assert (cluster.voters, cluster.learners) == ({1, 2, 3}, {5})


def test_a_learner_that_cannot_catch_up_is_not_chosen_again_soon(cluster: Cluster) -> None:
    """It starts and answers, and never catches up: with a dead voter, another node has to take over."""
    cluster.settle()
    cluster.up.remove(3)
    for _ in range(int(LEARNER_S / 5) + 40):
        cluster.shop.etcd.members = [
            replace(one, in_step=False) if number_of(one) == 4 and one.learner else one
            for one in cluster.shop.etcd.members
        ]
        cluster.turn()
        cluster.shop.etcd.members = [
            replace(one, in_step=False) if number_of(one) == 4 and one.learner else one
            for one in cluster.shop.etcd.members
        ]
    assert cluster.voters & {1, 2, 5} == {1, 2, 5}


def test_the_best_connected_node_is_chosen(cluster: Cluster) -> None:
    ledger: Ledger = cluster.shop.ledger
    cables = {1: {2, 3}, 2: {1, 5}, 3: {1}, 4: {5}, 5: {2, 4}}
    for number, neighbours in cables.items():
        asyncio.run(ledger.note_report(number, Report(frozenset(neighbours), 1e6, 10**12)))
    cluster.settle()
    # The third vote is for a node of which the first two are reached in two ways; from 4 all ways lead through 5.
    assert 4 not in cluster.voters


def test_a_node_that_is_labelled_does_not_vote(cluster: Cluster) -> None:
    barred = frozenset({2})
    for _ in range(60):
        cluster.turn(barred)
    assert cluster.voters == {1, 3, 4} and cluster.learners == {5}

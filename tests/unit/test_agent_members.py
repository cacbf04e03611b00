"""Who votes in etcd: one step at a time, whatever fails, until all is as it should be."""

import random
from collections.abc import Iterable, Mapping
from dataclasses import replace

import pytest
from agent_fakes import FIRST, PREFIX

from kmagent import candidates, network
from kmagent.candidates import Report
from kmagent.etcd import Member
from kmagent.members import Action, Add, Assign, Promote, Remove, View, decide
from kmagent.membership import longer_than, since
from kmagent.registry import Node, Registry
from kmplan.voters import AUTO, majority, voters_of, wanted_of


@pytest.mark.parametrize(
    ("wanted", "voters"),
    [(1, [1, 1, 1, 1, 1, 1]), (3, [1, 1, 1, 3, 3, 3]), (5, [1, 1, 1, 3, 3, 5])],
)
def test_the_number_of_voters_is_odd_and_not_more_than_wanted_or_possible(wanted: int, voters: list[int]) -> None:
    assert [voters_of(wanted, eligible) for eligible in range(6)] == voters


def test_without_a_word_of_the_user_large_clusters_have_more_voters() -> None:
    assert [wanted_of(AUTO, nodes) for nodes in (1, 8, 9, 100)] == [3, 3, 5, 5]
    assert [wanted_of(1, nodes) for nodes in (1, 100)] == [1, 1]


def url(number: int) -> str:
    return network.peer_url(PREFIX, number)


def member(number: int, kind: str) -> Member:
    """A voter, a learner, or one that was added and has not started: `new`."""
    return Member(f"id{number}", "" if kind == "new" else f"shop-{number}", (url(number),), kind != "voter")


def nodes(roles: str, admitted: Mapping[int, float] | None = None) -> Registry:
    """Nodes 1, 2, … with the roles v(oter), s(tandby) and w(orker)."""
    names = {"v": "voter", "s": "standby", "w": "worker"}
    known = Registry("shop")
    for number, role in enumerate(roles, 1):
        moment = (admitted or {}).get(number, 100.0)
        known = known.put(Node(number, f"shop-{number}", names[role], f"f{number}", "", admitted=moment))
    return known


def node(known: Registry, number: int) -> Node:
    found = known.find(number=number)
    assert found is not None
    return found


THREE, FIVE = dict.fromkeys((1, 2, 3), "voter"), dict.fromkeys(range(1, 6), "voter")
ALL = set(range(1, 10))
# Roles, members, the nodes that can be reached, those that are gone, how many shall vote, and what is due.
GONE, UNKNOWN, ENOUGH = "its node is gone", "its node is not registered", "enough others vote"
WARM = {**THREE, 4: "learner"}
Row = tuple[str, dict[int, str], set[int], set[int], int, Action | None]


def gone(number: int) -> Remove:
    return Remove(member(number, "voter"), GONE)


GROWTH: dict[str, Row] = {
    "alone": ("v", {1: "voter"}, {1}, set(), 3, None),
    "two voters are worse than one": ("vw", {1: "voter"}, {1, 2}, set(), 3, None),
    "with three nodes a second member": ("vww", {1: "voter"}, ALL, set(), 3, Assign(2, "standby")),
    "not while the third cannot be reached": ("vww", {1: "voter"}, {1, 2}, set(), 3, None),
    "who can be reached is chosen": ("vwwww", {1: "voter"}, {1, 3, 5}, set(), 3, Assign(3, "standby")),
    "one vote is enough": ("vww", {1: "voter"}, ALL, set(), 1, None),
    "five nodes, five wanted": ("vvvww", THREE, ALL, set(), 5, Assign(4, "standby")),
    "the chosen one is added": ("vsw", {1: "voter"}, ALL, set(), 3, Add(node(nodes("vsw"), 2))),
    "the chosen one went away": ("vsw", {1: "voter"}, {1, 3}, set(), 3, Assign(2, "worker")),
    "it has not started": ("vsw", {1: "voter", 2: "new"}, ALL, set(), 3, None),
    "its node is away": ("vsw", {1: "voter", 2: "learner"}, {1, 3}, set(), 3, None),
    "its node is gone": ("vsw", {1: "voter", 2: "learner"}, {1, 3}, {2}, 3, Remove(member(2, "learner"), GONE)),
    "a learner of no node": ("vww", {1: "voter", 9: "new"}, ALL, set(), 3, Remove(member(9, "new"), UNKNOWN)),
    "it has started": ("vsw", {1: "voter", 2: "learner"}, ALL, set(), 3, Promote(member(2, "learner"))),
    "it votes": ("vsw", {1: "voter", 2: "voter"}, ALL, set(), 3, Assign(2, "voter")),
    "the registry was not written": ("vww", {1: "voter", 2: "learner"}, ALL, set(), 3, Assign(2, "standby")),
    "from two to three": ("vvw", {1: "voter", 2: "voter"}, ALL, set(), 3, Assign(3, "standby")),
    "a voter that is no member": ("vvw", {1: "voter"}, ALL, set(), 3, Assign(2, "worker")),
    "two are chosen by mistake": ("vss", {1: "voter", 2: "learner"}, {1, 3}, set(), 3, Assign(3, "worker")),
}  # fmt: skip
HEALING: dict[str, Row] = {
    "one more node is kept warm": ("vvvw", THREE, ALL, set(), 3, Assign(4, "standby")),
    "not while a voter is away": ("vvvw", THREE, {1, 2, 4}, set(), 3, None),
    "one is warm": ("vvvsw", WARM, ALL, set(), 3, None),
    "nobody is warm beside a single voter": ("vw", {1: "voter"}, ALL, set(), 1, None),
    "a voter is away": ("vvvsw", WARM, {1, 2, 4, 5}, set(), 3, None),
    "a voter is gone": ("vvvsw", WARM, {1, 2, 4, 5}, {3}, 3, Promote(member(4, "learner"))),
    "the other votes": ("vvvvw", {**THREE, 4: "voter"}, {1, 2, 4, 5}, {3}, 3, gone(3)),
    "nobody is warm": ("vvvw", THREE, {1, 2, 4}, {3}, 3, gone(3)),
    "nobody could take its place": ("vvv", THREE, {1, 2}, {3}, 3, None),
    "who is warm is away too": ("vvvsw", WARM, {1, 2, 5}, {3}, 3, None),
    "who is warm is gone too": ("vvvsw", WARM, {1, 2, 5}, {3, 4}, 3, Remove(member(4, "learner"), GONE)),
    "the majority would be lost": ("vvvw", THREE, {1, 4}, {3}, 3, None),
    "it came back meanwhile": ("vvvvw", {**THREE, 4: "voter"}, ALL, set(), 3, Remove(member(4, "voter"), ENOUGH)),
    "another is away": ("vvvvw", {**THREE, 4: "voter"}, {1, 3, 4, 5}, set(), 3, Remove(member(2, "voter"), ENOUGH)),
    "fewer are wanted": ("vvv", THREE, ALL, set(), 1, Remove(member(3, "voter"), ENOUGH)),
    "five lose two": ("vvvvvs", {**FIVE, 6: "learner"}, {1, 2, 3, 6}, {4, 5}, 5, gone(4)),
    "five lose two, and nobody is warm": ("vvvvvw", FIVE, {1, 2, 3, 6}, {4, 5}, 5, gone(4)),
    "a voter of no node": ("vvw", {**THREE, 3: "voter"} | {9: "voter"}, ALL, set(), 3, Assign(3, "voter")),
}  # fmt: skip


@pytest.mark.parametrize(
    ("roles", "members", "reachable", "away", "wanted", "action"),
    [*GROWTH.values(), *HEALING.values()],
    ids=[*GROWTH, *HEALING],
)
def test_one_step_is_due_at_a_time(
    roles: str, members: dict[int, str], reachable: set[int], away: set[int], wanted: int, action: Action | None
) -> None:
    listed = [member(number, kind) for number, kind in members.items()]
    view = View(nodes(roles), listed, frozenset(reachable), PREFIX, wanted, frozenset(away), leader="id1")
    assert decide(view) == action


def view_of(roles: str, members: dict[int, str]) -> View:
    listed = [member(number, kind) for number, kind in members.items()]
    return View(nodes(roles), listed, frozenset(ALL), PREFIX, leader="id1")


def test_a_learner_that_does_not_catch_up_gives_its_place_to_another() -> None:
    view = replace(view_of("vvvsw", {**THREE, 4: "new"}), stuck=frozenset({"id4"}))
    assert decide(view) == Remove(member(4, "new"), "it does not catch up")
    freed = replace(view_of("vvvsw", THREE), unfit=frozenset({4}))
    assert decide(freed) == Assign(4, "worker")
    assert decide(replace(view_of("vvvww", THREE), unfit=frozenset({4}))) == Assign(5, "standby")


def test_a_node_that_is_not_chosen_for_a_while_does_not_make_the_cluster_smaller() -> None:
    well = replace(view_of("vvvvvwwww", FIVE), wanted=AUTO, reachable=frozenset(range(1, 10)))
    assert decide(replace(well, unfit=frozenset({6, 7, 8, 9}))) is None
    assert decide(replace(well, barred=frozenset({6}))) == Remove(member(5, "voter"), ENOUGH)


def test_a_node_that_shall_not_vote_gives_its_vote_to_another() -> None:
    barred = frozenset({1})
    warm = replace(view_of("vvvsw", {**THREE, 4: "learner"}), barred=barred)
    assert decide(warm) == Promote(member(4, "learner"))
    after = replace(view_of("vvvvw", {**THREE, 4: "voter"}), barred=barred)
    assert decide(after) == Remove(member(1, "voter"), "it shall not vote")
    # Nobody could vote instead.
    assert decide(replace(view_of("vvv", THREE), barred=barred)) is None


def test_one_that_shall_not_vote_keeps_nobody_from_replacing_the_dead() -> None:
    """The dead one goes first; of two that are left the other votes until somebody else does."""
    left = frozenset({1, 2, 4, 5})
    view = replace(view_of("vvvww", THREE), barred=frozenset({2}), reachable=left, gone=frozenset({3}))
    assert decide(view) == gone(3)
    view = replace(
        view_of("vvwww", {1: "voter", 2: "voter"}), barred=frozenset({2}), reachable=left, gone=frozenset({3})
    )
    assert decide(view) == Assign(4, "standby")
    view = replace(view_of("vvwvw", {1: "voter", 2: "voter", 4: "voter"}), barred=frozenset({2}), reachable=left)
    assert decide(view) == Assign(5, "standby")


def test_one_that_shall_not_vote_is_one_of_three_until_another_votes() -> None:
    """Two of them, both of which have to be there, would be worse."""
    here, barred = frozenset({1, 2, 3}), frozenset({2})
    view = replace(view_of("vvww", {1: "voter", 2: "voter"}), barred=barred, reachable=here, gone=frozenset({4}))
    assert decide(view) == Assign(3, "standby")
    view = replace(view_of("vvvw", THREE), barred=barred, reachable=here, gone=frozenset({4}))
    assert decide(view) is None
    view = replace(view_of("vvvsw", WARM), barred=barred, reachable=frozenset({1, 2, 4, 5}), gone=frozenset({3}))
    assert decide(view) == Promote(member(4, "learner"))


def test_a_node_whose_etcd_is_broken_takes_its_own_place() -> None:
    """Where there is no other one: it is no member any more then, begins anew, and is asked again."""
    three = replace(view_of("vvv", THREE), reachable=frozenset({1, 2}), gone=frozenset({3}))
    assert decide(three) is None
    assert decide(replace(three, silent=frozenset({3}))) == gone(3)
    assert decide(replace(view_of("vvw", {1: "voter", 2: "voter"}), reachable=frozenset({1, 2, 3}))) == Assign(
        3, "standby"
    )
    # One that has just been tried may be broken for good.
    assert decide(replace(three, silent=frozenset({3}), unfit=frozenset({3}))) is None


def test_the_nodes_admitted_first_vote() -> None:
    known = nodes("vwwww", {2: 300, 3: 200, 4: 100, 5: 100})
    view = View(known, [member(1, "voter")], frozenset(range(6)), PREFIX)
    assert decide(view) == Assign(4, "standby")


def links(*pairs: tuple[int, int]) -> dict[int, set[int]]:
    found: dict[int, set[int]] = {}
    for one, other in pairs:
        found.setdefault(one, set()).add(other)
        found.setdefault(other, set()).add(one)
    return found


RING = links((1, 2), (2, 3), (3, 4), (4, 5), (5, 1))


@pytest.mark.parametrize(
    ("cables", "ends", "paths"),
    [
        (RING, {1, 2, 3}, 2),
        (RING, {1}, 1),
        (links((1, 2), (2, 3), (3, 4)), {1, 2, 3}, 1),
        # All ways lead through node 9.
        (links((4, 5), (4, 6), (5, 9), (6, 9), (9, 1), (9, 2)), {1, 2}, 1),
        # The shortest way is in the way of both others: it is undone.
        (links((4, 5), (4, 6), (5, 7), (7, 1), (5, 2), (6, 7)), {1, 2}, 2),
        ({}, {1, 2}, 0),
    ],
)
def test_ways_to_the_voters_are_counted(cables: dict[int, set[int]], ends: set[int], paths: int) -> None:
    assert candidates.disjoint_paths(cables, 4, frozenset(ends)) == paths


def choose(*reports: tuple[int, Iterable[int], float, int]) -> int:
    """The number of the node that is chosen of 3, 4 and 5, beside the voters 1 and 2, which are joined."""
    said = {1: Report(frozenset({2})), 2: Report(frozenset({1}))}
    said |= {number: Report(frozenset(other), up_s, free) for number, other, up_s, free in reports}
    found = candidates.best([node(nodes("vvwww"), number) for number in (3, 4, 5)], said, frozenset({1, 2}))
    assert found is not None
    return found.number


def test_the_best_connected_node_votes_next_then_one_that_is_up_for_long_then_one_with_room() -> None:
    much, little = 100 * 2**30, 2**20
    assert choose((3, [1], 1e6, much), (4, [1, 2], 10, little), (5, [2], 1e6, much)) == 4
    assert choose((3, [1, 2], 10, much), (4, [1, 2], 1e6, little), (5, [1], 1e6, much)) == 4
    assert choose((3, [1, 2], 1e6, little), (4, [1, 2], 1e6, much), (5, [1], 1e6, much)) == 4
    assert choose((3, [1, 2], 1e6, much), (4, [1, 2], 2e6, much)) == 3
    assert choose() == 3


def test_a_report_arrives_as_it_was_said_and_nothing_else_is_one() -> None:
    report = Report(frozenset({2, 7}), 12.5, 10**12)
    assert candidates.from_text(candidates.to_text(report)) == report
    for text in (
        "",
        "[]",
        "{}",
        '{"neighbours": ["a"], "up_s": 1, "free_bytes": 1}',
        '{"neighbours": [1], "up_s": "x"}',
    ):
        with pytest.raises(ValueError):
            candidates.from_text(text)


GRACE_S = 60.0


class World:
    """A cluster that fate and `decide` change by turns: machines, partitions, people, and etcd with its own rules."""

    def __init__(self, seed: int, wanted: int) -> None:
        self.fate, self.wanted = random.Random(seed), wanted  # noqa: S311 - no secret
        self.known, self.size = nodes("v"), self.fate.choice((3, 5, 11))
        self.members = [member(1, "voter")]
        self.up = {1}
        self.side: dict[int, int] = {}
        self.barred: set[int] = set()
        self.now, self.leader, self.away, self.mute = 0.0, 1, dict[int, float](), dict[int, float]()
        # Members whose etcd does not run, though their nodes do: its data are spoiled, or its disk is full.
        self.silenced: set[int] = set()
        self.serial = 1

    def happen(self) -> None:
        """Something happens: machines are admitted, go and return, cables part them, people decide, time passes."""
        match self.fate.choice(["admit", "go", "return", "return", "part", "join", "bar", "start", "start", "time"]):
            case "admit" if len(self.known.nodes) < self.size:
                number = self.known.free_number(self.fate.randint(0, 12))
                self.known = self.known.put(replace(FIRST, number=number, role="worker", name=f"shop-{number}"))
                self.up.add(number)
            case "go":
                self.up.discard(self.fate.choice(self.known.nodes).number)
            case "return":
                self.up.add(self.fate.choice(self.known.nodes).number)
            case "part":
                self.side = {one.number: self.fate.choice((0, 0, 0, 1)) for one in self.known.nodes}
            case "join":
                self.side = {}
            case "bar":
                self.barred ^= {self.fate.choice(self.known.nodes).number}
                self.barred = {number for number in self.barred if self.fate.random() < 0.5}
            case "start":
                self.start()
            case "time":
                self.now += self.fate.choice((1, 5, 30, 70))

    def falter(self) -> None:
        """Now and then an etcd falls silent while its node is well, and sometimes it speaks again."""
        if self.fate.random() < 0.1:
            self.silenced.add(number_of(self.fate.choice(self.members)))
        if self.fate.random() < 0.1:
            self.silenced.discard(self.fate.choice(self.known.nodes).number)

    def together(self, number: int) -> set[int]:
        """The nodes on the same side as one of them, if that is up."""
        here = self.side.get(number, 0)
        return {one for one in self.up if self.side.get(one, 0) == here} if number in self.up else set()

    def talking(self, number: int) -> set[int]:
        """Those of them whose etcd runs, if it does on this one."""
        return set() if number in self.silenced else self.together(number) - self.silenced

    def connected(self, number: int) -> int:
        """How many voters a node is together with, itself included."""
        return sum(int(one.peer_urls[0] == url(other)) for one in self.voters for other in self.talking(number))

    def elect(self) -> bool:
        """Have a leader; tells whether there is a majority for one."""
        able = [one for one in map(number_of, self.voters) if self.connected(one) > len(self.voters) // 2]
        if not able:
            return False
        if self.leader not in able:
            self.leader, self.away, self.mute = self.fate.choice(able), {}, {}
        return True

    def start(self) -> None:
        """A learner that the leader reaches starts."""
        if self.elect():
            near = self.talking(self.leader)
            self.members = [
                replace(one, name=f"shop-{number_of(one)}") if one.learner and number_of(one) in near else one
                for one in self.members
            ]

    def view(self) -> View:
        near = frozenset(self.together(self.leader))
        quiet = near & self.silenced & {*map(number_of, self.members)}
        self.away = since(self.away, self.known.numbers - (near - quiet), self.now)
        self.mute = since(self.mute, quiet, self.now)
        leader = next(one.id for one in self.voters if number_of(one) == self.leader)
        gone_, silent = (longer_than(GRACE_S, one, self.now) for one in (self.away, self.mute))
        barred = frozenset(self.barred)
        return View(
            self.known, self.members, near - quiet, PREFIX, self.wanted, gone_, silent, barred=barred, leader=leader
        )

    def turn(self) -> bool:
        """Do what is due; tells whether anything was. The rules of etcd and of the house hold at every moment."""
        if not self.elect():
            return False
        view = self.view()
        action = decide(view)
        match action:
            case Assign(number, role):
                assert node(self.known, number).role != role
                self.known = self.known.put(replace(node(self.known, number), role=role))
            case Add(chosen):
                self.add(chosen)
            case Promote(learner):
                assert learner.learner and learner.name
                if number_of(learner) in self.talking(self.leader) and self.fate.random() < 0.7:
                    self.members[self.members.index(learner)] = replace(learner, learner=False)
            case Remove(one, _):
                unwanted = bool(view.fault(one)) or len(self.voters) > view.most
                assert one.learner or unwanted
                self.members.remove(one)
                # Its node puts the data aside.
                self.silenced.discard(number_of(one))
        self.check(view)
        return action is not None

    def add(self, chosen: Node) -> None:
        near = self.together(self.leader)
        assert chosen.number in near and not any(one.learner for one in self.members)
        assert url(chosen.number) not in {one.peer_urls[0] for one in self.members}
        # etcd's strict-reconfig-check (server/etcdserver/server.go).
        if len(self.voters) == 1 or self.connected(self.leader) >= (len(self.voters) + 1) // 2 + 1:
            self.serial += 1
            self.members.append(replace(member(chosen.number, "new"), id=f"id{chosen.number}-{self.serial}"))

    def check(self, view: View) -> None:
        assert sum(one.learner for one in self.members) <= 1
        assert self.connected(self.leader) > len(self.voters) // 2 or self.leader not in map(number_of, self.voters)
        assert self.voters and len(self.voters) <= max(len(view.voters), view.most + 1)

    @property
    def voters(self) -> list[Member]:
        return [one for one in self.members if not one.learner]


def number_of(one: Member) -> int:
    return int(one.id[2:].partition("-")[0])


@pytest.mark.parametrize("wanted", [1, 3, 5, AUTO])
@pytest.mark.parametrize("start", range(0, 500, 50))
def test_whatever_happens_the_members_become_what_they_shall_be(start: int, wanted: int) -> None:
    """In fifty histories: never two changes at once, never below the majority, and in the end all is well."""
    for seed in range(start, start + 50):
        world = World(seed, wanted)
        for _ in range(120):
            world.happen()
            world.falter()
            if world.fate.random() < 0.7:
                world.turn()
        dead = {one.number for one in world.known.nodes if world.fate.random() < 0.2}
        end_well(world, dead)


def end_well(world: World, dead: set[int]) -> None:
    """All machines but the dead come back for good; those that are left make the best of it."""
    world.side, world.barred = {}, set()
    world.up = {one.number for one in world.known.nodes} - dead
    if not world.elect():
        return  # Most voters are dead: people have to decide.
    quiet = 0
    for _ in range(400):
        quiet = 0 if world.turn() else quiet + 1
        world.start()
        world.now += 10
        if quiet > GRACE_S / 10 + 2:
            break
    assert quiet, world.members
    view = world.view()
    living = [one for one in world.voters if number_of(one) in world.up - world.silenced]
    assert len(living) >= voters_of(view.most, len(world.up)), (world.members, world.up)
    # Nobody dead is kept who makes it harder to be a majority.
    assert majority(len(living)) == majority(len(world.voters)), (world.members, world.up)
    spare = len(world.up) > view.target > 2
    learners = [one for one in world.members if one.learner]
    # With two nodes left of more, who was about to vote may stay warm.
    assert len(learners) == spare or view.target < view.most, (world.members, world.up)
    if spare and view.target == view.most:
        assert len(world.voters) == view.target, (world.members, world.up)
    roles = {one.number: one.role for one in world.known.nodes}
    assert {number for number, role in roles.items() if role == "voter"} == {*map(number_of, world.voters)}
    assert [number for number, role in roles.items() if role == "standby"] == [*map(number_of, learners)]

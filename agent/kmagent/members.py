"""Who votes in etcd: which one step is due, worked out from what is seen. Nothing is asked or changed here.

The truth is etcd's member list; the registry's roles follow it, and lead it in one case: `standby` is written before a
learner is added, so that a crash in between is picked up where it was.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from kmagent import candidates, network
from kmagent.candidates import Reports
from kmagent.etcd import Member
from kmagent.registry import Node, Registry
from kmplan.voters import FEW_VOTERS, majority, voters_of, wanted_of


@dataclass(frozen=True)
class Add:
    """Add a node's etcd as a learner."""

    node: Node


@dataclass(frozen=True)
class Promote:
    """Give a learner its vote; etcd refuses while it has not caught up."""

    member: Member


@dataclass(frozen=True)
class Remove:
    """Take a member out for good, and say why."""

    member: Member
    why: str


@dataclass(frozen=True)
class Assign:
    """Write a node's role into the registry."""

    number: int
    role: str


Action = Add | Promote | Remove | Assign


@dataclass(frozen=True)
class View:
    """What is seen of the cluster at one moment, by the node whose etcd leads.

    `reachable` are the numbers of nodes that the mesh leads to, and whose etcd answers if it is a member's; `gone` those
    that were not for longer than is waited for a voter, `silent` those to which the mesh leads all the same. `barred` shall not
    vote, `unfit` are not chosen for a while. `stuck` are ids of learners that do not catch up, `leader` is the leading member's.
    `wanted` is the cluster file's word, 0 for as many as fit.
    """

    registry: Registry
    members: Sequence[Member]
    reachable: frozenset[int]
    prefix: str
    wanted: int = 3
    gone: frozenset[int] = frozenset()
    silent: frozenset[int] = frozenset()
    barred: frozenset[int] = frozenset()
    unfit: frozenset[int] = frozenset()
    stuck: frozenset[str] = frozenset()
    leader: str = ""
    reports: Reports = field(default_factory=dict)

    @cached_property
    def _numbers(self) -> dict[str, int | None]:
        """The number of each member's node, by the member's id."""
        nodes = {network.peer_url(self.prefix, number): number for number in self.registry.numbers}
        return {one.id: next((nodes[url] for url in one.peer_urls if url in nodes), None) for one in self.members}

    def number_of(self, member: Member) -> int | None:
        """The number of a member's node; None when no such node is registered."""
        return self._numbers[member.id]

    def member_of(self, node: Node) -> Member | None:
        """A node's member of etcd."""
        return next((member for member in self.members if self.number_of(member) == node.number), None)

    def is_dead(self, member: Member) -> bool:
        """Whether a member's node was away for too long, or is no node any more."""
        number = self.number_of(member)
        return number is None or number in self.gone

    def fault(self, member: Member) -> str:
        """Why a member has to go; empty when it may stay."""
        number = self.number_of(member)
        if number is None:
            return "its node is not registered"
        if number in self.gone:
            return "its node is gone"
        return "it shall not vote" if number in self.barred else ""

    def answers(self, member: Member) -> bool:
        """Whether a member can be reached now."""
        return self.number_of(member) in self.reachable

    @property
    def voters(self) -> list[Member]:
        """The members that vote."""
        return [member for member in self.members if not member.learner]

    @property
    def learner(self) -> Member | None:
        """The member that does not vote; etcd has one at most."""
        return next((member for member in self.members if member.learner), None)

    @property
    def living(self) -> int:
        """How many voters were not given up."""
        return sum(not self.fault(voter) for voter in self.voters)

    @property
    def candidates(self) -> list[Node]:
        """The nodes that could become members now."""
        able = self.reachable - self.barred - self.unfit - self.gone
        return [node for node in self.registry.nodes if node.number in able and self.member_of(node) is None]

    @property
    def most(self) -> int:
        """How many voters there may be at rest."""
        return wanted_of(self.wanted, len(self.registry.numbers - self.barred))

    @property
    def target(self) -> int:
        """How many voters there can be now, those with them that shall not vote and answer until others do."""
        learner = self.learner
        members = sum(
            not self.is_dead(voter) and (not self.fault(voter) or self.answers(voter)) for voter in self.voters
        )
        members += learner is not None and not self.fault(learner)
        return voters_of(self.most, members + len(self.candidates))

    @property
    def lacks_voters(self) -> bool:
        """Whether one more node has to vote."""
        return self.living < self.target

    @property
    def takes_members(self) -> bool:
        """Whether etcd would add a member now (strict-reconfig-check): most would have to answer if it counted already."""
        answering = sum(map(self.answers, self.voters))
        return len(self.voters) == 1 or answering >= majority(len(self.voters) + 1)

    @property
    def wants_standby(self) -> bool:
        """Whether one more node should be kept warm: when all voters are well, and can do without one of them."""
        spare = self.target > FEW_VOTERS and bool(self.candidates)
        return spare and self.living == len(self.voters) and all(map(self.answers, self.voters))


def decide(view: View) -> Action | None:
    """Return the one step that is due, or None. At no time are there two learners, or fewer voters that answer than vote."""
    steps = (_follow_members, _relieve, _decide_learner, _decide_voters, _decide_growth)
    return next((action for step in steps if (action := step(view))), None)


def _follow_members(view: View) -> Action | None:
    """Have the registry say what etcd's member list says."""
    for node in view.registry.nodes:
        member = view.member_of(node)
        role = node.role if member is None else "standby" if member.learner else "voter"
        if member is None and node.role == "voter":
            role = "worker"
        if role != node.role:
            return Assign(node.number, role)
    return None


def _relieve(view: View) -> Action | None:
    """Take out the dead at once where fewer of the living are a majority without them: of 3 they are not, of 4 they are."""
    dead = [voter for voter in view.voters if view.is_dead(voter)]
    if majority(len(view.voters) - len(dead)) < majority(len(view.voters)):
        return _remove_safely(view, dead[0])
    return None


def _decide_learner(view: View) -> Action | None:
    learner = view.learner
    if learner is None:
        return None
    fault = view.fault(learner) or ("it does not catch up" if learner.id in view.stuck else "")
    if fault:
        return Remove(learner, fault)
    if learner.name and view.answers(learner) and view.lacks_voters:
        return Promote(learner)
    if view.most <= FEW_VOTERS and not view.lacks_voters:
        return Remove(learner, "nobody waits for it")
    return None


def _decide_voters(view: View) -> Action | None:
    """Take out a voter that has to go when a node is there for it, and one of too many."""
    faulty = [voter for voter in view.voters if view.fault(voter)]
    if len(view.voters) > view.most:
        faulty = faulty or [voter for voter in view.voters if voter.id != view.leader]
    elif view.learner is None:
        # etcd adds nobody while a voter of three is dead: without a learner it has to go first. One of two that answers can wait.
        faulty = [one for one in faulty if _has_successor(view, one) and not (view.answers(one) and view.takes_members)]
    else:
        faulty = []
    faulty.sort(key=lambda one: _seniority(view, one), reverse=True)
    return next((action for voter in faulty if (action := _remove_safely(view, voter))), None)


def _has_successor(view: View, member: Member) -> bool:
    """Whether a node is there for a member that goes: another one, or its own, whose etcd alone is broken."""
    return bool(view.candidates) or view.number_of(member) in view.silent - view.barred - view.unfit


def _remove_safely(view: View, member: Member) -> Action | None:
    """Remove a voter if those that answer are a majority of the rest."""
    if can_spare(member, view.voters, view.answers):
        return Remove(member, view.fault(member) or "enough others vote")
    return None


def can_spare(member: Member, members: Sequence[Member], answers: Callable[[Member], bool]) -> bool:
    """Tell whether the voters that answer are a majority of those without a member."""
    rest = [one for one in members if one is not member and not one.learner]
    return bool(rest) and sum(map(answers, rest)) >= majority(len(rest))


def _seniority(view: View, member: Member) -> tuple[bool, float, int]:
    """Sort key: who goes last goes first, one that does not answer before any."""
    node = view.registry.find(number=view.number_of(member))
    return (not view.answers(member), node.admitted if node else 0, node.number if node else 0)


def _decide_growth(view: View) -> Action | None:
    chosen = next(
        (node for node in view.registry.nodes if node.role == "standby" and view.member_of(node) is None), None
    )
    if view.learner is not None or not (view.lacks_voters or view.wants_standby):
        return Assign(chosen.number, "worker") if chosen else None
    able = view.candidates
    if chosen is not None and chosen not in able:
        return Assign(chosen.number, "worker")
    if not view.takes_members:
        return None
    if chosen is not None:
        return Add(chosen)
    numbers = frozenset(number for number in map(view.number_of, view.voters) if number is not None)
    found = candidates.best(able, view.reports, numbers)
    return Assign(found.number, "standby") if found else None

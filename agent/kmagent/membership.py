"""Keeps etcd's members as `members` decides: observes, claims the one operation that may be under way, and acts.

Whatever is interrupted is picked up by the next turn, here or on the node that leads next.
"""

import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from kmagent import network
from kmagent.etcd import EtcdError, Member, Value
from kmagent.facts import Facts
from kmagent.lasting import changed, longer_than, since
from kmagent.ledger import Ledger
from kmagent.members import Action, Add, Assign, Promote, Remove, View, decide
from kmagent.registry import Registry

log = logging.getLogger(__name__)

OPERATION = "/kubermesh/operation"
# An operation that another node has begun is taken over when it has not ended by then: that node is gone.
PATIENCE_S = 15.0
# A follower answers its leader's heartbeats ten times a second: one that sends nothing for as long does not run.
SILENT_S = 2.0
# A learner that has not caught up by then is given up, and its node not asked again for as long.
LEARNER_S = 600.0

Prepare = Callable[[Registry, frozenset[int]], Awaitable[bool]]


@dataclass(frozen=True)
class Seen:
    """What a turn knows: the nodes that the mesh leads to, those that are labelled not to vote, and the leading member."""

    reachable: frozenset[int]
    barred: frozenset[int] = frozenset()
    leader: str = ""


class Membership:
    """The membership's keeper on the node that leads; it remembers since when something is wrong, and nothing else.

    `prepare` is called before each change of etcd's members, with the registry and the nodes that can be reached, and tells
    whether it took time. `registry` is what the last turn has read; an empty one before there was any.
    """

    def __init__(self, ledger: Ledger, facts: Facts, prepare: Prepare) -> None:
        self._ledger, self._facts, self._prepare = ledger, facts, prepare
        self.forget()

    def forget(self) -> None:
        """Begin anew: what is known is not of this moment."""
        self.registry = Registry("")
        self._away: dict[int, float] = {}
        self._mute: dict[int, float] = {}
        self._unwell: dict[int, float] = {}
        self._prepared = ""
        self._heard: dict[str, tuple[float, float]] = {}
        self._late: dict[str, float] = {}
        self._refused: frozenset[str] = frozenset()
        self._unfit: dict[int, float] = {}
        self._foreign = (0, 0.0)

    def stand_by(self, registered: frozenset[int], reachable: frozenset[int], now: float) -> None:
        """Another node leads: remember since when nodes are away, and nothing else, to go on when it is this one's turn.

        To be called only while etcd has a leader here: who was cut off with the few knows nothing of the many.
        """
        away = since(self._away, registered - reachable, now)
        self.forget()
        self._away, self._unwell = away, dict(away)

    async def reconcile(self, seen: Seen, now: float) -> bool:
        """Do the step that is due; tells whether there was one. `now` is of a clock that only goes forward, in seconds."""
        self.registry, operation = await self._ledger.registry_with(OPERATION)
        if not self._may_begin(operation, now):
            return True
        view = await self._observe(seen, now)
        action = decide(view)
        if isinstance(action, Assign) and action.role == "standby":
            # What nodes say of themselves is read when there is something to choose only.
            view = replace(view, reports=await self._ledger.reports())
            action = decide(view)
        if not view.lacks_voters:
            self._refused = frozenset()
        if action is None:
            return False
        what = describe(action, view)
        if not isinstance(action, Assign) and what != self._prepared:
            self._prepared = what
            if await self._prepare(view.registry, view.reachable):
                # What was seen is not of this moment any more.
                return True
        note = json.dumps({"by": self._facts.number, "what": what})
        if not await self._ledger.etcd.commit({OPERATION: operation.revision}, {OPERATION: note}):
            return True
        try:
            done = await self._act(action, view, now)
            if done:
                self._prepared = ""
            return done
        finally:
            # Unless it took so long that another node has gone on.
            claim = await self._ledger.etcd.get(OPERATION)
            if claim.text == note:
                await self._ledger.etcd.commit({OPERATION: claim.revision}, {OPERATION: ""})

    def _may_begin(self, operation: Value, now: float) -> bool:
        """Whether nothing is under way: one change at a time, also while two nodes take themselves for the leader."""
        if not operation.text:
            return True
        if self._foreign[0] != operation.revision:
            self._foreign = (operation.revision, now)
        return now - self._foreign[1] >= PATIENCE_S * self._facts.probe_scale

    async def _observe(self, seen: Seen, now: float) -> View:
        etcd, registry, leader = self._ledger.etcd, self.registry, seen.leader
        members = await etcd.members()
        view = View(registry, members, seen.reachable, self._facts.prefix, self._facts.voters, leader=leader)
        received = await etcd.received()
        self._heard = changed(self._heard, {one.id: received.get(one.id, 0.0) for one in members}, now)
        heard = {key: moment for key, (_, moment) in self._heard.items() if key != leader}
        mute = longer_than(SILENT_S * self._facts.probe_scale, heard, now)
        silent = {view.number_of(one) for one in members if one.name and one.id in mute}
        reachable = frozenset(seen.reachable - silent)
        # One that returns is waited for anew: an etcd starts later than the mesh leads there. But not for ever, however often.
        returned = longer_than(self._facts.voter_grace_s, self._away, now) & seen.reachable
        unwell = {number: moment for number, moment in self._unwell.items() if number not in returned}
        self._unwell = since(unwell, registry.numbers - reachable, now)
        self._away = since(self._away, registry.numbers - seen.reachable, now)
        self._mute = since(self._mute, {number for number in silent if number in seen.reachable}, now)
        self._late = since(self._late, {one.id for one in members if _is_late(one, self._refused)}, now)
        self._unfit = {number: until for number, until in self._unfit.items() if until > now}
        return replace(
            view,
            reachable=reachable,
            gone=longer_than(self._facts.voter_grace_s, {**self._away, **self._mute}, now)
            | longer_than(2 * self._facts.voter_grace_s, self._unwell, now),
            silent=longer_than(self._facts.voter_grace_s, self._mute, now),
            barred=seen.barred | {node.number for node in registry.nodes if node.diskless},
            unfit=frozenset(self._unfit),
            stuck=longer_than(LEARNER_S * self._facts.probe_scale, self._late, now),
        )

    async def _act(self, action: Action, view: View, now: float) -> bool:
        etcd, what = self._ledger.etcd, describe(action, view)
        match action:
            case Add(node):
                await etcd.add_learner(network.peer_url(self._facts.prefix, node.number))
            case Promote(member):
                try:
                    await etcd.promote(member.id)
                except EtcdError as error:
                    self._refused |= {member.id}
                    log.debug("etcd: %s: not yet: %s", what, error)
                    return False
            case Remove(member, _):
                if member.learner and (number := view.number_of(member)) is not None:
                    self._unfit[number] = now + LEARNER_S * self._facts.probe_scale
                await etcd.remove(member.id)
            case Assign(number, role):
                await self._ledger.change(lambda old: _assign(old, number, role))
        log.info("%s", what)
        return True


def describe(action: Action, view: View) -> str:
    """Say what an action does, for people."""
    match action:
        case Add(node):
            return f"etcd: {node.name} joins as a learner"
        case Promote(member):
            return f"etcd: {_name(member)} votes from now on"
        case Remove(member, why):
            return f"etcd: {_name(member)} is no member any more: {why}"
        case Assign(number, role):
            return f"node {number} is a {role} now"


def _name(member: Member) -> str:
    return member.name or ", ".join(member.peer_urls)


def _is_late(member: Member, refused: frozenset[str]) -> bool:
    """Whether a learner was never started, or cannot be promoted."""
    return member.learner and (not member.name or member.id in refused)


def _assign(registry: Registry, number: int, role: str) -> Registry | None:
    node = registry.find(number=number)
    if node is None or node.role == role:
        return None
    return registry.put(replace(node, role=role))

"""Ways around what broke, until the mesh has found its own: routes by a neighbour that does not send packets back.

Babel takes no route that might lead back here before the prefix's source has answered (RFC 8966, 2.4 and 3.8.2). On a ring that
takes half a second, and seconds where a request for it is lost (docs/design-notes.md, "Detours"). A neighbour whose own
distance is less than its distance to this node and from here, before the loss, does not send packets through this node
(RFC 5286, 3.1: loop-free alternates). Where there is none, one that was farther away than this node leads around when it says so:
it has heard of the loss, and has a detour of its own.
"""

import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

from kmagent import network
from kmagent.babel import INFINITY, PERIOD_S, UPDATE_S, WIRED, Table, Way
from kmagent.facts import Facts

log = logging.getLogger(__name__)

# Prefixes in a line of the journal.
SHOWN = 4
# How long a neighbour may not have heard of a distance that has grown, or its answer not be here: babeld's updates there and
# back, some time on the way, and until babeld was asked.
HEARD_S = 2 * UPDATE_S + PERIOD_S + 1
# How long after a loss those that were farther away may lead around it, as what is known of them grows old; and for how long a
# node says that it does, also when babeld has found a way here: others hear of that later.
BEHIND_S = 2.0


@dataclass(frozen=True)
class Known:
    """How far away a prefix was when it was reached last, as neighbours know it (Babel's metric).

    `at` is when it was as near as that (s), `until` when that is of no use any more. `behind` are the neighbours that were
    farther away, with their distances, until `behind_until`, which is set when the way is lost.
    """

    distance: int
    at: float
    until: float
    behind: Mapping[Way, int] = field(default_factory=dict)
    behind_until: float | None = None


class Detours:
    """Keeps the routes in the kernel; is told what babeld knows, each time it is asked."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._known: dict[str, Known] = {}
        self._taken: dict[str, Way] = {}
        self._led: dict[str, float] = {}
        # The nodes (numbers) to which this one leads around a loss, and the ports that it does so by.
        self.around: dict[int, set[str]] = {}

    async def follow(self, table: Table, others: Mapping[Way, Collection[int]]) -> bool:
        """Take and leave detours by what babeld knows, leave all when it knows nothing; tells whether there are any.

        `others` are the neighbours' words of which nodes they lead around to.
        """
        now = time.monotonic()
        self._known = remember(self._known, table, now)
        wanted = choose(self._known, table, lambda way, prefix: self._owner(prefix) in others.get(way, ()))
        if wanted != self._taken:
            commands = [network.leave_detour(prefix) for prefix in self._taken.keys() - wanted.keys()]
            for prefix, way in wanted.items():
                if self._taken.get(prefix) != way:
                    commands.append(network.take_detour(self._facts, prefix, way.via, way.port))
            log.info("detours: %d, %s", len(wanted), ", ".join(sorted(wanted)[:SHOWN]) or "none")
            await network.ip_batch(commands, force=True)
            self._taken = wanted
        leads = wanted.keys() | {prefix for prefix in self._led.keys() & table.installed if now < self._led[prefix]}
        self._led = {prefix: now + BEHIND_S if prefix in wanted else self._led[prefix] for prefix in leads}
        self.around = self._ports_of(leads, table, wanted) if leads else {}
        return bool(wanted)

    def _ports_of(self, leads: Collection[str], table: Table, wanted: Mapping[str, Way]) -> dict[int, set[str]]:
        ports = {route.prefix: route.way.port for route in table.routes if route.in_use}
        ports |= {prefix: way.port for prefix, way in wanted.items()}
        found: dict[int, set[str]] = {}
        for prefix in leads:
            if (number := self._owner(prefix)) is not None:
                found.setdefault(number, set()).add(ports[prefix])
        return found

    def _owner(self, prefix: str) -> int | None:
        return network.owner(self._facts.prefix, prefix)


def remember(known: Mapping[str, Known], table: Table, now: float) -> dict[str, Known]:
    """Return how far away each prefix was last, with what is reached now."""
    in_use = {route.prefix: route.metric for route in table.routes if route.in_use}
    behind: dict[str, dict[Way, int]] = {prefix: {} for prefix in in_use}
    for route in table.routes:
        if in_use.get(route.prefix, INFINITY) < route.refmetric < INFINITY:
            behind[route.prefix][route.way] = route.refmetric
    kept = {}
    for prefix, one in known.items():
        if prefix in in_use or one.until <= now or prefix in table.own:
            continue
        until = one.behind_until or now + BEHIND_S
        kept[prefix] = replace(one, behind=one.behind if now < until else {}, behind_until=until)
    for prefix, metric in in_use.items():
        old = known.get(prefix)
        if old is None or metric <= old.distance or now - old.at > HEARD_S:
            old = Known(metric, now, now)
        kept[prefix] = replace(old, until=now + network.DETOUR_S, behind=behind[prefix], behind_until=None)
    return kept


def choose(known: Mapping[str, Known], table: Table, leads_around: Callable[[Way, str], bool]) -> dict[str, Way]:
    """Return the detours: for prefixes that babeld has no way to, the shortest one that does not lead back here.

    Where no neighbour has one it is one that was farther away and leads around.
    """
    lost = {prefix: one for prefix, one in known.items() if prefix not in table.installed}
    if not lost:
        return {}
    heard = table.heard()
    best: dict[str, tuple[int, Way]] = {}
    for route in table.routes:
        gone = lost.get(route.prefix)
        if gone is None or route.way not in heard:
            continue
        # Not more than a good cable costs: for the neighbour, which measures by itself, this one may not be slow yet.
        to_neighbour = min(route.metric - route.refmetric, WIRED)
        if route.refmetric < to_neighbour + gone.distance:
            rank = route.metric
        elif route.way in gone.behind and leads_around(route.way, route.prefix):
            rank = INFINITY + gone.behind[route.way]
        else:
            continue
        if route.prefix not in best or rank < best[route.prefix][0]:
            best[route.prefix] = rank, route.way
    return {prefix: way for prefix, (_, way) in best.items()}

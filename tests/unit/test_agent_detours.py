"""Which way packets go between a pulled cable and the mesh's own answer to that."""

import asyncio
from dataclasses import replace

import pytest
from agent_fakes import FACTS

from kmagent import network
from kmagent.babel import INFINITY, Link, Route, Table, Way, parse
from kmagent.detours import BEHIND_S, HEARD_S, Detours, choose, remember

NEAR, OTHER, THIRD = Way("fe80::1", "eth0"), Way("fe80::2", "eth1"), Way("fe80::3", "eth2")
FAR = "fd12::9/128"


def route(way: Way, metric: int, refmetric: int, *, installed: bool = False, prefix: str = FAR) -> Route:
    return Route(prefix, metric, refmetric, way, installed)


def table(routes: list[Route], *heard: Way, own: frozenset[str] = frozenset()) -> Table:
    neighbours = tuple((way.port, Link(way.via, 96, 96, 96, 0xFFFF)) for way in heard)
    return Table(neighbours, frozenset(one.prefix for one in routes if one.in_use), tuple(routes), own)


def nobody(_way: Way, _prefix: str) -> bool:
    return False


def after_loss(before: list[Route], after: list[Route], *neighbours: Way, later: float = 0.1) -> dict[str, Way]:
    """The detours after what babeld knew has changed."""
    known = remember({}, table(before), 100.0)
    then = table(after, *neighbours)
    return choose(remember(known, then, 100.0 + later), then, nobody)


@pytest.mark.parametrize(
    ("refmetric", "taken"),
    [
        # On a ring of five: two hops there the other way, and it was two hops from here.
        (192, True),
        (287, True),
        # As far as through this node: that may be its way.
        (288, False),
        (INFINITY, False),
    ],
)
def test_a_detour_is_taken_only_by_a_neighbour_that_does_not_send_packets_back(refmetric: int, taken: bool) -> None:
    before = [route(NEAR, 192, 96, installed=True)]
    after = [route(OTHER, min(refmetric + 96, INFINITY), refmetric)]
    assert after_loss(before, after, OTHER) == ({FAR: OTHER} if taken else {})


def test_a_slow_cable_is_not_slow_for_the_neighbour_yet() -> None:
    """It measures by itself: its way may be the one through this node all the same."""
    before = [route(NEAR, 192, 96, installed=True)]
    after = [route(OTHER, 288 + 2144, 288)]
    assert after_loss(before, after, OTHER) == {}


def test_the_shortest_is_taken() -> None:
    before = [route(NEAR, 288, 192, installed=True)]
    after = [route(OTHER, 352, 256), route(THIRD, 288, 192)]
    assert after_loss(before, after, OTHER, THIRD) == {FAR: THIRD}


def test_what_a_neighbour_took_back_is_gone_around_as_well() -> None:
    before = [route(NEAR, 192, 96, installed=True)]
    after = [route(NEAR, INFINITY, INFINITY, installed=True), route(OTHER, 288, 192)]
    assert after_loss(before, after, NEAR, OTHER) == {FAR: OTHER}


def test_no_detour_leads_by_a_neighbour_that_is_not_heard() -> None:
    before = [route(NEAR, 192, 96, installed=True)]
    assert after_loss(before, [route(OTHER, 288, 192)], NEAR) == {}


def test_a_detour_ends_when_the_mesh_has_a_way_and_in_time() -> None:
    before = [route(NEAR, 192, 96, installed=True)]
    assert after_loss(before, [route(OTHER, 288, 192, installed=True)], OTHER) == {}
    assert after_loss(before, [route(OTHER, 288, 192)], OTHER, later=network.DETOUR_S + 1) == {}
    # The neighbour has lost it as well.
    assert after_loss(before, [route(OTHER, INFINITY, INFINITY)], OTHER) == {}


def test_who_was_farther_away_leads_around_when_it_says_so() -> None:
    """The other end of a cable of a ring of five: the neighbour's own way led through here, and it has another."""
    known = remember(
        {}, table([route(NEAR, 96, 0, installed=True), route(OTHER, 288, 192), route(THIRD, 384, 288)]), 100.0
    )
    other, third = route(OTHER, 288, 192), route(THIRD, INFINITY, INFINITY)
    # Nobody has looked for as long as when nothing happens; that it was lost is seen now.
    for now, routes, says, taken in (
        (103.0, [other, third], set(), {}),
        (103.2, [other, third], {THIRD}, {FAR: THIRD}),
        # The nearest of several; and somebody who needs no other is better.
        (103.3, [third, other], {OTHER, THIRD}, {FAR: OTHER}),
        (103.4, [third, other, route(NEAR, 192, 96)], {OTHER, THIRD}, {FAR: NEAR}),
        # Nobody knows for long who was nearer.
        (103.0 + BEHIND_S, [third, other], {OTHER, THIRD}, {}),
    ):
        then = table(routes, NEAR, OTHER, THIRD)
        known = remember(known, then, now)
        assert choose(known, then, lambda way, _, says=says: way in says) == taken  # type: ignore[misc]


@pytest.mark.parametrize(("ours", "theirs", "taken"), [(96, 192, True), (192, 96, False), (192, 192, False)])
def test_two_that_have_lost_a_way_do_not_send_packets_to_each_other(ours: int, theirs: int, taken: bool) -> None:
    """The nearer one may, by the other: its own way led through this one."""
    before = table([route(NEAR, ours, ours - 96, installed=True), route(OTHER, theirs + 96, theirs)])
    after = table([route(OTHER, INFINITY, INFINITY)], OTHER)
    known = remember(remember({}, before, 100.0), after, 100.1)
    assert bool(choose(known, after, lambda *_: True)) == taken


def test_what_this_node_announces_itself_has_no_detour() -> None:
    """Its own way out has come, and gone again: others may come back here with it."""
    known = remember({}, table([route(NEAR, 192, 96, installed=True, prefix="::/0")]), 100.0)
    known = remember(known, table([], own=frozenset({"::/0"})), 101.0)
    after = table([route(OTHER, 288, 192, prefix="::/0")], OTHER)
    assert choose(remember(known, after, 102.0), after, nobody) == {}


def test_a_distance_that_has_grown_counts_when_neighbours_have_heard_of_it() -> None:
    """One that leads here may still say what it said when this node was nearer."""
    longer = table([route(THIRD, 480, 384, installed=True)])
    after = table([route(OTHER, 384, 288)], OTHER)
    for heard_s, taken in ((1.0, False), (HEARD_S + 1, True)):
        known = remember({}, table([route(NEAR, 192, 96, installed=True)]), 100.0)
        known = remember(known, longer, 100.0 + heard_s)
        assert bool(choose(known, after, nobody)) == taken


DUMP = """\
add neighbour 5 address fe80::1 if eth0 reach ffff ureach 0000 rxcost {near} txcost 96 cost {near}
add neighbour 6 address fe80::2 if eth1 reach ffff ureach 0000 rxcost 96 txcost 96 cost 96
add route 1 prefix fd12::9/128 from ::/0 installed {first} id 02:aa metric {metric} refmetric 96 via fe80::1 if eth0
add route 2 prefix fd12::9/128 from ::/0 installed {second} id 02:aa metric 288 refmetric 192 via fe80::2 if eth1
add route 3 prefix 10.0.9.0/24 from 0.0.0.0/0 installed {first} id 02:aa metric {metric} refmetric 96 via fe80::1 if eth0
add route 4 prefix 10.0.9.0/24 from 0.0.0.0/0 installed {second} id 02:aa metric 288 refmetric 192 via fe80::2 if eth1
"""
GOOD = DUMP.format(near=96, metric=192, first="yes", second="no").splitlines()
LOST = DUMP.format(near=65535, metric=65535, first="no", second="no").splitlines()
FOUND = DUMP.format(near=65535, metric=65535, first="no", second="yes").splitlines()


def told(
    monkeypatch: pytest.MonkeyPatch, *dumps: list[str]
) -> tuple[list[list[str]], list[bool], list[dict[int, set[str]]]]:
    """What the kernel is told, batch by batch, whether there were detours, and to which nodes this one led around."""
    batches: list[list[str]] = []

    async def note(commands: list[str], *, force: bool) -> None:
        # A port may have gone meanwhile.
        assert force
        batches.append(sorted(commands))

    detours = Detours(replace(FACTS, prefix="fd12::/48", address="fd12::1", address4="10.0.1.1"))
    around = []

    async def scenario() -> list[bool]:
        there = []
        for dump in dumps:
            there.append(await detours.follow(parse(dump), {}))
            around.append(detours.around)
        return there

    monkeypatch.setattr(network, "ip_batch", note)
    return batches, asyncio.run(scenario()), around


END = f"proto {network.DETOUR} metric 768"
TAKEN = [
    f"route replace 10.0.9.0/24 via inet6 fe80::2 dev eth1 src 10.0.1.1 {END}",
    f"route replace {FAR} via fe80::2 dev eth1 src fd12::1 {END} expires {network.DETOUR_S}",
]
LEFT = [f"route del 10.0.9.0/24 {END}", f"route del {FAR} {END}"]


def test_the_kernel_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    batches, there, around = told(monkeypatch, GOOD, LOST, LOST, FOUND, FOUND)
    assert batches == [TAKEN, LEFT]
    assert there == [False, True, True, False, False]
    # Others hear later that there is a way again.
    assert around == [{}, *[{9: {"eth1"}}] * 4]


def test_no_detour_stays_when_babeld_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    batches, _, around = told(monkeypatch, GOOD, LOST, [])
    assert batches == [TAKEN, LEFT] and around[-1] == {}

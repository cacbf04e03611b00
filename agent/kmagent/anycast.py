"""The API's anycast address: on `lo` while the local API server is ready, so that the mesh leads clients to it."""

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass
from typing import Literal

from kmagent import babel, network
from kmagent.etcd import METRICS_PORT
from kmagent.http import Client, Tls
from kmagent.paths import Paths
from kmagent.state import State
from kmplan.errors import UserError

log = logging.getLogger(__name__)

STARTING_S = 0.5
PERIOD_S = 2.0
# One that stands still, or whose etcd has lost its leader, is withdrawn after three periods and one of these: 7.5 s at most.
ANSWER_S = 1.5
GOOD_TO_ANNOUNCE = 2
BAD_TO_WITHDRAW, GONE_TO_WITHDRAW = 3, 2
# How long the mesh has to lead clients elsewhere.
ELSEWHERE_S = 1.0

# What a check finds: `gone` when the API server, or the etcd without which it is nothing, does not run at all.
Finding = Literal["good", "bad", "gone"]


@dataclass(frozen=True)
class Health:
    """What the last checks said: how many in a row were good, not good, and found nothing; and what follows from them."""

    good: int = 0
    bad: int = 0
    gone: int = 0
    ready: bool = False
    announced: bool = False


def step(health: Health, found: Finding) -> Health:
    """Take in one check. Ready at once; announced after 2 good checks; neither after 3 that were not, or 2 of `gone`.

    An etcd that elects a leader makes a check bad, and that on all nodes: they must not all withdraw for it.
    """
    if found == "good":
        good = health.good + 1
        return Health(good, 0, 0, True, health.announced or good >= GOOD_TO_ANNOUNCE)
    bad, gone = health.bad + 1, health.gone + 1 if found == "gone" else 0
    over = bad >= BAD_TO_WITHDRAW or gone >= GONE_TO_WITHDRAW
    return Health(0, bad, gone, health.ready and not over, health.announced and not over)


def period_s(health: Health) -> float:
    """After how many seconds the next check is due: soon when something came or went."""
    return PERIOD_S if health.ready and not health.gone else STARTING_S


async def look(etcd: Client, api: Client) -> Finding:
    """Check once the local API server, and first its etcd, which says sooner that it has no leader."""
    try:
        for client in (etcd, api):
            if (await client.request("GET", "/readyz")).status != 200:
                return "bad"
        return "good"
    except ConnectionRefusedError:
        return "gone"
    except OSError:
        return "bad"


async def run(state: State, paths: Paths) -> None:
    """Check the local API server and keep the conditions `api` and `announced`, and the address, accordingly."""
    facts = state.facts
    assert facts is not None  # noqa: S101 - configured
    limit_s = ANSWER_S * facts.probe_scale
    etcd = Client("127.0.0.1", METRICS_PORT, timeout_s=limit_s)
    api = Client("::1", 6443, tls=Tls(paths.pki / "agent/cluster-ca.crt"), timeout_s=limit_s)
    # An agent that was killed left the address where it was: there it stays unless the checks say otherwise.
    health = Health(announced=await network.has_address(facts.api))
    if not health.announced:
        await state.wait_for("etcd")
    while True:
        begun = time.monotonic()
        found = await look(etcd, api)
        health = Health(ready=found == "good") if state.aside else step(health, found)
        await _follow(state, paths, facts.api, health)
        await asyncio.sleep(begun + period_s(health) * facts.probe_scale - time.monotonic())


async def step_aside(state: State, paths: Paths) -> None:
    """Lead clients to other nodes' API servers, until `state.aside` is taken back: this one is about to be started anew."""
    assert state.facts is not None  # noqa: S101 - configured
    state.aside = True
    try:
        await withdraw(paths, state.facts.api)
    except UserError as error:
        log.error("the API address: %s", error)
        return
    state.set("announced", False)
    await asyncio.sleep(ELSEWHERE_S * state.facts.probe_scale)


async def withdraw(paths: Paths, address: str) -> None:
    """Take the address away at once; no harm when it is not there.

    babeld 1.14 looks for another way, and tells its neighbours, with the prefix length of the first thing that it announces
    (`flush_xroute` in its xroute.c): for two seconds nothing would reach the address from here, nor through this node. So
    the way that it will find is taken meanwhile. Where it knows none, as all neighbours come this way, they would not hear of
    it at all, and go on to do so for a quarter of a minute: they are told of a very bad way first, and find others.
    """
    if not await network.has_address(address):
        return
    way = await babel.ask_best_way(paths.babel_socket, f"{address}/128")
    with contextlib.suppress(UserError):
        instead = network.detour_command(address, way.via, way.port) if way else network.leaving_command(address, True)
        await network.ip_batch([instead])
    await network.ip_batch(network.anycast_commands(address, present=False))
    if not way:
        await asyncio.sleep(ELSEWHERE_S)
        with contextlib.suppress(UserError):
            await network.ip_batch([network.leaving_command(address, False)])


async def announce(address: str) -> None:
    """Have the address here."""
    await network.ip_batch(network.anycast_commands(address, present=True))


async def _follow(state: State, paths: Paths, address: str, health: Health) -> None:
    state.set("api", health.ready)
    if health.announced == state.conditions["announced"]:
        return
    try:
        await (announce(address) if health.announced else withdraw(paths, address))
    except UserError as error:
        log.error("the API address: %s", error)
        return
    state.set("announced", health.announced)

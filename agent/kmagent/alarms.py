"""etcd's alarms: looked at on every voter, also while etcd is not ready, as it is not by the worst of them."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from kmagent import network, space, spoiled
from kmagent.etcd import CORRUPT, NO_SPACE, Etcd, Member
from kmagent.facts import Facts
from kmagent.mesh import Mesh
from kmagent.state import State

log = logging.getLogger(__name__)

PERIOD_S = 5.0


async def run(state: State, etcd: Etcd, mesh: Mesh, facts: Facts) -> None:
    """Mend what can be mended, and say what cannot."""

    def answers(member: Member) -> bool:
        urls = {network.peer_url(facts.prefix, number) for number in mesh.me.registered if mesh.reaches(facts, number)}
        return bool(urls & {*member.peer_urls})

    while True:
        try:
            # Each question is an entry in the voters' logs.
            alarmed = await etcd.alarms()
        except OSError as error:
            log.debug("etcd's alarms: %s", error)
        else:
            state.warn("etcd's data", await tried(spoiled.mend(etcd, alarmed[CORRUPT], answers)))
            state.warn("etcd's room", await tried(space.mend(etcd, alarmed[NO_SPACE], leads=state.leads)))
        await asyncio.sleep(PERIOD_S * facts.probe_scale)


async def tried(mending: Coroutine[Any, Any, str]) -> str:
    """Return what is in the way of mending: also that etcd refuses it, or does not answer."""
    try:
        return await mending
    except OSError as error:
        return str(error)

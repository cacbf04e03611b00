"""etcd's alarms: looked at on every voter, also while etcd is not ready, as it is not by the worst of them."""

import asyncio
import logging

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
            state.warn("etcd's data", await spoiled.mend(etcd, alarmed[CORRUPT], answers))
            state.warn("etcd's room", await space.mend(etcd, alarmed[NO_SPACE], leads=state.leads))
        except OSError as error:
            log.debug("etcd's alarms: %s", error)
        await asyncio.sleep(PERIOD_S * facts.probe_scale)

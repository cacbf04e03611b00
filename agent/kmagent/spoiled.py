"""Members of etcd whose data are not what the others have (the alarm CORRUPT).

Voters compare what they have whenever history was dropped (etcd's feature CompactHashCheck), and know whose data are those of the
few. From then on no member of all takes a write or says that it is ready, until the alarm is ended. So that member is removed,
which takes no write, and the alarm ended: its node is one like any other then that was a member (removed_data.py).
"""

import contextlib
import logging
from collections.abc import Callable, Collection, Sequence

from kmagent.etcd import CORRUPT, Etcd, EtcdError, Member
from kmagent.members import can_spare

log = logging.getLogger(__name__)

UNKNOWN = "the voters' data differ, and nobody knows whose are right: `kmbuild recover --force --from` one of them"


def to_remove(
    alarmed: Collection[str], members: Sequence[Member], leader: str, answers: Callable[[Member], bool]
) -> Member | None:
    """Return the member that may be removed: those that answer are a majority of the others, and the leader is one of them."""
    others = (member for member in members if member.id in alarmed and member.id != leader)
    return next((one for one in others if one.learner or can_spare(one, members, answers)), None)


async def mend(etcd: Etcd, alarmed: frozenset[str], answers: Callable[[Member], bool]) -> str:
    """Do what is due while members have the alarm, where etcd leads; returns what is in the way, empty when nothing is."""
    if not alarmed:
        return ""
    status, members = await etcd.status(), await etcd.members()
    if not status.leads:
        return ""
    if status.leader in alarmed:
        others = [one for one in members if one.id not in alarmed and not one.learner and answers(one)]
        log.warning("etcd here has other data than the others: another one is to lead")
        for one in others:
            with contextlib.suppress(EtcdError):
                await etcd.move_leader(one.id)
                return ""
        return waiting_for(alarmed, members)
    if spoiled := to_remove(alarmed, members, status.leader, answers):
        log.warning("etcd: %s has other data than the others, and is no member any more", spoiled.name)
        await etcd.remove(spoiled.id)
        members = [one for one in members if one is not spoiled]
    left = alarmed & {one.id for one in members}
    over = alarmed - left
    if over == {"0"} and len(members) > 1:
        # That of nobody: too few answered when data were compared. Once it is known whose were others, or none are left to
        # differ from, it is over, too; what differs still is found again.
        return waiting_for(alarmed, members)
    for member in over:
        await etcd.end_alarm(CORRUPT, member)
    return waiting_for(left, members) if left and not spoiled else ""


def waiting_for(alarmed: Collection[str], members: Sequence[Member]) -> str:
    """Say what has to come before those with other data can be removed."""
    names = [one.name for one in members if one.id in alarmed]
    if not names or {one.id for one in members if not one.learner} <= {*alarmed}:
        return UNKNOWN
    return f"those of {' and '.join(names)} are other data than the others': removed as soon as enough others answer"

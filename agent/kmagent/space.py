"""Room for etcd: when its database has reached its quota, nothing can be written any more (the alarm NOSPACE).

Then the history that nobody needs is dropped, each member gives the room back to its database, and the alarm is ended
(https://etcd.io/docs/v3.6/op-guide/maintenance/, space quota). Data that are really that large stay, and so does the alarm.
"""

import logging
from collections.abc import Collection

from kmagent.etcd import NO_SPACE, Etcd

log = logging.getLogger(__name__)

# Of its quota a database may use so much when the alarm is ended: it would be back at once otherwise.
ENOUGH = 0.9


async def mend(etcd: Etcd, alarmed: Collection[str], *, leads: bool) -> str:
    """Do what is due while members have the alarm; returns what is in the way, empty when all is well."""
    if not alarmed:
        return ""
    if leads:
        await etcd.compact((await etcd.status()).revision)
    status = await etcd.status()
    if status.used < ENOUGH * status.size:
        log.warning("etcd's database has %d of %d MiB in use: it is made smaller", status.used >> 20, status.size >> 20)
        await etcd.defragment()
        status = await etcd.status()
    if status.size >= ENOUGH * status.quota:
        return f"{status.used >> 20} MiB are in use, of {status.quota >> 20} at most: delete objects"
    if leads:
        for member in alarmed:
            await etcd.end_alarm(NO_SPACE, member)
        log.warning("etcd may be written to again")
    return ""

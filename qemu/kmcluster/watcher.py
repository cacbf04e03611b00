"""An oracle: a child that looks at etcd's members again and again, as one voter sees them.

`python -m kmcluster.watcher FOLDER` asks the JSON gateway on the loopback of the machine in whose network it runs, with
the certificate `watcher.crt` in FOLDER. Each line on standard output is a `Sight` as JSON. It ends with its standard input.
"""

import http.client
import os
import select
import ssl
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from kmcluster.state import Cluster
from kmplan import files, pki

PORT = 2382
PERIOD_S, TIMEOUT_S = 0.1, 1.0
# Two sights further apart say nothing of how many steps were between them.
CLOSE_S = 0.5


class Sight(msgspec.Struct, frozen=True):
    """What a voter's etcd said at a moment: members by id, and whether each is a learner; whether it leads, in which term.

    `cluster` is etcd's own id, another one when it was begun anew: terms begin anew, too, then.
    """

    at: float
    members: dict[str, bool]
    me: str
    leads: bool
    term: int
    cluster: str = ""


def judge(logs: Sequence[Sequence[Sight]]) -> list[str]:
    """What may never be seen: two changes of members at once, two learners, two members that lead in one term."""
    wrong = []
    for log in logs:
        for before, after in pairwise(log):
            changed = {one for one in before.members.keys() | after.members.keys() if differs(one, before, after)}
            if len(changed) > 1 and after.at - before.at < CLOSE_S:
                wrong.append(f"{len(changed)} members of etcd changed at once")
        wrong += ["etcd had two learners" for sight in log if sum(sight.members.values()) > 1][:1]
    leaders: dict[tuple[str, int], set[str]] = {}
    for log in logs:
        for before, after in pairwise(log):
            # Seen twice: etcd looks up leader and term one after the other, so an old leader may seem to lead a new term.
            if before.leads and after.leads and before.term == after.term:
                leaders.setdefault((after.cluster, after.term), set()).add(after.me)
    return wrong + [f"two members of etcd led in term {term}" for (_, term), found in leaders.items() if len(found) > 1]


def elections(logs: Sequence[Sequence[Sight]], since: float, until: float) -> int:
    """How many terms began between two moments, as all watchers together saw it."""
    before = [sight.term for log in logs for sight in log if sight.at < since]
    terms = [sight.term for log in logs for sight in log if since <= sight.at < until]
    return max([0, *terms]) - max(before, default=min(terms)) if terms else 0


def differs(member: str, before: Sight, after: Sight) -> bool:
    """Whether a member came, went, or was given a vote."""
    return before.members.get(member) != after.members.get(member)


def prepare(cluster: Cluster, folder: Path) -> str:
    """Make the certificate; returns the folder, as `main` takes it."""
    authority = pki.Pair(*((cluster.directory / f"pki/etcd-ca.{kind}").read_text() for kind in ("crt", "key")))
    pair = pki.issue(authority, pki.Subject("kubermesh:verify"), 1)
    files.write(folder / "watcher.key", pair.key, 0o600)
    files.write(folder / "watcher.crt", pair.certificate)
    files.write(folder / "etcd-ca.crt", authority.certificate)
    return str(folder)


def main(folder: str) -> None:
    """Look until standard input ends."""
    context = ssl.create_default_context(cafile=str(Path(folder) / "etcd-ca.crt"))
    context.load_cert_chain(Path(folder) / "watcher.crt", Path(folder) / "watcher.key")
    connection = http.client.HTTPSConnection("::1", PORT, context=context, timeout=TIMEOUT_S)
    while not select.select([sys.stdin], [], [], PERIOD_S)[0]:
        try:
            sight = look(connection)
        except (OSError, http.client.HTTPException, msgspec.MsgspecError, KeyError):
            connection.close()
            continue
        os.write(1, msgspec.json.encode(sight) + b"\n")


def look(connection: http.client.HTTPSConnection) -> Sight:
    """Ask the local member what it knows; what it knows is what it has taken from the log, and may be old."""
    members = ask(connection, "cluster/member/list")["members"]
    status = ask(connection, "maintenance/status")
    me = status["header"]["member_id"]
    return Sight(
        at=time.monotonic(),
        members={one["ID"]: bool(one.get("isLearner")) for one in members},
        me=me,
        leads=status.get("leader") == me,
        term=int(status["raftTerm"]),
        cluster=status["header"]["cluster_id"],
    )


def ask(connection: http.client.HTTPSConnection, path: str) -> dict[str, Any]:
    """One question to the gateway."""
    connection.request("POST", f"/v3/{path}", b"{}", {"Content-Type": "application/json"})
    answer = connection.getresponse()
    found: dict[str, Any] = msgspec.json.decode(answer.read(), type=dict[str, Any])
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])

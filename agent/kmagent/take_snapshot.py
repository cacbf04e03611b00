"""`python3 -m kmagent snapshot NODES`: the child that takes a snapshot of etcd, seals it, and gives it to other nodes.

NODES is a JSON list of `{"address": …, "digest": …}`: they are asked one after the other until two have taken it. Prints
`{"name": …, "kept_by": [addresses]}`. The key is derived from the cluster's `encryption.key`, which control-plane nodes have
and the cluster directory: a node that only keeps a snapshot cannot read it.
"""

import base64
import json
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

from kmagent import http, identity, snapshot_files
from kmagent.data_revision import revision_of
from kmagent.paths import Paths
from kmagent.peers import NODE_PORT
from kmplan import run, seal
from kmplan.errors import UserError
from kmplan.recovery import Snapshot

log = logging.getLogger(__name__)

UPLOAD_S = 30.0
ETCD = "https://[::1]:2379"


def main(nodes: str) -> int:
    """Take one, and print what became of it."""
    print(json.dumps(take(Paths(), json.loads(nodes))))
    return 0


def take(paths: Paths, nodes: list[dict[str, str]]) -> dict[str, Any]:
    """Take a snapshot, keep it here and on others; UserError when there is none."""
    role = identity.read_role(paths)
    if role is None:
        raise UserError("this machine is no node")
    paths.snapshots.mkdir(mode=0o700, exist_ok=True)
    # As it is, and sealed; and as much again is left to etcd's own log.
    if not snapshot_files.make_room(paths.snapshots, 3 * paths.etcd_database.stat().st_size // 2):
        raise UserError("not enough room for a snapshot")
    with tempfile.TemporaryDirectory(prefix=".new-", dir=paths.snapshots) as folder:
        plain = Path(folder) / "db"
        pki = paths.pki / "agent"
        tls = [
            f"--cacert={pki / 'etcd-ca.crt'}",
            f"--cert={pki / 'etcd-client.crt'}",
            f"--key={pki / 'etcd-client.key'}",
        ]
        run.run(["etcdctl", f"--endpoints={ETCD}", *tls, "snapshot", "save", plain])
        snapshot = Snapshot(role.epoch, revision_of(plain), int(time.time()))
        seal.seal_file(plain, paths.snapshots / snapshot.name, secret(paths))
    kept_by: list[str] = []
    for node in nodes:
        if len(kept_by) < snapshot_files.COPIES and give(paths, snapshot, node):
            kept_by.append(node["address"])
    return {"name": snapshot.name, "kept_by": kept_by}


def give(paths: Paths, snapshot: Snapshot, node: dict[str, str]) -> bool:
    """Give a snapshot to a node; tells whether it took it."""
    tls = http.Tls(paths.state / "pki/node-ca.crt", paths.state / "identity.crt", digest=node["digest"])
    file = paths.snapshots / snapshot.name
    try:
        answer = http.upload(node["address"], NODE_PORT, tls, f"/v1/snapshots/{snapshot.name}", file, UPLOAD_S)
    except OSError as error:
        log.warning("%s does not take the snapshot: %s", node["address"], error)
        return False
    if answer.status != 200:
        log.warning("%s does not take the snapshot: %s", node["address"], answer.body[:200].decode(errors="replace"))
    return answer.status == 200


def secret(paths: Paths) -> bytes:
    """Return what the key of snapshots is derived from."""
    return base64.b64decode(identity.read_secret(paths, "encryption.key"))

"""Begins the cluster anew on this node, when an order names it (docs/recovery.md).

`python3 -m kmagent begin-anew` is the child that makes etcd's new data, from the old or from a snapshot. The old data are
kept aside. It may be killed at any point and run again: `role.json`, which says that the new data are whole, comes last.
"""

import json
import logging
import os
import shutil
import time
from pathlib import Path
from typing import Any

import msgspec

from kmagent import end_etcd, identity, network, removed_data, take_snapshot
from kmagent.components import UIDS
from kmagent.identity import Identity
from kmagent.paths import Paths
from kmplan import files, recovery, run, seal
from kmplan.errors import UserError
from kmplan.recovery import OWN_DATA, Order
from kmplan.secret_files import SECRET_FILES

log = logging.getLogger(__name__)

# What clients have seen of the old data must not come again (etcd, disaster recovery: restoring with revision bump).
BUMP = 1_000_000_000


def main() -> int:
    """Begin anew, and print the epoch."""
    print(json.dumps(begin(Paths())))
    return 0


def begin(paths: Paths) -> dict[str, Any]:
    """Make the data that the order asks for, and this node the only voter; UserError says what is in the way."""
    me = identity.load(paths, time.time())
    order, _, _ = recovery.unpack(paths.order.read_text())
    if me is None or order.number != me.role.number:
        raise UserError("the order is for another node")
    if order.epoch <= me.role.epoch:
        return {"state": "done", "epoch": me.role.epoch}
    take_secrets(paths, order)
    new = paths.state / f"etcd.epoch-{order.epoch}"
    with end_etcd.ended(paths.etcd_database):
        source = keep_source(paths, order)
        shutil.rmtree(new, ignore_errors=True)
        restore(source, new, me, order)
        put_aside(paths.etcd, paths.state / f"etcd.removed-epoch-{order.epoch}")
    new.rename(paths.etcd)
    files.sync_folder(paths.state)
    changed = msgspec.structs.replace(me.role, role="voter", epoch=order.epoch, initial_cluster="", member="")
    identity.write_role(paths, changed)
    source.unlink()
    removed_data.prune(paths.state)
    return {"state": "done", "epoch": order.epoch}


def put_aside(data: Path, aside: Path) -> None:
    """Keep the old data aside, once: at a second try what is there are new data, of which no etcd knows yet."""
    if aside.exists():
        shutil.rmtree(data, ignore_errors=True)
    elif data.exists():
        data.rename(aside)


def take_secrets(paths: Paths, order: Order) -> None:
    """Keep the control plane's secrets if the order brings them."""
    if not order.sealed:
        return
    contents = json.loads(seal.unseal(order.sealed, identity.read_secret(paths, "identity.key")))
    for name in SECRET_FILES:
        files.write(paths.state / name, str(contents[name]), 0o600)


def keep_source(paths: Paths, order: Order) -> Path:
    """Return the file that the order begins from: kept until all is done, whatever becomes of the data meanwhile."""
    kept = paths.begun(order.epoch)
    if kept.exists():
        return kept
    if order.source != OWN_DATA:
        snapshot = recovery.parse_snapshot(order.source)
        if snapshot is None or not (paths.snapshots / snapshot.name).exists():
            raise UserError(f"this node has no snapshot {order.source}")
        try:
            seal.unseal_file(paths.snapshots / snapshot.name, kept, take_snapshot.secret(paths))
        except ValueError as error:
            raise UserError(str(error)) from error
        return kept
    database = paths.etcd_database
    if not database.exists():
        raise UserError("this node has no data of etcd")
    partial = kept.with_suffix(".partial")
    shutil.copyfile(database, partial)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.rename(kept)
    files.sync_folder(paths.state)
    return kept


def restore(source: Path, target: Path, me: Identity, order: Order) -> None:
    """Make data of a cluster of one member, whose id no member of an earlier epoch has."""
    url = network.peer_url(str(me.cluster.plan.prefix), me.role.number)
    words = [
        f"--data-dir={target}",
        f"--name={me.role.name}",
        f"--initial-cluster={me.role.name}={url}",
        f"--initial-cluster-token={me.cluster.name}-{order.epoch}",
        f"--initial-advertise-peer-urls={url}",
        f"--bump-revision={BUMP}",
        "--mark-compacted",
    ]
    # A database that was copied has no checksum at its end, as one has that etcd sent.
    words += ["--skip-hash-check"] if order.source == OWN_DATA else []
    run.run(["etcdutl", "snapshot", "restore", source, *words])
    uid = UIDS["etcd"]
    for path in (target, *target.rglob("*")):
        os.chown(path, uid, uid)
        path.chmod(0o700 if path.is_dir() else 0o600)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

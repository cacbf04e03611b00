"""`python3 -m kmagent order`: the child that checks an order to begin the cluster anew, from its standard input, and keeps it."""

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from kmagent import identity
from kmagent.paths import Paths
from kmplan import pki, recovery
from kmplan.errors import UserError
from kmplan.files import write


def main() -> int:
    """Keep it, and print its epoch."""
    print(json.dumps(keep(Paths(), sys.stdin.read())))
    return 0


def keep(paths: Paths, packed: str) -> dict[str, Any]:
    """Keep an order that the node authority signed and that is newer than what is known; UserError when it is not."""
    role = identity.read_role(paths)
    try:
        order, text, signature = recovery.unpack(packed)
    except ValueError as error:
        raise UserError(str(error)) from error
    if role is None or order.cluster != role.cluster_id:
        raise UserError("the order is for another cluster")
    if not pki.verify_text(identity.read_secret(paths, "pki/node-ca.crt"), text, signature):
        raise UserError("the order is not signed by this cluster's node authority")
    known = max(role.epoch, _epoch(paths.order), _epoch(paths.withdrawn))
    if order.epoch <= known:
        raise UserError(f"the order is for epoch {order.epoch}, and this node knows of {known}")
    write(paths.order, packed, 0o600)
    return {"state": "kept", "epoch": order.epoch}


def give_up(paths: Paths) -> None:
    """Forget an order that this node has carried out, when it holds the cluster's keys, sealed to it.

    All others are kept: who was left behind asks for them.
    """
    role = identity.read_role(paths)
    with contextlib.suppress(OSError, ValueError):
        order, _, _ = recovery.unpack(paths.order.read_text())
        if role and order.sealed and order.number == role.number and order.epoch <= role.epoch:
            paths.order.unlink()


def _epoch(path: Path) -> int:
    try:
        return recovery.unpack(path.read_text())[0].epoch
    except (OSError, ValueError):
        return 0

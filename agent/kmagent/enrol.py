"""`python3 -m kmagent enrol [ADDRESS]`: gets for an admitted node what only the control plane can give, and keeps it.

The registry, the mesh keys, kubelet's client certificate, and on a node that was chosen for it the control plane's secrets.
Asks at the join address, or with ADDRESS over a neighbour's relay. Prints `{"state": ok|unknown|unreachable, "role": …}`,
the epoch, and after how many seconds to ask again.
"""

import asyncio
import contextlib
import datetime
import json
import time
from typing import Any

import msgspec

from kmagent import certificates, clock, http, identity, keep_order, relay, removed_data, seed_credential, settings
from kmagent.identity import Identity
from kmagent.join import check_registry
from kmagent.paths import Paths
from kmagent.settings import Kept, Settings
from kmplan import pki, seal
from kmplan.errors import UserError
from kmplan.files import sync_folder, write, write_if_changed
from kmplan.secret_files import PUBLIC_FILES, SECRET_FILES

ASK_S = 3600.0


def main(address: str = "") -> int:
    """Enrol, and print what came of it."""
    print(json.dumps(enrol(Paths(), address)))
    return 0


def enrol(paths: Paths, address: str = "") -> dict[str, Any]:
    """Ask and keep; UserError when what is given does not fit."""
    me = identity.load(paths, time.time())
    if me is None:
        raise UserError("this machine is not admitted yet")
    authority = paths.state / "pki/node-ca.crt"
    tls = http.Tls(authority, paths.state / "identity.crt", certificates.JOIN_NAME)
    host, port = (address, relay.PORT) if address else (str(me.cluster.plan.join), relay.JOIN_PORT)
    client = http.Client(host, port, tls=tls, timeout_s=relay.TIMEOUT_S)
    kubelet_key = pki.create_key() if wants_kubelet(paths) else ""
    body = {
        "kubelet": pki.create_request(kubelet_key, "kubelet") if kubelet_key else "",
        "secrets": me.role.role == "worker",
    }
    try:
        answer = asyncio.run(client.request("POST", "/v1/enrol", json.dumps(body).encode()))
    except OSError as error:
        if clock.is_behind(error) and clock.may_follow(paths):
            with contextlib.suppress(OSError):
                clock.catch_up(host, port, tls, relay.TIMEOUT_S)
        return {"state": "unreachable", "role": me.role.role, "message": str(error)}
    if answer.status != 200:
        state = "unknown" if answer.status == 403 else "unreachable"
        return {"state": state, "role": me.role.role, "message": answer.body[:200].decode(errors="replace").strip()}
    role = keep(paths, me, json.loads(answer.body), kubelet_key)
    return {"state": "ok", "role": role.role, "epoch": role.epoch, "renew_in_s": renew_in_s(paths)}


def wants_kubelet(paths: Paths) -> bool:
    """Whether kubelet's certificate is missing, half written, or has no more than a third of its time left."""
    kept = paths.state / "kubelet/client.crt"
    if (paths.state / "pki/cluster-ca.key").exists():
        return False
    if not kept.exists() or not pki.matches(kept.read_text(), kept.with_suffix(".key").read_text()):
        return True
    return certificates.is_due("kubelet/client", kept, datetime.datetime.now(datetime.UTC))


def renew_in_s(paths: Paths) -> float:
    """Return after how many seconds kubelet's certificate is to be renewed; an hour at most."""
    if not wants_kubelet(paths) and (paths.state / "kubelet/client.crt").exists():
        return min(ASK_S, certificates.seconds_left("kubelet/client", paths.state / "kubelet/client.crt"))
    return ASK_S


def keep(paths: Paths, me: Identity, answer: dict[str, Any], kubelet_key: str) -> identity.Role:
    """Check and write what was given; returns what this node is from now on."""
    authority = identity.read_secret(paths, "pki/node-ca.crt")
    registry = check_registry(answer["registry"], authority)
    node = registry.find(number=me.role.number, name=me.role.name)
    if node is None:
        raise UserError("the registry does not know this node")
    if registry.epoch < me.role.epoch:
        # Its etcd has just begun anew: what is said of this node is from before.
        raise UserError(f"the registry is still that of epoch {registry.epoch}")
    write_if_changed(paths.registry, str(answer["registry"]), 0o600)
    write_if_changed(paths.mesh_keys, json.dumps(answer["mesh_keys"]), 0o600)
    if kubelet_key and answer.get("kubelet"):
        (paths.state / "kubelet").mkdir(mode=0o700, exist_ok=True)
        write(paths.state / "kubelet/client.key", kubelet_key, 0o600)
        write(paths.state / "kubelet/client.crt", str(answer["kubelet"]), 0o600)
    return take_role(paths, me, node.role, answer)


def take_role(paths: Paths, me: Identity, role: str, answer: dict[str, Any]) -> identity.Role:
    """Become what the registry says; a control-plane node only once it has the secrets."""
    initial_cluster = me.role.initial_cluster
    if answer.get("sealed"):
        key = identity.read_secret(paths, "identity.key")
        files = json.loads(seal.unseal(str(answer["sealed"]), key))
        for name in SECRET_FILES:
            write(paths.state / name, str(files[name]), 0o600)
        initial_cluster = str(answer["initial_cluster"])
        settings.save(paths.settings, Kept(Settings(answer.get("settings", {}))))
    elif me.role.role == "worker":
        # Files that are here all the same are of an answer that was not kept to its end.
        role = "worker"
    elif is_replaced(me.role, role, answer):
        role, initial_cluster = "worker", ""
    if not (paths.state / "encryption.key").exists():
        role = "worker"
    changed = msgspec.structs.replace(
        me.role,
        role=msgspec.convert(role, identity.RoleName),
        initial_cluster=initial_cluster,
        member=str(answer.get("member", "")) if role != "worker" else "",
        epoch=max(me.role.epoch, int(answer.get("epoch", 1))),
    )
    if changed != me.role:
        identity.write_role(paths, changed)
    if changed.role == "worker":
        # After that is written: a voter without its secrets would not start. Cut off here, it is done again.
        retire(paths)
    return changed


def is_replaced(me: identity.Role, role: str, answer: dict[str, Any]) -> bool:
    """Tell whether etcd's data here are those of a member that is none any more.

    No vote is ever taken back: a voter that shall be a standby was replaced meanwhile. So was one whose node has a member
    of another id now, and every member of a cluster that was begun anew since.
    """
    if me.role == "worker":
        return False
    if (me.role, role) in (("voter", "standby"), ("voter", "worker"), ("standby", "worker")):
        return True
    member = str(answer.get("member", ""))
    return bool(member and me.member and member != me.member) or int(answer.get("epoch", 1)) > me.epoch


def retire(paths: Paths) -> None:
    """Give up what only the control plane may have; etcd's data is kept aside, as it would not start with it again."""
    seed_credential.give_up(paths)
    for name in set(SECRET_FILES) - set(PUBLIC_FILES):
        (paths.state / name).unlink(missing_ok=True)
    keep_order.give_up(paths)
    sync_folder(paths.state)
    data = paths.state / "etcd"
    if data.exists() and any(data.iterdir()):
        data.rename(paths.state / f"etcd.removed-{int(time.time())}")
        removed_data.prune(paths.state)

"""`python3 -m kmagent join ADDRESS VIA`: asks once, over a neighbour's relay, to be admitted; keeps what is given.

The neighbour carries bytes only: whether it leads to the cluster that this machine was told to trust shows in the
certificate of the join API. Prints `{"state": pending|denied|admitted|…, "fingerprint": …}`.
"""

import asyncio
import contextlib
import json
import time
from typing import Any

import msgspec

from kmagent import certificates, clock, disk_state, http, identity, machine, ports, relay
from kmagent import registry as registries
from kmagent.identity import Role
from kmagent.paths import Paths
from kmplan import pki, seal
from kmplan.cluster import ClusterFile
from kmplan.errors import UserError
from kmplan.files import write
from kmplan.secret_files import PUBLIC_FILES
from kmplan.seed import JoinBundle

STATES = {202: "pending", 403: "denied", 429: "busy", 503: "busy"}


def main(address: str, via: str) -> int:
    """Ask, and print what came of it."""
    print(json.dumps(ask(Paths(), address, via)))
    return 0


def ask(paths: Paths, address: str, via: str) -> dict[str, Any]:
    """Ask the join API behind a neighbour's link-local address; `via` names the neighbour and its port."""
    join = identity.read_join(paths)
    if join is None:
        raise UserError("no cluster to ask", "give this machine the credential kubermesh.join")
    key = own_key(paths)
    # What people compare.
    said = {"fingerprint": pki.private_key_fingerprint(key), "authority": pki.fingerprint(join.authority)}
    body = json.dumps(request(paths, join, key, via)).encode()
    write(paths.run / "node-ca.crt", join.authority)
    tls = http.Tls(paths.run / "node-ca.crt", server_name=certificates.JOIN_NAME)
    client = http.Client(address, relay.PORT, tls=tls, timeout_s=relay.TIMEOUT_S)
    try:
        answer = asyncio.run(client.request("POST", "/v1/join", body))
    except OSError as error:
        if clock.is_behind(error) and clock.may_follow(paths):
            with contextlib.suppress(OSError):
                clock.catch_up(address, relay.PORT, tls, relay.TIMEOUT_S)
        return {"state": "unreachable", **said, "message": str(error)}
    if answer.status == 200:
        keep(paths, join, key, msgspec.json.decode(answer.body, type=dict[str, Any]))
        return {"state": "admitted", **said}
    message = answer.body[:200].decode(errors="replace").strip()
    if answer.status == 202 and json.loads(answer.body).get("state") == "wipe":
        return {"state": "wipe", **said, "message": "approved to wipe a disk"}
    return {"state": STATES.get(answer.status, "refused"), **said, "message": message}


def own_key(paths: Paths) -> str:
    """Return this machine's own key, made at the first call."""
    path = paths.state / "identity.key"
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write(path, pki.create_key(), 0o600)
    return path.read_text(encoding="ascii")


def request(paths: Paths, join: JoinBundle, key: str, via: str) -> dict[str, Any]:
    """Return what the machine says of itself."""
    ignored = tuple(identity.read_tuning(paths).ignored_ports)
    return {
        "version": 1,
        "cluster": join.name,
        "csr": pki.create_request(key, "kubermesh machine"),
        "wish": join.number,
        "uuid": machine.uuid(),
        "via": via,
        "ports": [{"name": port.name, "mac": port.mac} for port in ports.physical_ports(ignored=ignored)][:16],
        "disks": machine.disks()[:16],
        "diskless": disk_state.read(paths)[0] == "ram",
        "blocked": disk_state.blocked(paths),
    }


def keep(paths: Paths, join: JoinBundle, key: str, answer: dict[str, Any]) -> None:
    """Check all that was given and write it down, `role.json` last; UserError when something does not fit."""
    certificate = str(answer["certificate"])
    if not pki.is_issued_by(certificate, join.authority) or not pki.matches(certificate, key):
        raise UserError("the join API gave an identity certificate that is not ours", "is the neighbour what it says?")
    check_registry(answer["registry"], join.authority)
    files = {name: str(answer["files"][name]) for name in PUBLIC_FILES}
    if files["pki/node-ca.crt"] != join.authority:
        raise UserError("the join API names another node authority than the one this machine was given")
    cluster = msgspec.convert(answer["cluster"], ClusterFile)
    try:
        secret = json.loads(seal.unseal(str(answer["sealed"]), key))
    except ValueError as error:
        raise UserError(f"what the join API gave cannot be read: {error}") from error
    (paths.state / "pki").mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, content in files.items():
        write(paths.state / name, content, 0o600)
    write(paths.state / "cluster.json", msgspec.json.encode(cluster), 0o600)
    write(paths.state / "identity.crt", certificate, 0o600)
    write(paths.mesh_keys, json.dumps(secret["mesh_keys"]), 0o600)
    write(paths.registry, str(answer["registry"]), 0o600)
    role = Role(
        cluster_id=pki.fingerprint(files["pki/cluster-ca.crt"]),
        number=int(answer["number"]),
        name=str(answer["name"]),
        role="worker",
        last_seen=float(int(time.time())),
    )
    identity.write_role(paths, role)


def check_registry(packed: str, authority: str) -> registries.Registry:
    """Return a registry that the node authority signed; UserError when it did not."""
    text, signature = registries.unpack(packed)
    if not pki.verify_text(authority, text, signature):
        raise UserError("the registry of nodes is not signed by this cluster's node authority")
    return registries.from_text(text)

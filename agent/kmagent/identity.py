"""Who this node is: taken from the seed at the first boot or given when it was admitted, from the disk ever after."""

import json
import logging
from pathlib import Path
from typing import Literal

import msgspec

from kmagent import clock, identity_files
from kmagent.paths import Paths
from kmplan import pki
from kmplan.cluster import ClusterFile, Install
from kmplan.errors import UserError
from kmplan.files import write, write_if_changed
from kmplan.secret_files import PUBLIC_FILES
from kmplan.seed import JoinBundle, SeedBundle, parse_bundle, parse_join
from kmplan.tuning import Tuning

log = logging.getLogger(__name__)

IDENTITY_DAYS = 3650

RoleName = Literal["voter", "standby", "worker"]


class Role(msgspec.Struct, frozen=True, kw_only=True):
    """`role.json`, written last: where it exists, the identity on the disk is complete.

    `last_seen` is the latest moment this node knows of, in seconds since 1970: nothing is signed before it.
    `initial_cluster` is what etcd is told when it joins others; empty on the node that began the cluster. `member` is the
    id of the etcd member whose data this is, empty until the cluster said it; `epoch` counts how often the cluster was
    begun anew (docs/recovery.md): etcd's data of an earlier epoch are never served again.
    """

    version: Literal[1] = 1
    epoch: int = 1
    cluster_id: str
    number: int
    name: str
    role: RoleName = "voter"
    initial_cluster: str = ""
    member: str = ""
    last_seen: float = 0


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """A node's place in its cluster."""

    cluster: ClusterFile
    role: Role


def load(paths: Paths, now: float) -> Identity | None:
    """Return this node's identity, keeping what a seed brings; None when it has yet to be admitted.

    Raises UserError when there is neither a seed nor an identity nor a cluster to ask, or when they contradict each other.
    """
    seed = _read_seed(paths)
    role = read_role(paths)
    if seed and role:
        _check_same_node(seed, role)
    if seed:
        role = _keep(paths, seed, role, now)
    if role is None:
        if read_join(paths) is None:
            raise UserError(
                "no seed credential and nothing in /var/lib/kubermesh", "this machine belongs to no cluster yet"
            )
        # Half of an admission, or of a removal that a power cut interrupted.
        identity_files.put_aside(paths.state, everything=False)
        return None
    return Identity(cluster=read_cluster(paths), role=role)


def read_join(paths: Paths) -> JoinBundle | None:
    """Return which cluster to ask for admission, and keep it; None when nobody said."""
    data, kept = _read_credential(paths, "kubermesh.join"), paths.state / "join.json"
    if data:
        join = parse_join(data)
        kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_if_changed(kept, data, 0o600)
        return join
    return parse_join(kept.read_bytes()) if kept.exists() else None


def remember_time(paths: Paths, role: Role, now: float, *, is_back: bool) -> None:
    """Keep the latest moment seen, so that a lost clock does not go back behind it; one that was set back begins anew."""
    if now > role.last_seen or is_back:
        write_role(paths, msgspec.structs.replace(role, last_seen=float(int(now))))


def read_tuning(paths: Paths) -> Tuning:
    """Read the bench's credential; without one nothing is overridden."""
    data = _read_credential(paths, "kubermesh.tuning")
    try:
        return msgspec.json.decode(data, type=Tuning) if data else Tuning()
    except msgspec.DecodeError as error:
        raise UserError(f"credential kubermesh.tuning: {error}") from error


def read_secret(paths: Paths, name: str) -> str:
    """Read one of the cluster's secret files, as named in the seed."""
    try:
        return (paths.state / name).read_text(encoding="ascii")
    except OSError as error:
        raise UserError(f"{paths.state / name}: cannot be read: {error.strerror}") from error


def read_authority(paths: Paths, name: str) -> pki.Pair:
    """Read a certificate authority with its key."""
    return pki.Pair(read_secret(paths, f"pki/{name}.crt"), read_secret(paths, f"pki/{name}.key"))


def join_of(seed: SeedBundle) -> JoinBundle:
    """Return what a machine of the seed's cluster has to know to ask for admission, and where the seed lives."""
    return JoinBundle(name=seed.cluster.name, authority=seed.files["pki/node-ca.crt"], install=install_of(seed))


def install_of(seed: SeedBundle) -> Install:
    """Return where the seed lives: never in memory, as one that forgets what it began would begin it again."""
    wish = seed.cluster.install
    return msgspec.structs.replace(wish, to="stick") if wish.to == "ram" else wish


def _keep(paths: Paths, seed: SeedBundle, known: Role | None, now: float) -> Role:
    (paths.state / "pki").mkdir(mode=0o700, parents=True, exist_ok=True)
    # A seed that votes no more has given the cluster's secrets up.
    retired = known is not None and known.role == "worker"
    for name, content in seed.files.items():
        if not retired or name in PUBLIC_FILES:
            write_if_changed(_inside(paths.state, name), content, 0o600)
    write_if_changed(paths.state / "cluster.json", msgspec.json.encode(seed.cluster), 0o600)
    if known:
        return known
    # Where the clock's battery is empty, nobody else is there to say what is past.
    begins = pki.validity(seed.files["pki/cluster-ca.crt"])[0].timestamp()
    clock.set_forward(begins, "the cluster's own certificates")
    _make_key(paths, seed)
    write(paths.mesh_keys, json.dumps({"1": seed.files["babel.key"].strip()}), 0o600)
    write(paths.state / "join.json", msgspec.json.encode(join_of(seed)), 0o600)
    seen = float(int(max(now, begins)))
    role = Role(cluster_id=_cluster_id(seed), number=seed.node.number, name=seed.node.name, last_seen=seen)
    write_role(paths, role)
    log.info("this machine is now node %d, %s, of cluster %s", role.number, role.name, seed.cluster.name)
    return role


def _make_key(paths: Paths, seed: SeedBundle) -> None:
    authority = pki.Pair(seed.files["pki/node-ca.crt"], seed.files["pki/node-ca.key"])
    subject = pki.Subject(f"kubermesh:node:{seed.node.name}", ("kubermesh:nodes",), ("client", "server"))
    pair = pki.issue(authority, subject, IDENTITY_DAYS)
    write(paths.state / "identity.key", pair.key, 0o600)
    write(paths.state / "identity.crt", pair.certificate, 0o600)


def _check_same_node(seed: SeedBundle, role: Role) -> None:
    if _cluster_id(seed) != role.cluster_id:
        raise UserError(
            f"the seed is of cluster {seed.cluster.name}, but this disk belongs to another one",
            "erase the disk or boot without the seed",
        )
    if (seed.node.number, seed.node.name) != (role.number, role.name):
        raise UserError(
            f"the seed is for node {seed.node.number} ({seed.node.name}), "
            f"but this disk is node {role.number} ({role.name})"
        )


def _cluster_id(seed: SeedBundle) -> str:
    return pki.fingerprint(seed.files["pki/cluster-ca.crt"])


def _read_seed(paths: Paths) -> SeedBundle | None:
    """Return the seed's bundle; none to a machine that was removed: with it the cluster would begin a second time."""
    data = _read_credential(paths, "kubermesh.seed")
    seed = parse_bundle(data) if data else None
    return None if seed and identity_files.has_left(paths.state, _cluster_id(seed)) else seed


def _read_credential(paths: Paths, name: str) -> bytes | None:
    path = paths.credentials / name if paths.credentials else None
    return path.read_bytes() if path and path.exists() else None


def read_role(paths: Paths) -> Role | None:
    """Read `role.json`; None when this machine is no node yet."""
    path = paths.state / "role.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Role)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise UserError(f"{path}: {error}") from error


def read_cluster(paths: Paths) -> ClusterFile:
    """Read the cluster file as this node was given it; UserError when it cannot be read."""
    path = paths.state / "cluster.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=ClusterFile)
    except (OSError, msgspec.DecodeError) as error:
        raise UserError(f"{path}: {error}") from error


def write_role(paths: Paths, role: Role) -> None:
    """Write `role.json`; with it everything else that an identity needs is said to be there."""
    write(paths.state / "role.json", msgspec.json.encode(role), 0o600)


def _inside(folder: Path, name: str) -> Path:
    path = folder / name
    if ".." in path.parts:
        raise UserError(f"credential kubermesh.seed: files: impossible name {name}")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path

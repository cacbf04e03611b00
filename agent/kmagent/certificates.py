"""Leaf certificates: one table, issued into /run at each boot, renewed in place with a third of their time left."""

import datetime
import hashlib
import logging
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

from kmagent import identity
from kmagent.components import UIDS
from kmagent.facts import Facts
from kmagent.paths import Paths
from kmplan import pki
from kmplan.files import write, write_if_changed
from kmplan.pki import Pair, Subject

log = logging.getLogger(__name__)

JOIN_NAME = "join.kubermesh"
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Leaf:
    """A certificate of a component: `pki/<component>/<name>.{crt,key}`, signed by `authority`."""

    component: str
    name: str
    authority: str
    subject: Subject


@dataclass(frozen=True)
class Copy:
    """A file of the cluster's PKI that a component reads: `pki/<component>/<source>`."""

    component: str
    source: str


def leaves(facts: Facts, kubernetes: tuple[str, str]) -> list[Leaf]:
    """Return every certificate of a control-plane node; `kubernetes` are the first service addresses."""
    server_names = (
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        facts.name,
        *LOOPBACK,
        *facts.addresses,
        facts.api,
        *kubernetes,
    )
    own_names = (facts.name, *LOOPBACK, *facts.addresses)
    both: tuple[pki.Usage, ...] = ("server", "client")
    return [
        # As a client too: etcd's JSON gateway presents it to etcd itself.
        Leaf("etcd", "server", "etcd-ca", Subject(facts.name, usages=both, names=own_names)),
        Leaf("etcd", "peer", "etcd-ca", Subject(facts.name, usages=both, names=own_names)),
        Leaf("kube-apiserver", "etcd-client", "etcd-ca", Subject("kube-apiserver")),
        _server("kube-apiserver", server_names),
        Leaf("kube-apiserver", "kubelet-client", "cluster-ca", Subject("kubermesh:kube-apiserver")),
        Leaf("kube-apiserver", "front-proxy-client", "front-proxy-ca", Subject("front-proxy-client")),
        _client("kube-controller-manager", Subject("system:kube-controller-manager")),
        _server("kube-controller-manager", LOOPBACK),
        _client("kube-scheduler", Subject("system:kube-scheduler")),
        _server("kube-scheduler", LOOPBACK),
        _client("kubelet", Subject(f"system:node:{facts.name}", ("system:nodes",))),
        # The first thing the agent does is to give the admins their rights: only this group may, in an empty cluster.
        _client("agent", Subject(f"kubermesh:agent:{facts.name}", ("system:masters",))),
        Leaf("agent", "etcd-client", "etcd-ca", Subject(f"kubermesh:agent:{facts.name}")),
        Leaf(
            "agent",
            "join",
            "node-ca",
            Subject(JOIN_NAME, usages=("server",), names=(JOIN_NAME, facts.join, facts.address)),
        ),
    ]


COPIES = (
    Copy("etcd", "etcd-ca.crt"),
    Copy("kube-apiserver", "cluster-ca.crt"),
    Copy("kube-apiserver", "etcd-ca.crt"),
    Copy("kube-apiserver", "front-proxy-ca.crt"),
    Copy("kube-apiserver", "service-account.key"),
    Copy("kube-apiserver", "service-account.pub"),
    Copy("kube-controller-manager", "cluster-ca.crt"),
    Copy("kube-controller-manager", "cluster-ca.key"),
    Copy("kube-controller-manager", "service-account.key"),
    Copy("kube-scheduler", "cluster-ca.crt"),
    Copy("kubelet", "cluster-ca.crt"),
    Copy("agent", "cluster-ca.crt"),
    Copy("agent", "etcd-ca.crt"),
    Copy("agent", "node-ca.crt"),
)


def issue_all(paths: Paths, wanted: list[Leaf], now: datetime.datetime, days: float) -> datetime.datetime:
    """Bring all certificates up to date, each valid for `days`; returns when the next one is due."""
    for component, uid in UIDS.items():
        make_folder(paths.pki / component, uid)
    for copy in COPIES:
        content = identity.read_secret(paths, f"pki/{copy.source}")
        write_if_changed(paths.pki / copy.component / copy.source, content, 0o400, UIDS[copy.component])
    authorities = {name: identity.read_authority(paths, name) for name in sorted({leaf.authority for leaf in wanted})}
    return min(_keep_current(paths, leaf, authorities[leaf.authority], now, days) for leaf in wanted)


def lay_out_worker(paths: Paths, now: datetime.datetime) -> float:
    """Lay out what a worker was given for its kubelet; returns seconds until the certificate is due (0 without one)."""
    make_folder(paths.pki / "kubelet", 0)
    content = identity.read_secret(paths, "pki/cluster-ca.crt")
    write_if_changed(paths.pki / "kubelet/cluster-ca.crt", content, 0o400)
    kept = paths.state / "kubelet/client.crt"
    if not kept.exists():
        return 0.0
    for path in (kept.with_suffix(".key"), kept):
        write_if_changed(paths.pki / "kubelet" / path.name, path.read_text(), 0o400)
    return (_due("kubelet/client", kept) - now).total_seconds()


def seconds_left(name: str, certificate: Path) -> float:
    """Return after how many seconds a certificate is to be renewed."""
    return (_due(name, certificate) - datetime.datetime.now(datetime.UTC)).total_seconds()


def make_folder(path: Path, uid: int) -> None:
    """Make a folder that only `uid` (and root) can read."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.parent.chmod(0o711)
    path.chmod(0o700)
    os.chown(path, uid, uid)


def renewal_time(name: str, start: datetime.datetime, end: datetime.datetime) -> datetime.datetime:
    """Return when to renew: with a third of the time left, or up to a tenth earlier, so not all at once."""
    jitter = zlib.crc32(name.encode()) % 1000 / 1000 * 0.1
    return end - (end - start) * (1 / 3 + jitter)


def is_due(name: str, certificate: Path, now: datetime.datetime) -> bool:
    """Tell whether a certificate is to be renewed, or begins only later: the clock was ahead when it was made."""
    return now >= _due(name, certificate) or now < pki.validity(certificate.read_text())[0]


def _server(component: str, names: tuple[str, ...]) -> Leaf:
    return Leaf(component, "server", "cluster-ca", Subject(component, usages=("server",), names=names))


def _client(component: str, subject: Subject) -> Leaf:
    return Leaf(component, "client", "cluster-ca", subject)


def _keep_current(paths: Paths, leaf: Leaf, authority: Pair, now: datetime.datetime, days: float) -> datetime.datetime:
    folder, name = paths.pki / leaf.component, f"{leaf.component}/{leaf.name}"
    certificate = folder / f"{leaf.name}.crt"
    stamp = folder / f".{leaf.name}.made-for"
    digest = hashlib.sha256(f"{leaf}{authority.certificate}{days}".encode()).hexdigest()
    if not (stamp.exists() and stamp.read_text() == digest and not is_due(name, certificate, now)):
        _issue(leaf, authority, now, days, certificate, stamp, digest)
    return _due(name, certificate)


def _due(name: str, certificate: Path) -> datetime.datetime:
    start, end = pki.validity(certificate.read_text())
    return renewal_time(name, start + pki.SKEW, end)


def _issue(
    leaf: Leaf, authority: Pair, now: datetime.datetime, days: float, certificate: Path, stamp: Path, digest: str
) -> None:
    # The stamp is away while key and certificate do not match: a crash in between means that both are made again.
    stamp.unlink(missing_ok=True)
    pair = pki.issue(authority, leaf.subject, days, now)
    uid = UIDS[leaf.component]
    write(certificate.with_suffix(".key"), pair.key, 0o400, uid)
    write(certificate, pair.certificate, 0o400, uid)
    write(stamp, digest, 0o400)
    log.info("issued %s/%s", leaf.component, leaf.name)

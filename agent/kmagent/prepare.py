"""The child process that makes a node's files: identity, certificates, configuration. Safe to repeat."""

import dataclasses
import datetime
import json
import logging
import os
import shutil
import time
from pathlib import Path
from typing import Any

import msgspec

from kmagent import certificates, clock, facts, identity, machine, render, seed_credential, settings, ssh
from kmagent.components import UIDS
from kmagent.facts import Facts
from kmagent.identity import Identity
from kmagent.paths import Paths
from kmplan import pki
from kmplan.errors import UserError
from kmplan.files import write_if_changed
from kmplan.secret_files import SECRET_FILES
from kmplan.tuning import Tuning

log = logging.getLogger(__name__)

CLOCK_EPOCH = Path("/usr/lib/clock-epoch")


def main() -> int:
    """Prepare this node; prints what the daemon has to know."""
    print(json.dumps(prepare(Paths())))
    return 0


def prepare(paths: Paths) -> dict[str, Any]:
    """Bring every file in /run/kubermesh up to date.

    Returns `renew_in_s`, after how many seconds to do it again; for a machine that is not admitted, what it has to ask:
    `join` is the cluster's name.
    """
    me = identity.load(paths, time.time())
    tuning = identity.read_tuning(paths)
    if me is None:
        # Of a seed that was removed: on a disk that is erased one day it would begin the cluster a second time.
        seed_credential.give_up(paths)
        join = identity.read_join(paths)
        assert join is not None  # noqa: S101 - checked by load
        return {"join": join.name, "ignored_ports": tuning.ignored_ports, "probe_scale": tuning.probe_scale}
    versions = read_versions(paths)
    paths.run.mkdir(mode=0o755, parents=True, exist_ok=True)
    now, is_back = clock.look(paths, image_time(paths), me.role.last_seen)
    identity.remember_time(paths, me.role, now, is_back=is_back)
    node = dataclasses.replace(
        make_facts(me, tuning, versions["image"]),
        fingerprint=pki.private_key_fingerprint(identity.read_secret(paths, "identity.key")),
        certificate=pki.fingerprint(identity.read_secret(paths, "identity.crt")),
    )
    _make_folders(paths, node)
    due = _issue(paths, me, node, tuning, datetime.datetime.fromtimestamp(now, datetime.UTC))
    secrets = {name: identity.read_secret(paths, name) for name in (SECRET_FILES if node.controls else ())}
    current = settings.load(paths.settings).current.arguments
    inputs = render.Inputs(node, me.cluster, tuning, versions, secrets, current, me.role.initial_cluster, run=paths.run)
    for file in render.render_all(paths.templates, inputs):
        _place(paths, file)
    ssh.prepare(paths, me.cluster.ssh_authorized_keys)
    # Last: where it exists, everything it speaks of does.
    facts.save(paths.facts, node)
    return {"renew_in_s": round(due, 1)}


def _issue(paths: Paths, me: Identity, node: Facts, tuning: Tuning, moment: datetime.datetime) -> float:
    """Issue what this node can sign itself, lay out what it was given; returns seconds until the next is due."""
    if not node.controls:
        return certificates.lay_out_worker(paths, moment)
    first_services = [str(address) for address in me.cluster.plan.kubernetes]
    wanted = certificates.leaves(node, (first_services[0], first_services[1]))
    due = certificates.issue_all(paths, wanted, moment, tuning.certificate_days)
    return (due - moment).total_seconds()


def make_facts(me: Identity, tuning: Tuning, image: str) -> Facts:
    """Work out a node's facts from its identity and the address plan."""
    plan, number = me.cluster.plan, me.role.number
    uuid = machine.uuid()
    mine = {me.role.name, uuid}
    return Facts(
        cluster=me.cluster.name,
        name=me.role.name,
        number=number,
        role=me.role.role,
        prefix=str(plan.prefix),
        address=str(plan.node(number)),
        address4=str(plan.node4(number)),
        pods=str(plan.pods(number)),
        pods4=str(plan.pods4(number)),
        services=str(plan.services),
        services4=str(plan.services4),
        api=str(plan.api),
        join=str(plan.join),
        dns=str(plan.dns),
        dns4=str(plan.dns4),
        image=image,
        cluster_id=me.role.cluster_id,
        epoch=me.role.epoch,
        began=me.role.role == "voter" and not me.role.initial_cluster,
        probe_scale=tuning.probe_scale,
        ssh=bool(me.cluster.ssh_authorized_keys),
        uuid=uuid,
        voters=me.cluster.wanted_voters,
        voter_grace_s=me.cluster.voter_grace_s,
        auto_recover_after_s=me.cluster.auto_recover_after_s if me.cluster.auto_recover == "witness" else 0.0,
        admission=me.cluster.admission.policy,
        allowlist=tuple(me.cluster.admission.allowlist),
        ignored_ports=tuple(tuning.ignored_ports),
        gateways=tuple(
            msgspec.to_builtins(one)
            for one in me.cluster.egress.gateways
            if one.node in mine or one.node.lower() == uuid
        ),
        discover_gateways=me.cluster.egress.discover,
        provision=me.cluster.provision,
    )


def read_versions(paths: Paths) -> dict[str, str]:
    """Read which versions are in this image."""
    try:
        versions: dict[str, str] = json.loads(paths.versions.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{paths.versions}: {error}", "this image is broken") from error
    return versions


def image_time(paths: Paths) -> float:
    """Return when this image was built, in seconds since 1970: that is past."""
    return next((path.stat().st_mtime for path in (CLOCK_EPOCH, paths.versions) if path.exists()), 0.0)


def _make_folders(paths: Paths, node: Facts) -> None:
    paths.manifests.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not node.controls:
        for path in paths.manifests.glob("*.yaml"):
            path.unlink()
        # Keys that it was given while it was more than a worker.
        for path in (paths.config, *(one for one in paths.pki.glob("*") if one.name != "kubelet")):
            shutil.rmtree(path, ignore_errors=True)
        return
    for path, uid in ((paths.state / "etcd", UIDS["etcd"]), (paths.audit, UIDS["kube-apiserver"])):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chown(path, uid, uid)
    for component in ("kube-apiserver", "kube-controller-manager", "kube-scheduler"):
        certificates.make_folder(paths.config / component, UIDS[component])


def _place(paths: Paths, file: render.File) -> None:
    target = paths.run / file.path
    target.parent.mkdir(parents=True, exist_ok=True)
    write_if_changed(target, file.content, file.mode, file.uid)

"""A node's files, made from a real cluster directory: identity, certificates, configuration."""

import asyncio
import contextlib
import datetime
import json
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from kmagent import clock, components, daemon, enrol, identity, identity_files, prepare, seed_credential, settings
from kmagent.paths import Paths
from kmbuild.init import create
from kmplan import pki, recovery, seal
from kmplan.cluster import ClusterFile
from kmplan.errors import UserError
from kmplan.secret_files import SECRET_FILES
from kmplan.seed import make_bundle, parse_join

TEMPLATES = Path(__file__).parents[2] / "overlays/node"
VERSIONS = {"image": "0.1.0", "kubernetes": "1.37.2", "etcd": "3.6.16", "coredns": "1.15.0"}


class Machine:
    """A machine's folders, and what it is given at power on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cluster = folder / "shop"
        create(self.cluster, ClusterFile(version=1, name="shop", prefix="fd12:3456:789a::/48"))
        (folder / "credentials").mkdir()
        (folder / "versions.json").write_text(json.dumps(VERSIONS))
        self.paths = Paths(
            run=folder / "run/kubermesh",
            state=folder / "state",
            templates=TEMPLATES,
            manifests=folder / "run/manifests",
            versions=folder / "versions.json",
            audit=folder / "audit",
        )
        self.seed(1, "shop-1")

    def seed(self, number: int, name: str) -> None:
        (self.folder / "credentials/kubermesh.seed").write_bytes(make_bundle(self.cluster, number, name))

    def tune(self, tuning: dict[str, Any]) -> None:
        (self.folder / "credentials/kubermesh.tuning").write_text(json.dumps(tuning))

    def files(self) -> dict[str, tuple[int, bytes]]:
        found = (path for path in self.paths.run.rglob("*") if path.is_file())
        return {str(path): (path.stat().st_ino, path.read_bytes()) for path in found}

    def manifest(self, name: str) -> dict[str, Any]:
        pod: dict[str, Any] = yaml.safe_load((self.paths.staged / f"{name}.yaml").read_text())
        return pod


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    for name in components.UIDS:
        monkeypatch.setitem(components.UIDS, name, os.getuid())
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    # It boots from a disk of its own, whose EFI system partition is a folder here.
    (tmp_path / "esp/loader/credentials").mkdir(parents=True)
    monkeypatch.setattr(seed_credential.home_disk, "root_drive", lambda: "vda")
    monkeypatch.setattr(seed_credential.home_disk, "partition_of", lambda drive, label: f"{drive} {label}")
    # What systemd-creds(1) makes of it is not looked into.
    monkeypatch.setattr(seed_credential, "run", lambda _, **given: SimpleNamespace(stdout=given["input"].decode()))
    monkeypatch.setattr(seed_credential, "mounted", lambda *_: contextlib.nullcontext(tmp_path / "esp"))
    return Machine(tmp_path)


def test_the_second_boot_needs_no_seed_and_is_the_same_node(machine: Machine) -> None:
    prepare.prepare(machine.paths)
    first = json.loads(machine.paths.facts.read_text())
    identity = (machine.paths.state / "identity.crt").read_bytes()
    (machine.folder / "credentials/kubermesh.seed").unlink()
    prepare.prepare(machine.paths)
    assert json.loads(machine.paths.facts.read_text()) == first
    assert (machine.paths.state / "identity.crt").read_bytes() == identity
    assert first["address"] == "fd12:3456:789a::1"


def test_preparing_again_writes_nothing(machine: Machine) -> None:
    prepare.prepare(machine.paths)
    before = machine.files()
    renew_in_s = prepare.prepare(machine.paths)["renew_in_s"]
    assert machine.files() == before
    assert 50 * 86400 < renew_in_s < 61 * 86400


def test_a_due_certificate_is_issued_again_and_others_are_kept(machine: Machine) -> None:
    prepare.prepare(machine.paths)
    folder = machine.paths.pki / "kubelet"
    old, other = (folder / "client.crt").read_text(), (machine.paths.pki / "agent/client.crt").read_text()
    authority = pki.Pair(*((machine.cluster / f"pki/cluster-ca.{kind}").read_text() for kind in ("crt", "key")))
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=70)
    (folder / "client.crt").unlink()
    (folder / "client.crt").write_text(pki.issue(authority, pki.Subject("old"), 90, past).certificate)
    prepare.prepare(machine.paths)
    assert (folder / "client.crt").read_text() != old
    assert "old" not in (folder / "client.crt").read_text()
    assert (machine.paths.pki / "agent/client.crt").read_text() == other


def test_a_crash_between_key_and_certificate_is_mended(machine: Machine) -> None:
    prepare.prepare(machine.paths)
    folder = machine.paths.pki / "etcd"
    (folder / ".peer.made-for").unlink()
    old = (folder / "peer.crt").read_text()
    prepare.prepare(machine.paths)
    assert (folder / "peer.crt").read_text() != old


def test_a_seed_for_another_node_or_cluster_is_refused(machine: Machine) -> None:
    prepare.prepare(machine.paths)
    machine.seed(2, "shop-2")
    with pytest.raises(UserError, match=r"^the seed is for node 2 \(shop-2\), but this disk is node 1 \(shop-1\)$"):
        prepare.prepare(machine.paths)
    machine.cluster = machine.folder / "other"
    create(machine.cluster, ClusterFile(version=1, name="other", prefix="fd12:3456:789b::/48"))
    machine.seed(1, "shop-1")
    with pytest.raises(UserError, match=r"^the seed is of cluster other, but this disk belongs to another one"):
        prepare.prepare(machine.paths)


def test_a_seed_that_was_removed_does_not_begin_the_cluster_again(machine: Machine) -> None:
    """Its credential is still there once: it asks to be admitted like any other, and may become another node."""
    prepare.prepare(machine.paths)
    identity_files.put_aside(machine.paths.state, everything=True)
    credentials = machine.folder / "esp/loader/credentials"
    (credentials / "kubermesh.seed.cred").write_text("all keys")
    for _ in range(2):
        assert prepare.prepare(machine.paths)["join"] == "shop"
        assert [path.name for path in credentials.iterdir()] == ["kubermesh.join.cred"]
    assert not (machine.paths.state / "babel.key").exists()
    shutil.rmtree(machine.paths.state)
    prepare.prepare(machine.paths)
    assert (machine.paths.state / "role.json").exists()


def test_a_seed_that_votes_no_more_is_not_given_the_secrets_again(machine: Machine) -> None:
    prepare.prepare(machine.paths)
    me = identity.load(machine.paths, time.time())
    assert me is not None
    enrol.take_role(machine.paths, me, "worker", {})
    assert identity.load(machine.paths, time.time()) is not None
    left = {str(path.relative_to(machine.paths.state)) for path in machine.paths.state.rglob("*.key") if path.is_file()}
    assert left == {"identity.key"}
    assert (machine.paths.state / "pki/cluster-ca.crt").exists()
    # Nor has it those that components and the agent were given in memory.
    prepare.prepare(machine.paths)
    kept = [path.relative_to(machine.paths.pki) for path in machine.paths.run.rglob("*.key") if path.is_file()]
    assert kept == [Path("kubelet/client.key")]
    assert not machine.paths.config.exists()


def test_a_node_that_never_voted_puts_no_data_aside(machine: Machine) -> None:
    """The folder is made at each boot: empty ones would take the place of those that are kept."""
    prepare.prepare(machine.paths)
    me = identity.load(machine.paths, time.time())
    assert me is not None
    (machine.paths.state / "etcd/member").mkdir()
    for _ in range(3):
        me = identity.Identity(cluster=me.cluster, role=enrol.take_role(machine.paths, me, "worker", {}))
        (machine.paths.state / "etcd").mkdir(exist_ok=True)
    (kept,) = machine.paths.state.glob("etcd.removed-*")
    assert (kept / "member").exists()


def test_a_new_voter_has_the_settings_of_the_others_from_the_first_moment_on(machine: Machine) -> None:
    """Its etcd refuses to write, and with it all of them, when it has a smaller quota than there is data."""
    prepare.prepare(machine.paths)
    me = identity.load(machine.paths, time.time())
    assert me is not None
    me = identity.Identity(cluster=me.cluster, role=enrol.take_role(machine.paths, me, "worker", {}))
    files = json.dumps(dict.fromkeys(SECRET_FILES, "secret"))
    quota = {"etcd": {"quota-backend-bytes": "4294967296"}}
    certificate = identity.read_secret(machine.paths, "identity.crt")
    sealed = seal.seal(files.encode(), certificate)
    enrol.take_role(machine.paths, me, "standby", {"sealed": sealed, "initial_cluster": "a=b", "settings": quota})
    assert settings.load(machine.paths.settings).current.arguments == quota


def test_a_seed_that_votes_no_more_leaves_no_key_where_it_boots_from(machine: Machine) -> None:
    """Instead its disk has what any other machine is given: which cluster this is, and where it lives."""
    prepare.prepare(machine.paths)
    me = identity.load(machine.paths, time.time())
    assert me is not None
    credentials = machine.folder / "esp/loader/credentials"
    (credentials / "kubermesh.seed.cred").write_text("all keys")
    order = recovery.to_text(
        recovery.Order(me.role.cluster_id, 1, me.role.number, recovery.OWN_DATA, sealed="all keys")
    )
    machine.paths.order.write_text(recovery.pack(order, ""))
    for _ in range(2):
        me = identity.Identity(cluster=me.cluster, role=enrol.take_role(machine.paths, me, "worker", {}))
        assert not machine.paths.order.exists()
        (sealed,) = credentials.iterdir()
        assert sealed.name == "kubermesh.join.cred"
    join = parse_join(sealed.read_bytes())
    assert (join.name, join.authority) == ("shop", identity.read_secret(machine.paths, "pki/node-ca.crt"))


def test_giving_the_secrets_up_goes_on_after_a_power_cut(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A voter without its secrets would not start: what the node is comes first."""
    prepare.prepare(machine.paths)
    me = identity.load(machine.paths, time.time())
    assert me is not None
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(enrol, "retire", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        enrol.take_role(machine.paths, me, "worker", {})
    prepare.prepare(machine.paths)
    me = identity.load(machine.paths, time.time())
    assert me is not None and me.role.role == "worker" and (machine.paths.state / "encryption.key").exists()
    enrol.take_role(machine.paths, me, "worker", {})
    assert not (machine.paths.state / "encryption.key").exists()


def test_secrets_that_came_in_part_make_no_voter(machine: Machine) -> None:
    """The power went while they were written: they are asked for again."""
    prepare.prepare(machine.paths)
    me = identity.load(machine.paths, time.time())
    assert me is not None
    me = identity.Identity(cluster=me.cluster, role=enrol.take_role(machine.paths, me, "worker", {}))
    (machine.paths.state / "encryption.key").write_text("of the answer before")
    assert enrol.take_role(machine.paths, me, "standby", {"member": "7"}).role == "worker"
    assert not (machine.paths.state / "encryption.key").exists()


def test_a_voter_that_shall_be_a_standby_was_replaced_and_begins_anew(machine: Machine) -> None:
    """It saw nothing of its removal; etcd does not start with the data of a member that was removed."""
    prepare.prepare(machine.paths)
    (machine.paths.state / "etcd/member").mkdir()
    me = identity.load(machine.paths, time.time())
    assert me is not None
    assert enrol.take_role(machine.paths, me, "standby", {}).role == "worker"
    now = identity.load(machine.paths, time.time())
    assert now is not None and (now.role.role, now.role.initial_cluster) == ("worker", "")
    assert not (machine.paths.state / "encryption.key").exists()
    assert not (machine.paths.state / "etcd").exists()


def test_a_machine_without_seed_or_identity_says_so(machine: Machine) -> None:
    (machine.folder / "credentials/kubermesh.seed").unlink()
    with pytest.raises(UserError, match=r"^no seed credential and nothing in /var/lib/kubermesh"):
        prepare.prepare(machine.paths)


def test_secrets_are_private(machine: Machine) -> None:
    prepare.prepare(machine.paths)
    keys = [path for path in machine.folder.rglob("*.key") if path.is_file()]
    assert len(keys) > 20
    assert [path for path in keys if path.stat().st_mode & 0o077] == []
    encryption = machine.paths.config / "kube-apiserver/encryption.yaml"
    assert encryption.stat().st_mode & 0o777 == 0o400
    assert (machine.paths.state / "etcd").stat().st_mode & 0o777 == 0o700


YEAR = 365 * 86400.0


class Clock:
    """The machine's clock: it can be set, by the agent as well, and what counts since the start goes on."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.ahead_s = 0.0
        real = time.time
        patch.setattr(clock, "in_container", lambda: False)
        patch.setattr(time, "time", lambda: real() + self.ahead_s)
        patch.setattr(time, "clock_settime", lambda _, moment: setattr(self, "ahead_s", moment - real()))


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def last_seen(machine: Machine) -> float:
    return float(json.loads((machine.paths.state / "role.json").read_text())["last_seen"])


def begins(machine: Machine) -> float:
    return pki.validity((machine.paths.pki / "etcd/server.crt").read_text())[0].timestamp()


def reboot(machine: Machine) -> None:
    shutil.rmtree(machine.paths.run)


def test_a_clock_that_was_lost_is_set_to_what_this_node_has_seen(machine: Machine, wall: Clock) -> None:
    prepare.prepare(machine.paths)
    assert not clock.may_follow(machine.paths)
    seen = last_seen(machine)
    reboot(machine)
    wall.ahead_s = -50 * YEAR
    prepare.prepare(machine.paths)
    assert abs(wall.ahead_s) < 5 and last_seen(machine) >= seen
    # It may be behind by as much as the machine was off: others know better.
    assert clock.may_follow(machine.paths)
    prepare.prepare(machine.paths)
    assert clock.may_follow(machine.paths)


def test_a_seed_without_a_clock_begins_no_sooner_than_its_cluster_was_made(machine: Machine, wall: Clock) -> None:
    """Its own certificates begin then: etcd and the API server would believe none of them."""
    os.utime(machine.paths.versions, (0, 0))
    wall.ahead_s = -50 * YEAR
    prepare.prepare(machine.paths)
    made = pki.validity(identity.read_secret(machine.paths, "pki/cluster-ca.crt"))[0].timestamp()
    assert abs(time.time() - made) < 60 and last_seen(machine) >= int(made)
    assert pki.validity(identity.read_secret(machine.paths, "identity.crt"))[0].timestamp() <= time.time()


@pytest.mark.parametrize("while_it_runs", [True, False])
def test_a_clock_that_was_ahead_leaves_nothing_behind(machine: Machine, wall: Clock, while_it_runs: bool) -> None:
    prepare.prepare(machine.paths)
    if not while_it_runs:
        reboot(machine)
    wall.ahead_s = YEAR
    prepare.prepare(machine.paths)
    # It has to be taken for right: its certificates are of that time.
    assert last_seen(machine) > time.time() - 60 and begins(machine) > time.time() - 3 * 3600
    assert not clock.may_follow(machine.paths)
    wall.ahead_s = 0.0
    prepare.prepare(machine.paths)
    assert wall.ahead_s == 0.0 and abs(last_seen(machine) - time.time()) < 60
    assert time.time() - 3 * 3600 < begins(machine) <= time.time()
    reboot(machine)
    prepare.prepare(machine.paths)
    assert wall.ahead_s == 0.0 and begins(machine) <= time.time()


@pytest.mark.parametrize("by_s", [YEAR, -YEAR])
def test_certificates_are_looked_at_when_somebody_sets_the_clock(
    wall: Clock, monkeypatch: pytest.MonkeyPatch, by_s: float
) -> None:
    monkeypatch.setattr(daemon, "CLOCK_S", 0.01)

    async def scenario() -> None:
        pause = asyncio.create_task(daemon._pause(3600.0))
        await asyncio.sleep(0.05)
        assert not pause.done()
        wall.ahead_s = by_s
        await asyncio.wait_for(pause, 5.0)
        await asyncio.wait_for(daemon._pause(0.02), 5.0)

    asyncio.run(scenario())


def test_the_bench_may_change_timers(machine: Machine) -> None:
    machine.tune(
        {
            "kubelet": {"maxPods": 30, "crashLoopBackOff": {"maxContainerRestartPeriod": "60s"}},
            "arguments": {"etcd": {"heartbeat-interval": "500"}, "kubelet": {"housekeeping-interval": "60s"}},
            "environment": {"GOGC": "200"},
            "containerd": "version = 3\n",
            "probe_scale": 4.0,
        }
    )
    prepare.prepare(machine.paths)
    etcd = machine.manifest("etcd")["spec"]["containers"][0]
    assert "--heartbeat-interval=500" in etcd["command"]
    assert {"name": "GOGC", "value": "200"} in etcd["env"]
    assert etcd["livenessProbe"]["periodSeconds"] == 40
    kubelet = yaml.safe_load((machine.paths.run / "kubelet/config.yaml").read_text())
    assert (kubelet["maxPods"], kubelet["crashLoopBackOff"]["maxContainerRestartPeriod"]) == (30, "60s")
    assert "--housekeeping-interval=60s" in (machine.paths.run / "kubelet/environment").read_text()
    assert (machine.paths.run / "environment").read_text() == 'GOGC="200"\n'
    assert "tuning.toml" in (machine.paths.run / "containerd/config.toml").read_text()


def test_login_exists_only_with_keys(machine: Machine) -> None:
    prepare.prepare(machine.paths)
    assert not (machine.paths.state / "ssh").exists()
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAqk me@desk"
    text = (machine.cluster / "cluster.yaml").read_text()
    (machine.cluster / "cluster.yaml").write_text(text.replace("keys: []", f"keys: ['{key}']"))
    machine.seed(1, "shop-1")
    prepare.prepare(machine.paths)
    assert (machine.paths.state / "ssh/authorized_keys").read_text() == f"{key}\n"
    assert (machine.paths.state / "ssh/ssh_host_ed25519_key").read_text().startswith("-----BEGIN OPENSSH PRIVATE KEY")

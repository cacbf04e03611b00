"""Joining: what the join API says to whom, what a machine takes of it, and what is left when it has to go."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from agent_fakes import FACTS, MESH_KEY, PREFIX, EtcdMember, Machine, Shop
from cryptography import x509

from kmagent import candidates, identity, identity_files, join, join_api, ledger, network, registry
from kmagent.candidates import Report
from kmagent.http_server import Answer, Request
from kmagent.join_api import JoinApi
from kmagent.ledger import IDENTITIES
from kmagent.paths import Paths
from kmplan import files, pki, seal
from kmplan.errors import UserError
from kmplan.secret_files import SECRET_FILES
from kmplan.seed import JoinBundle


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    made = Shop(tmp_path / "shop")
    asyncio.run(made.begin())
    return made


class Door:
    """The join API of a cluster, with a policy; `to` asks it."""

    def __init__(self, shop: Shop, policy: str = "approve", away: int = 0, **facts: Any) -> None:
        self.api = JoinApi(replace(FACTS, admission=policy, **facts), shop.paths, shop.ledger, lambda one: one != away)

    def to(
        self, path: str, data: Any = None, peer: str = "fd12::7", certificate: str = "", pem: str = ""
    ) -> tuple[int, Any]:
        """Ask; returns the status, and the answer as data or text."""
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        method = "GET" if path == "/v1/registry" else "POST"
        answer: Answer = asyncio.run(self.api.handle(Request(method, path, body, peer, certificate, pem=pem)))
        if answer.content_type == "application/json":
            return answer.status, json.loads(answer.body)
        return answer.status, answer.body.decode()

    def join(self, machine: Machine, **changes: Any) -> tuple[int, Any]:
        return self.to("/v1/join", {"version": 1, "cluster": "shop", "csr": machine.csr, "uuid": "4C4C", **changes})


def waiting(shop: Shop) -> dict[str, Any]:
    return asyncio.run(shop.ledger.asked())


def decide(shop: Shop, machine: Machine, decision: str) -> None:
    asyncio.run(shop.ledger.note_asked({**waiting(shop)[machine.fingerprint], "decision": decision}))


@pytest.mark.parametrize(
    ("request_", "status", "said"),
    [
        (b"", 400, "Expecting value"),
        (b"\xff", 400, "decode"),
        (b"[" * 16_000, 400, "recursion"),
        (b"[]", 400, "expected a JSON object with version 1"),
        ({"version": 1, "cluster": "shop"}, 400, "csr: expected PEM"),
        ({"version": 1, "cluster": "shop", "csr": "x" * 2049}, 400, "csr: expected PEM of at most 2048 bytes"),
        ({"version": 1, "cluster": "shop", "csr": "hello"}, 400, "PEM"),
        ({"version": 1, "cluster": "shop", "csr": "\ud800"}, 400, "encode"),
        ({"version": 1, "cluster": "stop", "csr": "hello"}, 403, "this is cluster shop"),
    ],
)
def test_a_wrong_request_is_refused_with_its_reason_and_nothing_is_kept(
    shop: Shop, request_: Any, status: int, said: str
) -> None:
    before = dict(shop.etcd.values)
    answer = Door(shop, "auto").to("/v1/join", request_)
    assert answer[0] == status and said in answer[1]
    assert shop.etcd.values == before


def test_a_machine_that_was_a_node_waits_until_that_is_taken_out(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its disk was lost, and its key with it. What is the same is the UUID, which may be another machine's, too."""
    node, machine = asyncio.run(shop.admit(Machine())), Machine()
    door = Door(shop, "auto", away=node.number)
    assert door.join(machine)[0] == 202
    assert waiting(shop)[machine.fingerprint]["replaces"] == node.number
    asyncio.run(shop.ledger.remove(node.number))
    assert door.join(machine, wish=node.number)[1]["number"] == node.number
    # The way to it may only seem to be there for a moment longer: whoever has the same UUID waits a little.
    twin, door = Machine(), Door(shop, "auto")
    assert door.join(twin)[0] == 202
    monkeypatch.setattr(join_api, "TWIN_S", -1.0)
    assert door.join(twin)[1]["number"] == node.number + 1


def test_a_machine_without_a_disk_is_let_in_again_by_its_uuid(shop: Shop) -> None:
    """It has a new key at every boot; who approved it once is not asked again. One with a disk is."""
    door, first = Door(shop), Machine()
    assert door.join(first, diskless=True)[0] == 202
    decide(shop, first, "Approved")
    node = door.join(first, diskless=True)[1]["number"]
    door, again = Door(shop, away=node), Machine()
    assert door.join(again)[0] == 202 and "replaces" not in waiting(shop)[again.fingerprint]
    assert door.join(again, diskless=True)[0] == 202
    assert waiting(shop)[again.fingerprint]["replaces"] == node
    registered = asyncio.run(shop.ledger.registry())[0].find(number=node)
    assert registered is not None and registered.diskless
    # A person's no is stronger.
    denied = Machine()
    assert door.join(denied, diskless=True)[0] == 202
    decide(shop, denied, "Denied")
    assert door.join(denied, diskless=True)[0] == 403
    # The leading node takes out what it was, and then it is let in.
    asyncio.run(shop.ledger.remove(node))
    assert door.join(again, diskless=True)[0] == 200
    assert door.join(Machine(), diskless=True)[0] == 202


def test_nobody_is_let_in_by_the_uuid_of_a_machine_that_is_there(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(join_api, "TWIN_S", -1.0)
    door, first, twin = Door(shop), Machine(), Machine()
    door.join(first, diskless=True)
    decide(shop, first, "Approved")
    assert door.join(first, diskless=True)[0] == 200
    for _ in range(3):
        assert door.join(twin, diskless=True)[0] == 202
    assert "replaces" not in waiting(shop)[twin.fingerprint]


def test_a_machine_without_a_disk_to_live_on_is_no_node_whatever_the_policy(shop: Shop) -> None:
    door, machine = Door(shop, "auto"), Machine()
    assert door.join(machine, blocked="sda holds ntfs")[0] == 202
    decide(shop, machine, "Approved")
    assert door.join(machine, blocked="sda holds ntfs")[1]["state"] == "pending"
    asyncio.run(shop.ledger.note_asked({**waiting(shop)[machine.fingerprint], "wipe": True}))
    assert door.join(machine, blocked="sda holds ntfs") == (202, {"state": "wipe", "fingerprint": machine.fingerprint})
    # It has wiped its disk, and comes again with the same key.
    assert door.join(machine)[0] == 200
    assert door.join(Machine(), blocked="x" * 301)[0] == 400


def test_a_node_says_how_it_is_and_a_stranger_does_not(shop: Shop) -> None:
    node, door = asyncio.run(shop.admit(Machine())), Door(shop)
    report = {"neighbours": [1, 3], "up_s": 12.5, "free_bytes": 10**10, "offers": {"eth1": "fetching, 40 %"}}
    assert door.to("/v1/report", report, certificate=node.certificate)[0] == 200
    for bad in ({"eth1": "\x1b[2J"}, {"eth1": "x" * 81}, {"eth1": 7}, ["eth1"], {f"eth{n}": "x" for n in range(65)}):
        with pytest.raises(ValueError, match="offers"):
            candidates.from_text(json.dumps({**report, "offers": bad}))
    assert door.to("/v1/report", {"neighbours": "all"}, certificate=node.certificate)[0] == 400
    assert door.to("/v1/report", report)[0] == door.to("/v1/report", report, certificate="c9" * 32)[0] == 403
    said = Report(frozenset({1, 3}), 12.5, 10**10, {"eth1": "fetching, 40 %"})
    assert asyncio.run(shop.ledger.reports()) == {node.number: said}
    asyncio.run(shop.ledger.remove(node.number))
    assert asyncio.run(shop.ledger.reports()) == {}


def test_a_machine_waits_until_somebody_says_yes(shop: Shop) -> None:
    door, machine = Door(shop), Machine()
    for _ in range(2):
        assert door.join(machine) == (202, {"state": "pending", "fingerprint": machine.fingerprint})
    assert waiting(shop)[machine.fingerprint]["uuid"] == "4c4c"
    decide(shop, machine, "Denied")
    assert door.join(machine) == (403, {"state": "denied", "fingerprint": machine.fingerprint})
    assert waiting(shop)[machine.fingerprint]["decision"] == "Denied"
    decide(shop, machine, "Approved")
    status, answer = door.join(machine, wish=5)
    assert (status, answer["state"], answer["number"], answer["name"]) == (200, "admitted", 5, "shop-5")
    assert waiting(shop)[machine.fingerprint]["decision"] == ""


@pytest.mark.parametrize(
    ("policy", "uuid", "status"), [("auto", "", 200), ("allowlist", "4c4c", 200), ("allowlist", "5d5d", 202)]
)
def test_the_policy_admits_at_once_or_lets_wait(shop: Shop, policy: str, uuid: str, status: int) -> None:
    assert Door(shop, policy, allowlist=("4C4C",)).join(Machine(), uuid=uuid)[0] == status


def test_a_machine_that_repeats_its_request_is_written_down_now_and_then_only(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    door, machine = Door(shop), Machine()
    noted = []
    for moment in (1000.0, 1002.0, 1059.0, 1061.0):
        monkeypatch.setattr("time.time", lambda moment=moment: moment)
        door.join(machine)
        noted.append(waiting(shop)[machine.fingerprint]["last_seen"])
    assert noted == [1000.0, 1000.0, 1000.0, 1061.0]
    assert waiting(shop)[machine.fingerprint]["first_seen"] == 1000.0


def test_a_replayed_request_gives_secrets_to_nobody_but_the_machine(shop: Shop) -> None:
    door, machine = Door(shop, "auto"), Machine()
    first = door.join(machine)[1]
    again = door.join(machine, wish=9)[1]
    assert (again["number"], again["certificate"]) == (first["number"], first["certificate"])
    secrets = [MESH_KEY, *((shop.paths.state / name).read_text().strip() for name in SECRET_FILES if "crt" not in name)]
    assert not [secret for secret in secrets if secret in json.dumps(again) or secret in again["sealed"]]
    assert json.loads(seal.unseal(again["sealed"], machine.key)) == {"mesh_keys": {"1": MESH_KEY}}
    with pytest.raises(ValueError):
        seal.unseal(again["sealed"], Machine().key)


def test_only_so_many_machines_wait(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "MAX_ASKED", 1)
    door = Door(shop)
    assert [door.join(Machine())[0] for _ in range(2)] == [202, 429]


def test_one_who_asks_too_often_does_not_keep_others_out(shop: Shop) -> None:
    door = Door(shop)
    statuses = [door.to("/", peer="fd12::7")[0] for _ in range(60)]
    assert set(statuses[:40]) == {404} and statuses[-1] == 429
    assert door.to("/", peer="fd12::8")[0] == 404
    assert [door.to("/", peer="fd12::7", certificate="c1" * 32)[0] for _ in range(60)] == [404] * 60


@pytest.mark.parametrize("certificate", ["", "ff" * 32])
@pytest.mark.parametrize("path", ["/v1/registry", "/v1/enrol"])
def test_who_is_no_node_gets_nothing_of_the_nodes(shop: Shop, path: str, certificate: str) -> None:
    assert Door(shop, "auto").to(path, {}, certificate=certificate) == (403, {"state": "unknown"})


def test_a_control_plane_without_etcd_says_so(shop: Shop) -> None:
    shop.etcd.down = True
    assert Door(shop).join(Machine()) == (503, "the control plane cannot answer now\n")


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 16_000])
def test_a_node_that_enrols_with_nonsense_is_told_so(shop: Shop, body: bytes) -> None:
    node = asyncio.run(shop.admit(Machine()))
    assert Door(shop).to("/v1/enrol", body, certificate=node.certificate)[0] == 400


def test_a_node_gets_registry_mesh_keys_and_a_kubelet_certificate_of_its_own_name(shop: Shop) -> None:
    node = asyncio.run(shop.admit(Machine()))
    door, kubelet = Door(shop), Machine()
    packed = shop.etcd.values[ledger.REGISTRY][0]
    assert door.to("/v1/registry", certificate=node.certificate) == (200, json.loads(packed))
    status, answer = door.to("/v1/enrol", {"kubelet": kubelet.csr}, certificate=node.certificate)
    assert (status, answer["role"], answer["registry"]) == (200, "worker", packed)
    assert answer["mesh_keys"] == {"1": MESH_KEY}
    certificate = answer["kubelet"]
    authority = (shop.paths.state / "pki/cluster-ca.crt").read_text()
    assert pki.is_issued_by(certificate, authority) and pki.matches(certificate, kubelet.key)
    subject = x509.load_pem_x509_certificate(certificate.encode()).subject.rfc4514_string()
    assert subject == "CN=system:node:shop-2,O=system:nodes"


@pytest.mark.parametrize(
    ("role", "is_member", "given"),
    [("worker", False, False), ("worker", True, False), ("standby", False, False), ("standby", True, True)],
)
def test_only_a_chosen_member_of_etcd_gets_the_control_planes_secrets(
    shop: Shop, role: str, is_member: bool, given: bool
) -> None:
    machine = Machine()
    node = asyncio.run(shop.admit(machine))
    asyncio.run(shop.ledger.change(lambda old: old.put(replace(node, role=role))))
    first = EtcdMember("1", network.peer_url(PREFIX, 1), "shop-1")
    second = EtcdMember("2", network.peer_url(PREFIX, 2), learner=True)
    shop.etcd.members = [first, second] if is_member else [first]
    pem = asyncio.run(shop.ledger.identity(node.fingerprint))
    # Of a seed's certificate there is no record.
    asyncio.run(shop.ledger.etcd.delete(IDENTITIES + node.fingerprint))
    answer = Door(shop).to("/v1/enrol", {"secrets": True}, certificate=node.certificate, pem=pem)[1]
    assert ("sealed" in answer) is given
    if given:
        secrets = json.loads(seal.unseal(answer["sealed"], machine.key))
        assert secrets == {name: (shop.paths.state / name).read_text() for name in SECRET_FILES}
        assert answer["initial_cluster"] == f"shop-1={first.url},shop-2={second.url}"


class Blank:
    """A machine's disk before it is admitted."""

    def __init__(self, folder: Path, shop: Shop) -> None:
        folder.mkdir()
        self.paths, self.machine = Paths(run=folder / "run", state=folder), Machine()
        self.bundle = JoinBundle(name="shop", authority=shop.authority.certificate)
        (folder / "identity.key").write_text(self.machine.key)
        (folder / "join.json").write_bytes(msgspec.json.encode(self.bundle))

    def files(self) -> set[str]:
        return {str(path.relative_to(self.paths.state)) for path in self.paths.state.rglob("*") if path.is_file()}

    def keep(self, answer: dict[str, Any]) -> None:
        join.keep(self.paths, self.bundle, self.machine.key, answer)


@pytest.fixture
def blank(shop: Shop, tmp_path: Path) -> Blank:
    return Blank(tmp_path / "blank", shop)


@pytest.fixture
def answer(shop: Shop, blank: Blank) -> dict[str, Any]:
    given: dict[str, Any] = Door(shop, "auto").join(blank.machine)[1]
    return given


def test_an_admitted_machine_keeps_all_that_makes_it_a_node(blank: Blank, answer: dict[str, Any]) -> None:
    blank.keep(answer)
    me = identity.load(blank.paths, 0)
    assert me is not None
    assert (me.role.number, me.role.name, me.role.role, me.cluster.name) == (2, "shop-2", "worker", "shop")
    assert json.loads(blank.paths.mesh_keys.read_text()) == {"1": MESH_KEY}
    known = registry.load(blank.paths.registry)
    assert known is not None and known.numbers == {1, 2}
    assert pki.matches((blank.paths.state / "identity.crt").read_text(), blank.machine.key)
    loose = [path for path in blank.paths.state.rglob("*") if path.is_file() and path.stat().st_mode & 0o077]
    assert [path.name for path in loose if path.name not in ("identity.key", "join.json")] == []


def forged(shop: Shop, machine: Machine, what: str) -> dict[str, Any]:
    """The part of the join API's answer that somebody forged, or mixed up."""
    other, stranger = pki.create_authority("another"), Machine()
    subject = pki.Subject("kubermesh:node:shop-2")
    match what:
        case "a certificate of another authority":
            return {"certificate": pki.certify(other, subject, machine.csr, 90)}
        case "a certificate of an authority with the same name":
            namesake = pki.create_authority("shop node-ca")
            return {"certificate": pki.certify(namesake, subject, machine.csr, 90)}
        case "a certificate for another key":
            return {"certificate": pki.certify(shop.authority, subject, stranger.csr, 90)}
        case "no certificate":
            return {"certificate": "hello"}
        case "a registry that another signed":
            text = registry.to_text(registry.Registry("shop"))
            return {"registry": registry.pack(text, pki.sign_text(other.key, text))}
        case "a registry with another's signature":
            text = registry.to_text(registry.Registry("shop", serial=99))
            return {"registry": registry.pack(text, registry.unpack(shop.etcd.values[ledger.REGISTRY][0])[1])}
        case "another node authority":
            return {"files": {"pki/cluster-ca.crt": other.certificate, "pki/node-ca.crt": other.certificate}}
        case "sealed to another":
            return {"sealed": seal.seal(b"{}", pki.certify(shop.authority, subject, stranger.csr, 90))}
        case "nothing sealed":
            return {"sealed": ""}
    raise AssertionError(what)


FORGERIES = [
    "a certificate of another authority", "a certificate of an authority with the same name",
    "a certificate for another key", "no certificate", "a registry that another signed",
    "a registry with another's signature", "another node authority", "sealed to another", "nothing sealed",
]  # fmt: skip


@pytest.mark.parametrize("what", FORGERIES)
def test_what_does_not_fit_is_refused_in_one_line_and_nothing_is_written(
    shop: Shop, blank: Blank, answer: dict[str, Any], what: str
) -> None:
    before = blank.files()
    with pytest.raises(UserError) as caught:
        blank.keep({**answer, **forged(shop, blank.machine, what)})
    assert "\n" not in str(caught.value)
    assert blank.files() == before == {"identity.key", "join.json"}


def test_a_machine_that_lost_power_while_it_was_admitted_asks_again(
    blank: Blank, answer: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was written before the power went, `role.json` was not."""
    for writes in range(6):
        budget = iter(range(writes))

        def write(*arguments: Any, budget: Iterator[int] = budget) -> None:
            if next(budget, None) is None:
                raise OSError("power cut")
            files.write(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr("kmagent.join.write", write)
            with pytest.raises(OSError):
                blank.keep(answer)
        assert identity.load(blank.paths, 0) is None
        kept = {name for name in blank.files() if not name.startswith("removed-")}
        assert kept == {"identity.key", "join.json"}
    blank.keep(answer)
    assert identity.load(blank.paths, 0) is not None


def test_what_makes_a_node_is_put_aside_role_first(
    blank: Blank, answer: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    blank.keep(answer)
    (blank.paths.state / "etcd/member").mkdir(parents=True)
    before, moved, rename = blank.files(), [], Path.rename

    def note(path: Path, target: Path) -> Path:
        moved.append(path.name)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", note)
    identity_files.put_aside(blank.paths.state, everything=True)
    assert moved[0] == "role.json"
    (aside,) = blank.paths.state.glob("removed-*")
    assert {path.name for path in blank.paths.state.iterdir()} == {aside.name, "join.json", "left.json"}
    assert {str(path.relative_to(aside)) for path in aside.rglob("*") if path.is_file()} == before - {"join.json"}
    assert aside.stat().st_mode & 0o077 == 0
    assert identity.load(blank.paths, 0) is None


def test_a_removal_that_was_interrupted_is_finished_at_the_next_start(
    blank: Blank, answer: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    blank.keep(answer)
    moved, rename = [], Path.rename

    def fail_at_third(path: Path, target: Path) -> Path:
        moved.append(path.name)
        if len(moved) == 3:
            raise OSError("power cut")
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail_at_third)
        with pytest.raises(OSError):
            identity_files.put_aside(blank.paths.state, everything=True)
    assert identity.load(blank.paths, 0) is None
    left = {name for name in blank.files() if not name.startswith("removed-")}
    assert left <= {"identity.key", "join.json", "left.json"}
    assert identity.load(blank.paths, 0) is None
    assert len([*blank.paths.state.glob("removed-*")]) == 2


@pytest.mark.parametrize(
    ("address", "number"),
    [
        ("fd12:3456:789a::7", 7),
        # A pod's, the cluster's own, another cluster's, a link's, and an old one.
        ("fd12:3456:789a:7::5", None),
        ("fd12:3456:789a::a:1", None),
        ("fd12:3456:789b::7", None),
        ("fe80::7%eth0", None),
        ("10.0.7.1", None),
    ],
)
def test_only_nodes_speak_for_machines_that_want_to_be_nodes(address: str, number: int | None) -> None:
    assert network.node_of("fd12:3456:789a::/48", address) == number

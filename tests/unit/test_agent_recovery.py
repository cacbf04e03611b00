"""Beginning a cluster anew: who may still be served, which orders are kept, and what a crash in between leaves."""

import asyncio
import base64
import contextlib
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from agent_fakes import FACTS, MESH_KEY, Shop

from kmagent import begin_anew, enrol, fence, identity, keep_order, snapshot_files, witness
from kmagent.components import UIDS
from kmagent.http_server import Answer, Request, Upload
from kmagent.identity import Identity, Role
from kmagent.join import check_registry
from kmagent.node_api import NodeApi
from kmagent.orders import Orders
from kmagent.peers import Peers
from kmagent.registry import Registry
from kmagent.state import State
from kmplan import pki, recovery, seal
from kmplan.errors import UserError
from kmplan.recovery import OWN_DATA, Order, Snapshot
from kmplan.secret_files import SECRET_FILES


def registry_of(nodes: int, voters: set[int]) -> Registry:
    known = Registry("shop")
    for number in range(1, nodes + 1):
        known = known.put(replace(Shop.node(number), role="voter" if number in voters else "worker"))
    return known


@pytest.mark.parametrize(
    ("nodes", "voters", "heard", "current"),
    [
        (1, {1}, {}, True),
        # A single voter cannot have been left behind by others.
        (5, {1}, {}, True),
        (3, {1, 2, 3}, {}, False),
        (3, {1, 2, 3}, {2: 1}, True),
        (5, {1, 2, 3}, {2: 1}, False),
        (5, {1, 2, 3}, {2: 1, 4: 1}, True),
        # All voters are here, and few others.
        (9, {1, 2, 3}, {2: 1, 3: 1}, True),
        (9, {1, 2, 3}, {2: 1, 3: 2}, False),
        (9, {1, 2, 3}, {2: 1}, False),
        (5, {1, 2, 3}, {2: 1, 3: 2, 4: 2, 5: 2}, False),
        # One alone that was told of an epoch which a majority never kept.
        (5, {1, 2, 3}, {2: 1, 3: 1, 5: 2}, True),
        # Who is not registered has no say.
        (5, {1, 2, 3}, {2: 1, 8: 1, 9: 1}, False),
    ],
)
def test_etcd_is_served_when_nothing_newer_can_have_begun(
    nodes: int, voters: set[int], heard: dict[int, int], current: bool
) -> None:
    assert fence.is_current(1, 1, registry_of(nodes, voters), heard) is current


def test_no_old_voter_is_served_once_a_majority_keeps_the_order() -> None:
    """Whoever of the others it hears, and whichever voter began anew."""
    random = Random(7)  # noqa: S311 - no secret
    for _ in range(5000):
        nodes = random.randint(3, 11)
        voters = set(random.sample(range(1, nodes + 1), random.choice([3, 5]) if nodes >= 5 else 3))
        survivor = random.choice(sorted(voters))
        keep = {survivor, *random.sample(range(1, nodes + 1), nodes // 2 + 1)}
        for me in voters - keep:
            heard = {one: 2 if one in keep else 1 for one in range(1, nodes + 1) if random.random() < 0.7 and one != me}
            assert not fence.is_current(me, 1, registry_of(nodes, voters), heard), (nodes, voters, keep, heard)


class Node:
    """Node 3 of the cluster `shop`, as its disk is."""

    def __init__(self, folder: Path) -> None:
        self.shop = Shop(folder / "shop")
        self.paths = replace(self.shop.paths, run=folder / "run")
        self.paths.run.mkdir()
        self.cluster_id = pki.fingerprint((self.paths.state / "pki/cluster-ca.crt").read_text())
        key = pki.create_key()
        certificate = pki.certify(self.shop.authority, pki.Subject("node"), pki.create_request(key, "node"), 90)
        (self.paths.state / "identity.key").write_text(key)
        (self.paths.state / "identity.crt").write_text(certificate)
        identity.write_role(self.paths, Role(cluster_id=self.cluster_id, number=3, name="shop-3", role="standby"))
        (self.paths.etcd / "member/snap").mkdir(parents=True)
        (self.paths.etcd / "member/snap/db").write_bytes(b"old")

    def order(self, **changes: Any) -> str:
        order = replace(Order(self.cluster_id, 2, 3, OWN_DATA), **changes)
        text = recovery.to_text(order)
        return recovery.pack(text, pki.sign_text(self.shop.authority.key, text))

    @property
    def role(self) -> Role:
        role = identity.read_role(self.paths)
        assert role
        return role


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    return Node(tmp_path)


def test_a_signed_order_is_kept_and_an_older_one_does_not_replace_it(node: Node) -> None:
    assert keep_order.keep(node.paths, node.order(epoch=3)) == {"state": "kept", "epoch": 3}
    for epoch in (2, 3):
        with pytest.raises(UserError, match=f"^the order is for epoch {epoch}, and this node knows of 3$"):
            keep_order.keep(node.paths, node.order(epoch=epoch, number=1))
    orders = Orders(State(), node.paths, FACTS)
    assert orders.newest and (orders.newest.number, orders.epoch, orders.overtaken) == (3, 3, True)


def test_an_order_that_is_not_the_admins_is_refused(node: Node) -> None:
    order = json.loads(node.order())
    other = pki.create_authority("other")
    for wrong, why in (
        ("{}", "^not an order to begin anew"),
        (json.dumps({**order, "order": order["order"].replace('"number":3', '"number":1')}), "not signed"),
        (recovery.pack(order["order"], pki.sign_text(other.key, order["order"])), "not signed"),
        (node.order(cluster="another"), "for another cluster"),
        (node.order(epoch="7"), "a value of another type"),
    ):
        with pytest.raises(UserError, match=why):
            keep_order.keep(node.paths, wrong)
    assert not node.paths.order.exists()


class Crash(Exception):  # noqa: N818 - not an error of the program
    """The power goes."""


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Stands for etcdutl, which is the image's; what it was given, each time."""
    given: list[bytes] = []

    def restore(source: Path, target: Path, me: Identity, order: Order) -> None:
        given.append(source.read_bytes())
        (target / "member").mkdir(parents=True)
        (target / "member/new").write_bytes(given[-1])

    monkeypatch.setattr(begin_anew, "restore", restore)
    for name in UIDS:
        monkeypatch.setitem(UIDS, name, 0)
    return given


STEPS = ("keep_source", "restore", "write_role")


@pytest.mark.parametrize("step", [*STEPS, "sync"])
def test_beginning_anew_may_be_interrupted_anywhere(
    node: Node, restored: list[bytes], step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_order.keep(node.paths, node.order())

    def crash(*_: Any) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        module: Any = {"write_role": identity, "sync": begin_anew.files}.get(step, begin_anew)
        patch.setattr(module, {"sync": "sync_folder"}.get(step, step), crash)
        with pytest.raises(Crash):
            begin_anew.begin(node.paths)
    assert node.role.epoch == 1
    assert begin_anew.begin(node.paths) == {"state": "done", "epoch": 2}
    assert (node.role.role, node.role.epoch, node.role.initial_cluster) == ("voter", 2, "")
    assert (node.paths.etcd / "member/new").read_bytes() == b"old" and set(restored) == {b"old"}
    assert [path.read_bytes() for path in node.paths.state.glob("etcd.removed-*/member/*/db")] == [b"old"]
    assert not list(node.paths.state.glob("begin-*")) and not list(node.paths.state.glob("etcd.epoch-*"))
    # And once more: nothing is left to do.
    assert begin_anew.begin(node.paths)["state"] == "done" and len(list(node.paths.state.glob("etcd.removed-*"))) == 1


def test_a_worker_begins_from_a_snapshot_with_the_secrets_that_the_order_brings(
    node: Node, restored: list[bytes], tmp_path: Path
) -> None:
    secrets = {name: (node.paths.state / name).read_text() for name in SECRET_FILES}
    (tmp_path / "plain").write_bytes(b"snapshot")
    node.paths.snapshots.mkdir()
    snapshot = Snapshot(1, 77, 1000)
    seal.seal_file(
        tmp_path / "plain", node.paths.snapshots / snapshot.name, base64.b64decode(secrets["encryption.key"])
    )
    for name in ("encryption.key", "pki/etcd-ca.key"):
        (node.paths.state / name).unlink()
    sealed = seal.seal(json.dumps(secrets).encode(), (node.paths.state / "identity.crt").read_text())
    keep_order.keep(node.paths, node.order(source=snapshot.name, sealed=sealed))
    begin_anew.begin(node.paths)
    assert restored == [b"snapshot"]
    assert (node.paths.state / "pki/etcd-ca.key").read_text() == secrets["pki/etcd-ca.key"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"number": 1}, "^the order is for another node$"),
        ({"source": "1-2-3.sealed"}, "^this node has no snapshot 1-2-3.sealed$"),
        ({"source": "../../etc/passwd"}, "^this node has no snapshot"),
    ],
)
def test_an_order_that_cannot_be_carried_out_changes_nothing(
    node: Node, restored: list[bytes], changes: dict[str, Any], why: str
) -> None:
    keep_order.keep(node.paths, node.order(**changes))
    with pytest.raises(UserError, match=why):
        begin_anew.begin(node.paths)
    assert (node.paths.etcd / "member/snap/db").read_bytes() == b"old" and node.role.epoch == 1 and restored == []


@pytest.mark.parametrize(
    ("was", "becomes", "answer", "replaced"),
    [
        ("worker", "standby", {"member": "7"}, False),
        ("standby", "voter", {"member": "7"}, False),
        ("voter", "voter", {}, False),
        ("voter", "standby", {}, True),
        ("standby", "worker", {}, True),
        # Removed and chosen again while it was off.
        ("standby", "standby", {"member": "8"}, True),
        ("standby", "standby", {"member": ""}, False),
        ("voter", "voter", {"member": "7", "epoch": 2}, True),
        ("worker", "worker", {"epoch": 2}, False),
    ],
)
def test_a_member_that_was_replaced_while_it_was_away_is_told(
    was: Any, becomes: str, answer: dict[str, Any], replaced: bool
) -> None:
    me = Role(cluster_id="c", number=3, name="shop-3", role=was, member="7")
    assert enrol.is_replaced(me, becomes, answer) is replaced


def test_a_standby_of_another_id_begins_anew_and_remembers_the_new_one(node: Node) -> None:
    identity.write_role(
        node.paths, Role(cluster_id=node.cluster_id, number=3, name="shop-3", role="standby", member="7")
    )

    def take(answer: dict[str, Any]) -> str:
        (node.paths.state / "cluster.json").touch()
        me = identity.load(node.paths, time.time())
        assert me
        return enrol.take_role(node.paths, me, "standby", answer).role

    assert take({"member": "8", "epoch": 1}) == "worker"
    assert not node.paths.etcd.exists() and node.role.member == ""
    files = dict.fromkeys(SECRET_FILES, "x")
    sealed = seal.seal(json.dumps(files).encode(), (node.paths.state / "identity.crt").read_text())
    assert take({"member": "8", "epoch": 2, "sealed": sealed, "initial_cluster": "a=b"}) == "standby"
    assert (node.role.member, node.role.epoch, node.role.initial_cluster) == ("8", 2, "a=b")


def test_a_new_epoch_goes_on_with_the_mesh_keys_that_are_in_use_and_a_serial_that_is_newer(node: Node) -> None:
    """The data may be those of a snapshot from before the mesh key was changed."""
    shop = node.shop
    asyncio.run(shop.begin())
    me = shop.node(3)
    for _ in range(2):
        found = asyncio.run(shop.ledger.begin_epoch(2, me, 500, {3: "ab" * 32}))
    # With it this node votes: whoever asks is told so from the first moment, and a snapshot may be older than this node.
    assert found.find(number=3) == replace(me, role="voter")
    assert (found.epoch, found.mesh_key, found.oldest_key) == (2, 3, 3) and found.serial > 500
    assert asyncio.run(shop.ledger.mesh_keys())[0] == {1: MESH_KEY, 3: "ab" * 32}
    assert check_registry(shop.changes[-1], shop.authority.certificate) == found and len(shop.changes) == 2


def test_what_a_registry_says_from_before_the_cluster_was_begun_anew_is_not_taken(node: Node) -> None:
    """A standby that began it anew is none any more, though etcd's data say so until the first registry is written."""
    registry = Registry("shop").put(replace(Shop.node(3), role="standby"))
    identity.write_role(node.paths, msgspec.structs.replace(node.role, role="voter", epoch=2))
    me = identity.load(node.paths, time.time())
    assert me
    for epoch, fails in ((1, True), (2, False)):
        packed = asyncio.run(node.shop.ledger.authority.sign(replace(registry, epoch=epoch)))
        answer = {"registry": packed, "mesh_keys": {"1": MESH_KEY}, "epoch": 2}
        with pytest.raises(UserError, match="epoch 1") if fails else contextlib.nullcontext():
            enrol.keep(node.paths, me, answer, "")
        assert (node.paths.state / "encryption.key").exists() is fails


class Api:
    """The node API of a node whose registry has a voter and a worker."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.voter = replace(Shop.node(1), role="voter")
        self.worker = Shop.node(2)
        packed = asyncio.run(node.shop.ledger.authority.sign(Registry("shop").put(self.voter).put(self.worker)))
        node.paths.registry.write_text(packed)
        facts = replace(FACTS, number=3, role="worker")
        orders = Orders(State(), node.paths, facts)
        self.api = NodeApi(State(), node.paths, facts, orders, Peers(node.paths, facts), None)

    def ask(self, method: str, path: str, certificate: str = "", group: str = "", body: bytes = b"") -> Answer:
        async def scenario() -> Answer:
            reader = asyncio.StreamReader()
            reader.feed_data(body)
            reader.feed_eof()
            upload = Upload(len(body), reader, 1.0) if method == "PUT" else None
            groups = frozenset({group} if group else ())
            return await self.api.handle(Request(method, path, body, "::1", certificate, groups, upload=upload))

        return asyncio.run(scenario())


def test_who_is_neither_node_nor_admin_gets_nothing_of_a_nodes_own_api(node: Node) -> None:
    api = Api(node)
    for method, path in (
        ("GET", "/v1/state"),
        ("GET", "/v1/survey"),
        ("POST", "/v1/order"),
        ("PUT", "/v1/snapshots/1-2-3.sealed"),
    ):
        assert api.ask(method, path, "ff" * 32, "system:nodes", b"{}").status == 403
    assert api.ask("GET", "/v1/state", api.worker.certificate).status == 200
    assert api.ask("GET", "/v1/survey", api.worker.certificate).status == 404
    assert api.ask("GET", "/v1/survey", "ff" * 32, "kubermesh:admins").status == 200


def test_a_voters_snapshot_is_kept_whole_or_not_at_all(node: Node) -> None:
    api, name = Api(node), "1-20-3000.sealed"
    assert api.ask("PUT", f"/v1/snapshots/{name}", api.worker.certificate, "", b"data").status == 404
    for wrong in ("a.sealed", "../role.json", ".sealed", "1-2-3.sealed/.."):
        assert api.ask("PUT", f"/v1/snapshots/{wrong}", api.voter.certificate, "", b"data").status == 400
    assert api.ask("PUT", f"/v1/snapshots/{name}", api.voter.certificate, "", b"data").status == 200
    assert (node.paths.snapshots / name).read_bytes() == b"data"
    assert (node.paths.snapshots / name).stat().st_mode & 0o777 == 0o600
    assert json.loads(api.ask("GET", "/v1/state", api.voter.certificate).body)["snapshots"] == [name]
    assert [path.name for path in node.paths.snapshots.iterdir()] == [name]


def test_only_the_newest_snapshots_stay(tmp_path: Path) -> None:
    names = [Snapshot(1, revision, 1000 + revision).name for revision in range(20)] + [Snapshot(2, 1, 5).name]
    for name in [*names, "other", "a.sealed"]:
        (tmp_path / name).write_bytes(b"")
    for name in (".old", ".new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "db").write_bytes(b"half")
    os.utime(tmp_path / ".old", (0, 0))
    snapshot_files.prune(tmp_path)
    assert [path.name for path in tmp_path.glob(".*")] == [".new"]
    assert [one.name for one in snapshot_files.find(tmp_path)] == names[-snapshot_files.KEPT :]
    assert (tmp_path / "other").exists()


def voter(revision: int | None, *, has_leader: bool = False, role: str = "voter") -> dict[str, Any]:
    return {"role": role, "etcd": {"revision": revision, "has_leader": has_leader}, "epoch": 1}


@pytest.mark.parametrize(
    ("states", "best"),
    [
        ({1: voter(7)}, True),
        ({1: voter(7), 2: voter(8)}, False),
        ({1: voter(8), 2: voter(8)}, True),
        ({2: voter(8), 1: voter(8)}, True),
        ({1: voter(7), 2: voter(6, has_leader=True)}, False),
        # A standby does not notice that a leader is gone, and never begins anew by itself.
        ({1: voter(7), 2: voter(9, has_leader=True, role="standby")}, True),
        ({1: voter(7, role="standby")}, False),
        ({1: voter(None), 2: voter(3)}, False),
        ({2: voter(3)}, False),
    ],
)
def test_the_voter_that_is_best_off_begins_anew(states: dict[int, dict[str, Any]], best: bool) -> None:
    assert witness.is_best(1, states) is best


class FakePeers(Peers):
    """What the other nodes say, without asking them."""

    def __init__(self, node: Node, states: dict[int, dict[str, Any]]) -> None:
        super().__init__(node.paths, FACTS)
        self.said = states

    async def states(self, registry: Registry) -> dict[int, dict[str, Any]]:
        await asyncio.sleep(0)
        return self.said


@pytest.mark.parametrize(
    ("others", "gives"),
    [([4, 5], True), ([4], False), ([2, 4, 5], False)],
    ids=["majority", "minority", "a better voter"],
)
def test_a_voter_that_lost_the_others_orders_to_begin_anew_once_a_majority_is_there(
    node: Node, others: list[int], gives: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = replace(FACTS, number=3, cluster_id=node.cluster_id, auto_recover_after_s=0.2)
    known = registry_of(5, {1, 2, 3})
    node.paths.registry.write_text(asyncio.run(node.shop.ledger.authority.sign(known)))
    states = {number: {"role": "worker", "etcd": None, "epoch": 1} for number in others} | (
        {2: voter(9)} if 2 in others else {}
    )
    state = State()
    orders, peers = Orders(state, node.paths, facts), FakePeers(node, states)
    api = NodeApi(state, node.paths, facts, orders, peers, None)
    monkeypatch.setattr(api, "describe", lambda: asyncio.sleep(0, voter(8)))
    taken: list[str] = []

    async def take(packed: str) -> bool:
        taken.append(packed)
        return True

    monkeypatch.setattr(orders, "take", take)
    watch = witness.Witness(state, node.paths, facts, orders, peers, api, node.shop.ledger.authority)

    async def scenario() -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(watch.run(), 1.0)

    asyncio.run(scenario())
    assert bool(taken) is gives
    if gives:
        assert keep_order.keep(node.paths, taken[0]) == {"state": "kept", "epoch": 2}

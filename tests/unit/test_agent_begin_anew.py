"""Beginning a cluster anew: which orders are kept, and what a crash in between leaves."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from agent_fakes import FACTS
from agent_recoveries import Node

from kmagent import begin_anew, identity, keep_order
from kmagent.components import UIDS
from kmagent.identity import Identity
from kmagent.orders import Orders
from kmagent.state import State
from kmplan import pki, recovery, seal
from kmplan.errors import UserError
from kmplan.recovery import Order, Snapshot
from kmplan.secret_files import SECRET_FILES


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

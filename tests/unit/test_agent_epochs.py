"""What nodes are told, and take, when the cluster was begun anew without them."""

import asyncio
import contextlib
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from agent_fakes import MESH_KEY, Shop
from agent_recoveries import Node

from kmagent import enrol, fence, identity, removed_data
from kmagent.identity import Role
from kmagent.join import check_registry
from kmagent.registry import Registry
from kmplan import seal
from kmplan.errors import UserError
from kmplan.secret_files import SECRET_FILES


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


def test_of_data_that_were_put_aside_the_last_two_are_kept(tmp_path: Path) -> None:
    for number in (3, 1, 4, 2):
        data = tmp_path / f"etcd.removed-epoch-{number}"
        data.mkdir()
        (data / "db").touch()
        os.utime(data, (number, number))
    removed_data.prune(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["etcd.removed-epoch-3", "etcd.removed-epoch-4"]


def test_a_new_epoch_goes_on_with_the_mesh_keys_that_are_in_use_and_a_serial_that_is_newer(node: Node) -> None:
    """The data may be those of a snapshot from before the mesh key was changed."""
    shop = node.shop
    asyncio.run(shop.begin())
    before = asyncio.run(shop.ledger.registry())[0]
    assert [one.number for one in before.nodes if one.role == "voter"] == [1]
    me = shop.node(3)
    for _ in range(2):
        found = asyncio.run(shop.ledger.begin_epoch(2, me, 500, {3: "ab" * 32}))
    # With it this node votes: whoever asks is told so from the first moment, and a snapshot may be older than this node.
    assert found.find(number=3) == replace(me, role="voter")
    # It is the only one that has data of that epoch: after a power cut it asks nobody whether others went on with it.
    assert {one.number: one.role for one in found.nodes} == {1: "worker", 3: "voter"}
    assert fence.is_current(3, 2, found, {})
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

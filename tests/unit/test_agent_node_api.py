"""The node API: who is answered, and what is kept."""

import asyncio
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from agent_fakes import FACTS, Shop
from agent_recoveries import Node

from kmagent import node_api, snapshot_files
from kmagent.etcd import Etcd
from kmagent.http_server import Answer, Request, Upload
from kmagent.node_api import NodeApi
from kmagent.orders import Orders
from kmagent.peers import Peers
from kmagent.registry import Registry
from kmagent.state import State
from kmplan.recovery import Snapshot


class NoEtcd:
    """Where none runs."""

    async def request(self, *_: object, **__: object) -> None:
        raise OSError("refused")


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


def test_etcds_data_are_looked_at_by_one_at_a_time_and_again_when_that_failed(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look takes a copy of the database: of many at once the disk would be full."""
    api, looks = Api(node).api, list[int]()
    api._etcd = Etcd(NoEtcd(), NoEtcd())  # type: ignore[arg-type]

    async def child(_: str) -> dict[str, Any]:
        looks.append(len(looks))
        await asyncio.sleep(0.01)
        return {"revision": 7} if len(looks) > 1 else {}

    monkeypatch.setattr(node_api, "child", child)
    monkeypatch.setattr(node_api, "LOOK_AGAIN_S", 0.0)

    async def scenario() -> None:
        for revision, count in ((None, 1), (7, 2), (7, 2)):
            found = await asyncio.gather(*(api._describe_etcd() for _ in range(5)))
            if count > len(seen):
                # Nobody waits for it: whoever begins a cluster anew asks again.
                assert found == 5 * [{"revision": None, "has_leader": False, "looking": True}]
                seen.append(count)
            while api._looking and not api._looking.done():
                await asyncio.sleep(0.01)
            assert api._looked[1] == revision and len(looks) == count
        assert found == 5 * [{"revision": 7, "has_leader": False, "looking": False}]

    seen: list[int] = []
    asyncio.run(scenario())

"""Stands for what the agent talks to: etcd behind its JSON gateway, the signing child, and machines that ask."""

import asyncio
import base64
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from kmagent import mesh_nodes, serving, sign
from kmagent.authority import Authority, RefusedError
from kmagent.etcd import Etcd
from kmagent.facts import Facts
from kmagent.http import Response
from kmagent.ledger import Ledger
from kmagent.paths import Paths
from kmagent.registry import Node, Registry
from kmbuild.init import create
from kmplan import pki
from kmplan.cluster import ClusterFile

PREFIX = "fd12:3456:789a::/48"
MESH_KEY = "5e" * 32
FACTS = Facts(
    cluster="shop", name="shop-1", number=1, role="voter", prefix=PREFIX,
    address="fd12:3456:789a::1", address4="10.0.1.1", pods="fd12:3456:789a:1::/64", pods4="10.0.1.0/24",
    services="fd12:3456:789a:ffff::/112", services4="10.255.0.0/16", api="fd12:3456:789a::a:1",
    join="fd12:3456:789a::a:2", dns="fd12:3456:789a:ffff::a", dns4="10.255.0.10", image="0.1.0",
)  # fmt: skip
FIRST = Node(1, "shop-1", "voter", "f1" * 32, "c1" * 32, admitted=1000)


@dataclass(frozen=True)
class EtcdMember:
    """A member; `in_step` says whether it has started and caught up, `active` whether the others hear of it."""

    id: str
    url: str
    name: str = ""
    learner: bool = False
    in_step: bool = True
    active: bool = True


class Crash(Exception):  # noqa: N818 - not an error of the program
    """The agent is killed while it waits for an answer."""


@dataclass
class EtcdServer:
    """etcd's JSON gateway in memory: revisions, transactions and member changes as etcd has them, zero values left out.

    Each request lets other tasks run first, as one over a socket does. After `crash_in` requests whoever asks is killed.
    """

    values: dict[str, tuple[str, int]] = field(default_factory=dict)
    revision: int = 1
    members: list[EtcdMember] = field(default_factory=list)
    leader: str = "1"
    local: str = "1"
    down: bool = False
    crash_in: int | None = None
    # The database's size, what of it is in use, what the history before `compacted` takes, and the quota; members with an alarm.
    size: int = 0
    used: int = 0
    history: int = 0
    quota: int = 0
    alarms: list[str] = field(default_factory=list)
    corrupt: list[str] = field(default_factory=list)
    # Members to which nobody can hand the lead over.
    deaf: set[str] = field(default_factory=set)
    received: dict[str, int] = field(default_factory=dict)

    def metrics(self) -> str:
        """What an etcd says of its peers, among much else; those that run have sent something since they were asked for."""
        for one in self.members:
            if one.id != self.local and one.active:
                self.received[one.id] = self.received.get(one.id, 0) + 80
        lines = [
            f'etcd_network_peer_received_bytes_total{{From="{int(sender):x}"}} {float(count)}'
            for sender, count in self.received.items()
        ]
        return "# TYPE etcd_network_peer_received_bytes_total counter\n" + "".join(f"{line}\n" for line in lines)

    async def request(self, method: str, path: str, body: bytes = b"", content_type: str = "") -> Response:
        for _ in range(2):
            await asyncio.sleep(0)
        if self.down:
            raise OSError("connection refused")
        if self.crash_in is not None:
            self.crash_in -= 1
            if self.crash_in < 0:
                raise Crash
        if path == "/metrics":
            return Response(200, self.metrics().encode())
        asked = json.loads(body)
        name = path.removeprefix("/v3/").replace("/", "_").replace("-", "_")
        try:
            answer = getattr(self, f"do_{name}")(asked)
        except ValueError as error:
            return Response(400, json.dumps({"code": 9, "message": f"etcdserver: {error}"}).encode())
        return Response(
            200, json.dumps({"header": {"member_id": self.local, "revision": str(self.revision)}, **answer}).encode()
        )

    def do_kv_range(self, asked: dict[str, Any]) -> dict[str, Any]:
        first = _decode(asked["key"])
        end = _decode(asked["range_end"]) if "range_end" in asked else first + "\0"
        found = {key: value for key, value in sorted(self.values.items()) if first <= key < end}
        kvs = [
            {"key": _encode(key), "value": _encode(text), "mod_revision": str(revision)}
            for key, (text, revision) in found.items()
        ]
        return {"kvs": kvs, "count": str(len(kvs))} if kvs else {}

    def do_kv_put(self, asked: dict[str, Any]) -> dict[str, Any]:
        self._commit([{"request_put": asked}])
        return {}

    def do_kv_deleterange(self, asked: dict[str, Any]) -> dict[str, Any]:
        self._commit([{"request_delete_range": asked}])
        return {}

    def do_kv_txn(self, asked: dict[str, Any]) -> dict[str, Any]:
        for one in asked["compare"]:
            assert (one["target"], one["result"]) == ("MOD", "EQUAL")
            if int(one["mod_revision"]) != self.values.get(_decode(one["key"]), ("", 0))[1]:
                return {}
        if all("request_range" in one for one in asked["success"]):
            found = [{"response_range": self.do_kv_range(one["request_range"])} for one in asked["success"]]
            return {"succeeded": True, "responses": found}
        self._commit(asked["success"])
        return {"succeeded": True}

    def _commit(self, operations: list[dict[str, Any]]) -> None:
        self.revision += 1
        for operation in operations:
            if "request_put" in operation:
                put = operation["request_put"]
                self.values[_decode(put["key"])] = (_decode(put["value"]), self.revision)
            else:
                self.values.pop(_decode(operation["request_delete_range"]["key"]), None)

    def do_cluster_member_list(self, asked: dict[str, Any]) -> dict[str, Any]:
        assert asked == {"linearizable": True}
        return {"members": [_shown(member) for member in self.members]}

    def do_cluster_member_add(self, asked: dict[str, Any]) -> dict[str, Any]:
        assert asked["isLearner"]
        if any(member.learner for member in self.members):
            raise ValueError("too many learner members in cluster")
        if any(member.url in asked["peerURLs"] for member in self.members):
            raise ValueError("Peer URLs already exists")
        self.members.append(EtcdMember(str(100 + self.revision), asked["peerURLs"][0], learner=True, in_step=False))
        self.revision += 1
        return {}

    def do_cluster_member_promote(self, asked: dict[str, Any]) -> dict[str, Any]:
        member = self._member(asked["ID"])
        if not member.in_step:
            raise ValueError("can only promote a learner member which is in sync with leader")
        self.members[self.members.index(member)] = replace(member, learner=False)
        return {}

    def do_cluster_member_remove(self, asked: dict[str, Any]) -> dict[str, Any]:
        self.members.remove(self._member(asked["ID"]))
        return {}

    def do_maintenance_transfer_leadership(self, asked: dict[str, Any]) -> dict[str, Any]:
        if asked["targetID"] in self.deaf:
            raise ValueError("leader transfer timed out")
        self.leader = self._member(asked["targetID"]).id
        return {}

    def do_maintenance_status(self, asked: dict[str, Any]) -> dict[str, Any]:
        sizes = {"dbSize": self.size, "dbSizeInUse": self.used, "dbSizeQuota": self.quota}
        return {"leader": self.leader, **{key: str(size) for key, size in sizes.items() if size}}

    def do_maintenance_alarm(self, asked: dict[str, Any]) -> dict[str, Any]:
        alarms = {"NOSPACE": self.alarms, "CORRUPT": self.corrupt}
        if asked["action"] == "DEACTIVATE":
            alarms[asked["alarm"]].remove(asked["memberID"])
            return {}
        assert asked == {"action": "GET"}
        found = [
            {**({} if member == "0" else {"memberID": member}), "alarm": kind}
            for kind in alarms
            for member in alarms[kind]
        ]
        return {"alarms": found} if found else {}

    def do_kv_compaction(self, asked: dict[str, Any]) -> dict[str, Any]:
        assert int(asked["revision"]) == self.revision and asked["physical"]
        if not self.history:
            raise ValueError("mvcc: required revision has been compacted")
        self.used, self.history = self.used - self.history, 0
        return {}

    def do_maintenance_defragment(self, asked: dict[str, Any]) -> dict[str, Any]:
        self.size = self.used
        return {}

    def _member(self, wanted: str) -> EtcdMember:
        found = [member for member in self.members if member.id == wanted]
        if not found:
            raise ValueError("member not found")
        return found[0]


@dataclass
class KubernetesApi:
    """Some objects of the Kubernetes API by path; `writes` are the requests that changed one."""

    objects: dict[str, dict[str, Any]] = field(default_factory=dict)
    writes: list[str] = field(default_factory=list)
    collections: set[str] = field(default_factory=lambda: {mesh_nodes.PATH, serving.REQUESTS})

    async def request(self, method: str, path: str, body: bytes | None = None, content_type: str = "") -> Response:
        await asyncio.sleep(0)
        path = path.partition("?")[0]
        status, answer = getattr(self, f"do_{method.lower()}")(path, json.loads(body or b"{}"))
        if method != "GET" and status < 300:
            self.writes.append(f"{method} {path}")
        return Response(status, json.dumps(answer).encode())

    def do_get(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if path in self.collections:
            return 200, {"items": [item for key, item in self.objects.items() if key.startswith(f"{path}/")]}
        return (200, self.objects[path]) if path in self.objects else (404, {})

    def do_post(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        key = f"{path}/{body['metadata']['name']}"
        if path not in self.collections or key in self.objects:
            return 404 if path not in self.collections else 409, {}
        # A status that is sent along is dropped, as for every kind with a status subresource.
        self.objects[key] = {name: part for name, part in body.items() if name != "status"}
        return 201, self.objects[key]

    def do_put(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        key = path.rpartition("/")[0]
        if key not in self.objects:
            return 404, {}
        self.objects[key] = {**self.objects[key], "status": body["status"]}
        return 200, self.objects[key]

    def do_patch(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        # As an apply does; what a merge keeps is not looked at.
        self.objects[path] = body
        return 200, body

    def do_delete(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        return (200, self.objects.pop(path)) if path in self.objects else (404, {})


class Told:
    """What `kmagent.watch` is to its listeners."""

    def __init__(self, *, works: bool = True) -> None:
        self.works, self.news = works, asyncio.Event()

    def tell(self) -> None:
        self.news.set()
        self.news = asyncio.Event()


class Signer(Authority):
    """The signing child, without a process."""

    def __init__(self, paths: Paths) -> None:
        super().__init__()
        self._paths = paths

    async def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(0)
        try:
            return sign.perform(self._paths, request)
        except Exception as error:
            raise RefusedError(str(error)) from error


class Shop:
    """The cluster `shop` and the records of its control plane; `changes` are the registries that were written."""

    def __init__(self, folder: Path) -> None:
        cluster = ClusterFile(version=1, name="shop", prefix=PREFIX)
        create(folder, cluster)
        (folder / "cluster.json").write_bytes(msgspec.json.encode(cluster))
        self.paths = self.paths_of(folder)
        self.authority = pki.Pair(*((folder / f"pki/node-ca.{kind}").read_text() for kind in ("crt", "key")))
        self.etcd = EtcdServer()
        self.changes: list[str] = []
        self.ledger = self.another_ledger()

    @staticmethod
    def paths_of(folder: Path) -> Paths:
        return Paths(run=folder / "run", state=folder)

    @staticmethod
    def node(number: int) -> Node:
        return Node(number, f"shop-{number}", "worker", f"f{number}" * 32, f"c{number}" * 32)

    def another_ledger(self) -> Ledger:
        """The ledger as another control-plane node has it."""
        return Ledger(Etcd(self.etcd, self.etcd), Signer(self.paths), self._changed)  # type: ignore[arg-type]

    async def _changed(self, packed: str) -> None:
        self.changes.append(packed)

    async def begin(self) -> None:
        await self.ledger.begin(Registry("shop").put(FIRST), MESH_KEY)

    async def admit(self, machine: "Machine", **asked: Any) -> Node:
        return await self.ledger.admit(machine.asked(**asked), "shop-{}".format, 2000.0)


class Machine:
    """A machine with a key of its own."""

    def __init__(self) -> None:
        self.key = pki.create_key()
        self.csr = pki.create_request(self.key, "kubermesh machine")
        self.fingerprint = pki.private_key_fingerprint(self.key)

    def asked(self, **changes: Any) -> dict[str, Any]:
        """What the ledger keeps of its request."""
        request = {
            "csr": self.csr,
            "wish": 0,
            "uuid": "4c4c",
            "via": "shop-1 eth0",
            "relay": "fd12::7",
            "ports": [],
            "disks": [],
        }
        times = {"first_seen": 1500.0, "last_seen": 1500.0}
        return {"fingerprint": self.fingerprint, **request, **times, "decision": "", **changes}


def _shown(member: EtcdMember) -> dict[str, Any]:
    shown = {"ID": member.id, "name": member.name, "peerURLs": [member.url], "isLearner": member.learner}
    return {key: value for key, value in shown.items() if value}


def _encode(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _decode(text: str) -> str:
    return base64.b64decode(text).decode()

"""The node API: `https://[node address]:9444` on every node, TLS 1.3 with the node's identity certificate.

It works without a control plane, and is for the day when there is none.

| request | who may | what |
|---|---|---|
| GET /v1/state | nodes, admins | this node's epoch, part, etcd's data and snapshots |
| GET /v1/survey | admins | the same of all registered nodes, as this one hears it |
| POST /v1/order | nodes, admins | keep a signed order to begin the cluster anew; an admin's is passed on |
| PUT /v1/snapshots/NAME | voters | keep a sealed snapshot |

Nodes show their identity certificate; admins one of the cluster's authority, for the group kubermesh:admins or system:masters.
"""

import asyncio
import contextlib
import logging
import ssl
import time
import uuid
from typing import Any

from kmagent import registry as registries
from kmagent import snapshot_files
from kmagent.etcd import Etcd
from kmagent.facts import Facts
from kmagent.http_server import Answer, Request, Server, Upload, answer_json, answer_text, serve
from kmagent.joining import child
from kmagent.orders import Orders
from kmagent.paths import Paths
from kmagent.peers import NODE_PORT, Peers
from kmagent.registry import Registry
from kmagent.relay import Bucket
from kmagent.state import State
from kmplan import recovery

log = logging.getLogger(__name__)

ADMINS = frozenset({"kubermesh:admins", "system:masters"})
MAX_BODY = 64 * 1024
# etcd's data are 8 GiB at most.
MAX_UPLOAD = 9 * 2**30
MAX_CONNECTIONS = 24
ORDERS_PER_S, ORDERS_BURST = 1.0, 10.0
SNAPSHOTS = "/v1/snapshots/"
LOOK_AGAIN_S = 60.0


class NodeApi:
    """Answers for this node. `etcd` is its own member, None on a worker."""

    def __init__(
        self, state: State, paths: Paths, facts: Facts, orders: Orders, peers: Peers, etcd: Etcd | None
    ) -> None:
        self._state, self._paths, self._facts = state, paths, facts
        self._orders, self._peers, self._etcd = orders, peers, etcd
        self._bucket = Bucket(ORDERS_PER_S, ORDERS_BURST)
        # When the database was written, and what revision it had then: found by looking at a copy, one at a time.
        self._looked: tuple[int, int | None] = (0, None)
        self._look_again = 0.0
        self._looking: asyncio.Task[None] | None = None

    async def handle(self, request: Request) -> Answer:
        """Answer one request."""
        registry = registries.load_or_empty(self._paths.registry, self._facts.cluster)
        is_admin = bool(request.organizations & ADMINS)
        node = registry.find(certificate=request.certificate)
        if node is None and not is_admin:
            return answer_text(403, "only nodes and admins\n")
        try:
            match request.method, request.path:
                case "GET", "/v1/state":
                    return answer_json(200, await self.describe())
                case "GET", "/v1/survey" if is_admin:
                    return answer_json(200, await self._survey(registry))
                case "POST", "/v1/order":
                    return await self._take_order(request, registry, is_admin=is_admin)
                case "PUT", _ if request.path.startswith(SNAPSHOTS) and node and node.role == "voter":
                    return await self._keep(request.path.removeprefix(SNAPSHOTS), request.upload)
        except (ValueError, RecursionError) as error:
            return answer_text(400, f"{error}\n")
        except OSError as error:
            log.warning("node API: %s: %s", request.path, error)
            return answer_text(503, f"{error}\n")
        return answer_text(404, "try GET /v1/state\n")

    async def describe(self) -> dict[str, Any]:
        """What this node says of itself."""
        facts, order = self._facts, self._orders.newest
        return {
            "number": facts.number,
            "name": facts.name,
            "role": facts.role,
            "epoch": self._orders.epoch,
            "own_epoch": facts.epoch,
            "order": {"epoch": order.epoch, "number": order.number, "source": order.source} if order else None,
            "signed_order": self._orders.packed,
            "withdrawn": self._orders.withdrawn,
            "fenced": self._state.fenced,
            "failure": self._state.failure,
            "certificate": (self._paths.state / "identity.crt").read_text(),
            "etcd": await self._describe_etcd(),
            "snapshots": [snapshot.name for snapshot in snapshot_files.find(self._paths.snapshots)],
        }

    async def _describe_etcd(self) -> dict[str, Any] | None:
        """How far etcd's data here go; None when there are none. An etcd without a quorum that was started anew does not say."""
        database = self._paths.etcd_database
        if self._etcd is None or not database.exists():
            return None
        with contextlib.suppress(OSError):
            status = await self._etcd.status()
            return {"revision": status.revision, "has_leader": status.leader not in ("", "0")}
        written = database.stat().st_mtime_ns
        # What could not be looked at, for want of room perhaps, is looked at again.
        is_due = self._looked[1] is None and time.monotonic() >= self._look_again
        is_looking = self._looking is not None and not self._looking.done()
        if not is_looking and (written != self._looked[0] or is_due):
            self._looking, is_looking = asyncio.create_task(self._look(written)), True
        return {"revision": None if is_looking else self._looked[1], "has_leader": False, "looking": is_looking}

    async def _look(self, written: int) -> None:
        """See how far the data go that were `written` at that moment: all of them are read, and whoever asks does not wait."""
        self._looked = (written, (await child("revision")).get("revision"))
        self._look_again = time.monotonic() + LOOK_AGAIN_S

    async def _survey(self, registry: Registry) -> dict[str, Any]:
        states = await self._peers.states(registry) | {self._facts.number: await self.describe()}
        return {
            "cluster": self._facts.cluster,
            "nodes": [
                {"number": node.number, "name": node.name, "role": node.role, "state": states.get(node.number)}
                for node in registry.nodes
            ],
        }

    async def _take_order(self, request: Request, registry: Registry, *, is_admin: bool) -> Answer:
        # Who has a certificate may not make this node check signatures without end.
        if not self._bucket.take():
            return answer_text(429, "too many orders\n")
        packed = request.body.decode()
        if not await self._orders.take(packed):
            return answer_text(400, "this is no order for this cluster, or not a newer one\n")
        answer: dict[str, Any] = {"state": "kept"}
        if is_admin:
            answer["kept_by"] = sorted({self._facts.number, *await self._peers.give_order(registry, packed)})
        return answer_json(200, answer)

    async def _keep(self, name: str, upload: Upload | None) -> Answer:
        """Keep a snapshot of another node; what is interrupted leaves nothing."""
        if upload is None or recovery.parse_snapshot(name) is None:
            return answer_text(400, "not a snapshot's name\n")
        folder = self._paths.snapshots
        free = await asyncio.to_thread(snapshot_files.make_room, folder, upload.length)
        if not free:
            return answer_text(503, "not enough room\n")
        partial = folder / f".{uuid.uuid4().hex}"
        try:
            await upload.save(partial)
            await asyncio.to_thread(snapshot_files.name, partial, folder / name)
        except (TimeoutError, asyncio.IncompleteReadError) as error:
            raise OSError(f"the snapshot did not come: {error}") from error
        finally:
            partial.unlink(missing_ok=True)
        return answer_json(200, {})


async def run(paths: Paths, api: NodeApi, scale: float) -> None:
    """Serve at every address: the firewall lets no stranger to it, and TLS nobody without a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    for name in ("node-ca", "cluster-ca"):
        context.load_verify_locations(paths.state / f"pki/{name}.crt")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(paths.state / "identity.crt", paths.state / "identity.key")
    server = Server(
        api.handle, max_body=MAX_BODY, max_upload=MAX_UPLOAD, max_connections=MAX_CONNECTIONS, timeout_s=10 * scale
    )
    await serve(await server.start(None, NODE_PORT, context))

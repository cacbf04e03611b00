"""The join API on control-plane nodes: `https://[P::a:2]:9443`, TLS 1.3 with a certificate of the node authority.

| request | who may | what |
|---|---|---|
| POST /v1/join | anyone who reaches it | ask to be admitted; what is secret in the answer is sealed to the machine's key |
| GET /v1/registry | nodes | the signed registry |
| POST /v1/report | nodes | say who the neighbours are, how long the node is up, and what is free of its disk |
| POST /v1/enrol | nodes | registry, mesh keys, a kubelet certificate, and for control-plane nodes the secrets, sealed |
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import ssl
import time
from collections.abc import Callable, Sequence
from typing import Any

from kmagent import admission, anycast, candidates, network
from kmagent import registry as registries
from kmagent.authority import RefusedError
from kmagent.etcd import Member
from kmagent.facts import Facts
from kmagent.http_server import Answer, Request, Server, answer_json, answer_text
from kmagent.ledger import Ledger
from kmagent.mesh import Mesh
from kmagent.paths import Paths
from kmagent.registry import Node
from kmagent.relay import JOIN_PORT, Bucket
from kmagent.state import State
from kmplan.secret_files import PUBLIC_FILES, SECRET_FILES

log = logging.getLogger(__name__)

MAX_BODY = 16 * 1024
MAX_CONNECTIONS = 48
PER_S, BURST = 10.0, 40.0
REPORTS_PER_S, REPORTS_BURST = 1.0, 5.0
REMEMBERED, MAX_BUCKETS = 256, 4096
# Of those who are refused no more than these are written down.
NOTED_PER_S, NOTED_BURST = 0.2, 20.0
# A request that is repeated while it waits is written down this often.
SEEN_AGAIN_S = 60.0
# A node that can be reached for so long is not the machine that asks with its UUID: routes may be a moment behind.
TWIN_S = 15.0


class JoinApi:
    """Answers for the whole cluster; what it knows is in etcd, so that any control-plane node can."""

    def __init__(self, facts: Facts, paths: Paths, ledger: Ledger, is_reachable: Callable[[int], bool]) -> None:
        self._facts, self._paths, self._ledger, self._is_reachable = facts, paths, ledger, is_reachable
        self._buckets: dict[str, Bucket] = {}
        self._noted = Bucket(NOTED_PER_S, NOTED_BURST)
        self._fingerprints: dict[str, str] = {}

    async def handle(self, request: Request) -> Answer:
        """Answer one request, and note who was refused."""
        answer = await self._answer(request)
        if answer.status in (400, 403, 429) and answer.content_type == "text/plain" and self._noted.take():
            log.warning("join API: %s refused to %s: %s", request.path, request.peer, answer.body.decode().strip())
        return answer

    async def _answer(self, request: Request) -> Answer:
        # A node has a certificate; so has one that was removed, and to ask to be admitted it needs none.
        has_to_wait = not request.certificate or request.path == "/v1/join"
        if has_to_wait and not self._bucket(request.peer, PER_S, BURST).take():
            return answer_text(429, "too many requests\n")
        try:
            match request.method, request.path:
                case "POST", "/v1/join":
                    return await self._join(request)
                case "GET", "/v1/registry":
                    return await self._registry(request)
                case "POST", "/v1/report":
                    return await self._report(request)
                case "POST", "/v1/enrol":
                    return await self._enrol(request)
        except (ValueError, RecursionError, RefusedError) as error:
            return answer_text(400, f"{error}\n")
        except OSError as error:
            log.warning("join API: %s: %s", request.path, error)
            return answer_text(503, "the control plane cannot answer now\n")
        return answer_text(404, "try POST /v1/join\n")

    def _bucket(self, who: str, rate: float, burst: float) -> Bucket:
        if len(self._buckets) >= MAX_BUCKETS:
            self._buckets.clear()
        return self._buckets.setdefault(who, Bucket(rate, burst))

    async def _join(self, request: Request) -> Answer:
        asked = admission.parse(json.loads(request.body))
        if asked.cluster != self._facts.cluster:
            return answer_text(403, f"this is cluster {self._facts.cluster}\n")
        fingerprint = await self._inspect(asked.csr)
        registry, _ = await self._ledger.registry()
        node = registry.find(fingerprint=fingerprint)
        if node is None:
            known = (await self._ledger.asked()).get(fingerprint)
            former = self._former(registry, asked.uuid)
            reachable = former is not None and self._is_reachable(former.number)
            returns = admission.comes_back(asked, known, former, reachable=reachable)
            verdict = admission.decide(
                self._facts.admission, list(self._facts.allowlist), asked, known, returns=returns
            )
            kept = admission.record(asked, fingerprint, request.peer, known, time.time(), returns=returns)
            is_twin = reachable and kept["last_seen"] - kept["first_seen"] > TWIN_S
            if verdict == "admit" and former and not is_twin:
                # The leading node takes it out first, and then this one is let in.
                kept["replaces"], verdict = former.number, "wait"
            if verdict != "admit":
                return await self._keep_waiting(kept, known, verdict)
            node = await self._ledger.admit(kept, self._name, time.time())
        return await self._welcome(node)

    def _former(self, registry: registries.Registry, uuid: str) -> Node | None:
        """The node of the same UUID: what this very machine was before its disk was lost, or another one like it."""
        same = [node for node in registry.nodes if uuid and node.uuid == uuid]
        return next((node for node in same if not self._is_reachable(node.number)), same[0] if same else None)

    async def _inspect(self, csr: str) -> str:
        digest = hashlib.sha256(csr.encode()).hexdigest()
        if digest not in self._fingerprints:
            if len(self._fingerprints) >= REMEMBERED:
                self._fingerprints.clear()
            self._fingerprints[digest] = await self._ledger.authority.inspect(csr)
        return self._fingerprints[digest]

    async def _keep_waiting(self, kept: dict[str, Any], known: dict[str, Any] | None, verdict: str) -> Answer:
        if known is None:
            who = (kept["fingerprint"][:16], kept["uuid"], kept["via"], kept["relay"])
            log.info("%s asks to be admitted (%s, via %s, by %s)", *who)
        is_news = known is None or kept["last_seen"] - known["last_seen"] > SEEN_AGAIN_S
        is_news |= known is not None and kept.get("replaces") != known.get("replaces")
        is_news |= known is not None and bool(kept["blocked"]) != bool(known.get("blocked"))
        if is_news and not await self._ledger.note_asked(kept):
            return answer_text(429, "too many machines wait already\n")
        state = {"deny": "denied", "wipe": "wipe"}.get(verdict, "pending")
        return answer_json(403 if state == "denied" else 202, {"state": state, "fingerprint": kept["fingerprint"]})

    def _name(self, number: int) -> str:
        return f"{self._facts.cluster}-{number}"

    async def _welcome(self, node: Node) -> Answer:
        certificate = await self._ledger.identity(node.fingerprint)
        keys, _ = await self._ledger.mesh_keys()
        secret = json.dumps({"mesh_keys": keys}).encode()
        return answer_json(
            200,
            {
                "state": "admitted",
                "number": node.number,
                "name": node.name,
                "role": node.role,
                "certificate": certificate,
                "cluster": json.loads(self._read("cluster.json")),
                "files": {name: self._read(name) for name in PUBLIC_FILES},
                "registry": (await self._ledger.registry())[1].text,
                "sealed": await self._ledger.authority.seal(secret, certificate),
            },
        )

    async def _registry(self, request: Request) -> Answer:
        registry, value = await self._ledger.registry()
        if registry.find(certificate=request.certificate) is None:
            return self._unknown(request)
        return Answer(200, value.text.encode())

    async def _report(self, request: Request) -> Answer:
        registry, _ = await self._ledger.registry()
        node = registry.find(certificate=request.certificate)
        if node is None:
            return self._unknown(request)
        if not self._bucket(node.name, REPORTS_PER_S, REPORTS_BURST).take():
            return answer_text(429, "too many reports\n")
        await self._ledger.note_report(node.number, candidates.from_text(request.body.decode()))
        return answer_json(200, {})

    async def _enrol(self, request: Request) -> Answer:
        registry, value = await self._ledger.registry()
        node = registry.find(certificate=request.certificate)
        if node is None:
            return self._unknown(request)
        asked = json.loads(request.body)
        keys, _ = await self._ledger.mesh_keys()
        answer: dict[str, Any] = {
            "registry": value.text,
            "mesh_keys": keys,
            "role": node.role,
            "epoch": self._facts.epoch,
        }
        if asked.get("kubelet"):
            answer["kubelet"] = await self._ledger.authority.certify_kubelet(str(asked["kubelet"]), node.name)
        if node.role in registries.CONTROL_PLANE:
            members = await self._ledger.etcd.members()
            peer = network.peer_url(self._facts.prefix, node.number)
            answer["member"] = next((member.id for member in members if peer in member.peer_urls), "")
            if asked.get("secrets") and answer["member"]:
                answer |= await self._secrets(node, members, request.pem)
        return answer_json(200, answer)

    async def _secrets(self, node: Node, members: Sequence[Member], certificate: str) -> dict[str, Any]:
        """What a control-plane node needs, once etcd knows it as a member; only it can read it.

        They are sealed to the certificate that it shows: of a seed's no record is kept.
        """
        files = json.dumps({name: self._read(name) for name in SECRET_FILES}).encode()
        named = {member.peer_urls[0]: member.name or node.name for member in members if member.peer_urls}
        log.info("%s is given the control plane's secrets, sealed", node.name)
        return {
            "sealed": await self._ledger.authority.seal(files, certificate),
            "initial_cluster": ",".join(f"{name}={url}" for url, name in sorted(named.items())),
            # Its etcd has to have the others' quota from the first write on.
            "settings": (await self._ledger.settings_plan()).good.arguments,
        }

    def _unknown(self, request: Request) -> Answer:
        log.warning("join API: %s with no certificate of an admitted node, from %s", request.path, request.peer)
        return answer_json(403, {"state": "unknown"})

    def _read(self, name: str) -> str:
        return (self._paths.state / name).read_text(encoding="ascii")


async def run(state: State, paths: Paths, ledger: Ledger, mesh: Mesh) -> None:
    """Serve, and hold the join address while the local etcd serves."""
    facts = state.facts
    assert facts is not None  # noqa: S101 - configured
    api = JoinApi(facts, paths, ledger, lambda number: mesh.reaches(facts, number))

    def is_node(address: str) -> bool:
        # Strangers come by a relay. A pod that knows the UUID of a machine which is known is not that machine.
        return address == facts.join or network.node_of(facts.prefix, address) is not None

    server = Server(
        api.handle,
        max_body=MAX_BODY,
        max_connections=MAX_CONNECTIONS,
        timeout_s=10 * facts.probe_scale,
        welcome=is_node,
    )
    certificate = paths.pki / "agent/join.crt"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(certificate.with_name("node-ca.crt"))
    context.verify_mode = ssl.CERT_OPTIONAL
    context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    listening = await server.start("::", JOIN_PORT, context)
    try:
        while True:
            changed = state.change()
            # It may have been renewed: connections from now on are shown the new one. Half renewed, it is read again later.
            with contextlib.suppress(OSError):
                context.load_cert_chain(certificate, certificate.with_suffix(".key"))
            await _follow(paths, facts, serves=state.conditions["etcd"])
            await changed.wait()
    finally:
        listening.close()
        await asyncio.sleep(0)


async def _follow(paths: Paths, facts: Facts, *, serves: bool) -> None:
    """Hold the join address, or not."""
    if await network.has_address(facts.join) != serves:
        await (anycast.announce(facts.join) if serves else anycast.withdraw(paths, facts.join))

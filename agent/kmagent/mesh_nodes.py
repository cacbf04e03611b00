"""The registry and the list of those who ask, shown as MeshNode objects; what people decide on these is carried out."""

import datetime
import json
import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from kmagent import kubernetes_api, network, removed_nodes
from kmagent.etcd import EtcdError
from kmagent.http import Client
from kmagent.ledger import ASKED, Ledger
from kmagent.registry import Node, Registry

log = logging.getLogger(__name__)

PATH = "/apis/kubermesh.io/v1/meshnodes"
# Who asked once and went away is forgotten after a while.
FORGET_S = 3600.0
# A machine that asks is noted every minute: one that was not for so long asks no more, and takes nobody's place. It is noted by
# another node's clock.
ASKS_S = 900.0
FACTS = ("via", "ports", "disks", "firstSeen")

Object = dict[str, Any]


def object_name(fingerprint: str) -> str:
    """Return the name of a machine's object."""
    return f"m-{fingerprint[:12]}"


def status_of_node(node: Node, ready: bool | None, old: Object, now: float, *, leaves: bool = False) -> Object:
    """Return the status of a node: `ready` as Kubernetes says, None when it has not heard of it; `leaves` when removed."""
    readiness = "Unknown" if ready is None else str(ready)
    return {
        **{key: old[key] for key in FACTS if key in old},
        "phase": "Removing" if leaves else "Admitted",
        "number": node.number,
        "name": node.name,
        "role": node.role,
        "fingerprint": node.fingerprint,
        "uuid": node.uuid,
        "conditions": [
            condition(old, "Admitted", "True", "Registered", f"node {node.number} since {moment(node.admitted)}", now),
            condition(old, "Ready", readiness, "Kubelet", "as Kubernetes sees it", now),
            condition(old, "Voter", str(node.role == "voter"), node.role.capitalize(), f"role {node.role}", now),
        ],
    }


def status_of_asked(asked: Mapping[str, Any], old: Object, now: float) -> Object:
    """Return the status of a machine that asks."""
    phase, reason, message = state_of_asked(asked)
    return {
        **facts(asked),
        **({"blocked": asked["blocked"]} if asked.get("blocked") else {}),
        "phase": phase,
        "fingerprint": asked["fingerprint"],
        "uuid": asked["uuid"],
        "lastSeen": moment(asked["last_seen"]),
        "conditions": [
            condition(old, "Admitted", "False", reason, message, now),
        ],
    }


def state_of_asked(asked: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return the phase of a machine that asks, the reason in one word, and in a few."""
    if asked["decision"] == "Denied":
        return "Denied", "Denied", "refused by an administrator"
    if asked.get("blocked") and asked.get("wipe"):
        return "Installing", "Installing", "a disk of it is wiped; it installs itself, and comes again"
    if asked.get("blocked"):
        return "Pending", "NeedsDisk", asked["blocked"]
    return "Pending", "WaitsForApproval", "compare the fingerprint with the machine's console"


def facts(asked: Mapping[str, Any]) -> Object:
    """Return what is shown of a machine's request, also when it was admitted."""
    return {**{key: asked[key] for key in ("via", "ports", "disks")}, "firstSeen": moment(asked["first_seen"])}


def condition(old: Object, kind: str, status: str, reason: str, message: str, now: float) -> Object:
    """Return a condition; its time is that of the last change."""
    known = next((one for one in old.get("conditions", []) if one["type"] == kind), None)
    since = known["lastTransitionTime"] if known and known["status"] == status else moment(now)
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": since}


def moment(seconds: float) -> str:
    """Return a time as RFC 3339."""
    return datetime.datetime.fromtimestamp(int(seconds), datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class MeshNodes:
    """Keeps the objects as the ledger says, and the ledger as people say in the objects."""

    def __init__(self, client: Client, ledger: Ledger, cluster: str, prefix: str) -> None:
        self._client, self._ledger, self._cluster, self._prefix = client, ledger, cluster, prefix
        self._kept_out: frozenset[str] | None = None

    def forget(self) -> None:
        """Take nothing for known that another leader may have changed."""
        self._kept_out = None

    async def reconcile(
        self,
        ready: Mapping[str, bool],
        reachable: frozenset[int],
        now: float,
        offers: Mapping[int, Mapping[str, str]] = MappingProxyType({}),
    ) -> bool:
        """Carry out decisions, then bring every object up to date. Tells whether anything was decided.

        `ready` is by node name, `reachable` has the numbers of nodes that the mesh leads to; `offers` are what nodes offer to
        machines on their cables, by number and port.
        """
        listed = await kubernetes_api.get(self._client, PATH)
        objects = {item["metadata"]["name"]: item for item in (listed or {}).get("items", [])}
        asked = await self._ledger.asked()
        registry, _ = await self._ledger.registry()
        decided = await self._carry_out(objects, asked, registry, reachable, now)
        decided |= await self._replace(objects, asked, registry, reachable, now)
        for name in await self._keep_out(now) & ready.keys():
            await kubernetes_api.delete(self._client, f"/api/v1/nodes/{name}")
        if decided:
            asked = await self._ledger.asked()
            registry, _ = await self._ledger.registry()
        known = {node.fingerprint for node in registry.nodes}
        finished = {key for key, one in asked.items() if key in known or _is_forgotten(one, now)}
        wanted = {}
        for node in registry.nodes:
            old = _status(objects, node.fingerprint)
            if node.fingerprint in asked:
                old = {**old, **facts(asked[node.fingerprint])}
            leaves = _decision(objects, node.fingerprint) == "Removed"
            status = status_of_node(node, ready.get(node.name), old, now, leaves=leaves)
            if offered := offers.get(node.number):
                status["offers"] = [{"port": port, "message": text} for port, text in sorted(offered.items())]
            wanted[object_name(node.fingerprint)] = status
        # Of several whose objects have one name, the one that has it keeps it.
        for fingerprint in sorted(set(asked) - finished, key=lambda one: (not _status(objects, one), one)):
            shown = status_of_asked(asked[fingerprint], _status(objects, fingerprint), now)
            wanted.setdefault(object_name(fingerprint), shown)
        said = {object_name(key): one for key, one in asked.items() if key not in finished}
        await self._show(objects, wanted, said)
        for fingerprint in finished:
            await self._ledger.forget_asked(fingerprint)
        return decided

    async def _carry_out(
        self,
        objects: dict[str, Object],
        asked: dict[str, dict[str, Any]],
        registry: Registry,
        reachable: frozenset[int],
        now: float,
    ) -> bool:
        """Do what spec.decision says; tells whether anything changed."""
        changed = False
        known = {node.fingerprint for node in registry.nodes}
        for fingerprint, one in asked.items():
            decision, wipe = _decision(objects, fingerprint), _may_wipe(objects, fingerprint)
            if fingerprint in known:
                continue
            if decision == "Removed":
                await self._ledger.forget_asked(fingerprint)
                await self._delete(objects, fingerprint)
                changed = True
            elif decision is not None and (decision, wipe) != (one["decision"], one.get("wipe", False)):
                said = {**one, "decision": decision, "wipe": wipe}
                await self._ledger.etcd.put(ASKED + fingerprint, json.dumps(said))
                # One without a disk to live on is admitted when it has come again from that disk.
                if decision == "Approved" and not one.get("blocked"):
                    await self._ledger.admit(one, lambda number: f"{self._cluster}-{number}", now)
                changed = True
        for node in registry.nodes:
            if _decision(objects, node.fingerprint) == "Removed":
                changed |= await self._remove(objects, node, reachable, now)
        return changed

    async def _replace(
        self,
        objects: dict[str, Object],
        asked: dict[str, dict[str, Any]],
        registry: Registry,
        reachable: frozenset[int],
        now: float,
    ) -> bool:
        """Take out nodes whose machine lost its disk and asks anew, if policy lets it in; tells whether there was one."""
        changed = False
        for one in asked.values():
            node = registry.find(number=one.get("replaces"), uuid=one["uuid"])
            asks = one["decision"] != "Denied" and now - one["last_seen"] < ASKS_S
            if asks and node is not None and node.number not in reachable:
                log.info("%s lost its disk, and asks anew", node.name)
                changed |= await self._remove(objects, node, reachable, now)
        return changed

    async def _remove(self, objects: dict[str, Object], node: Node, reachable: frozenset[int], now: float) -> bool:
        """Take a node out: first its vote, then its name and its objects, then its place in the registry.

        One that etcd cannot spare now keeps nobody else waiting.
        """
        try:
            if not await self._leave_etcd(node, reachable):
                return False
        except EtcdError as error:
            log.warning("%s is not removed yet: %s", node.name, error)
            return False
        await self._ledger.rest(node, now)
        await self._keep_out(now, node.number)
        await kubernetes_api.delete(self._client, f"/api/v1/nodes/{node.name}")
        await self._ledger.remove(node.number)
        await self._delete(objects, node.fingerprint)
        return True

    async def _keep_out(self, now: float, leaving: int = 0) -> frozenset[str]:
        """Have the API know the names that rest, and that no node has; returns them."""
        registry, _ = await self._ledger.registry()
        resting = (await self._ledger.resting(now)).keys() - (registry.numbers - {leaving})
        names = frozenset(f"{self._cluster}-{number}" for number in resting)
        if names != self._kept_out:
            await removed_nodes.keep_out(self._client, names)
            self._kept_out = names
        return names

    async def _leave_etcd(self, node: Node, reachable: frozenset[int]) -> bool:
        members = await self._ledger.etcd.members()
        peer = network.peer_url(self._prefix, node.number)
        member = next((one for one in members if peer in one.peer_urls), None)
        if member is None:
            return True
        others = [one for one in members if not one.learner and one.id != member.id]
        if not others:
            log.warning("%s is the only voter and stays", node.name)
            return False
        if (await self._ledger.etcd.status()).member == member.id:
            # Another has to lead, and finish what begins here.
            urls = {network.peer_url(self._prefix, number) for number in reachable}
            others.sort(key=lambda one: urls.isdisjoint(one.peer_urls))
            await self._ledger.etcd.move_leader(others[0].id)
            return False
        await self._ledger.etcd.remove(member.id)
        return True

    async def _delete(self, objects: dict[str, Object], fingerprint: str) -> None:
        await kubernetes_api.delete(self._client, f"{PATH}/{object_name(fingerprint)}")
        objects.pop(object_name(fingerprint), None)

    async def _show(
        self, objects: dict[str, Object], wanted: dict[str, Object], said: dict[str, dict[str, Any]]
    ) -> None:
        for name, status in wanted.items():
            item = objects.get(name)
            if item is None:
                # Somebody may have deleted it: what was decided stays.
                one = said.get(name, {})
                spec = {"decision": one.get("decision", ""), "wipe": one.get("wipe", False)}
                body = {"apiVersion": "kubermesh.io/v1", "kind": "MeshNode", "metadata": {"name": name}, "spec": spec}
                item = await kubernetes_api.create(self._client, PATH, body)
            if item.get("status") != status:
                await kubernetes_api.replace(self._client, f"{PATH}/{name}/status", {**item, "status": status})
        for name in set(objects) - set(wanted):
            await kubernetes_api.delete(self._client, f"{PATH}/{name}")


def _is_forgotten(asked: Mapping[str, Any], now: float) -> bool:
    return bool(asked["decision"] != "Denied" and now - asked["last_seen"] > FORGET_S)


def _object(objects: dict[str, Object], fingerprint: str) -> Object:
    """The object of a key: not that of another whose name is the same, which somebody may have searched for."""
    found = objects.get(object_name(fingerprint), {})
    return found if found.get("status", {}).get("fingerprint", fingerprint) == fingerprint else {}


def _status(objects: dict[str, Object], fingerprint: str) -> Object:
    status: Object = _object(objects, fingerprint).get("status", {})
    return status


def _may_wipe(objects: dict[str, Object], fingerprint: str) -> bool:
    """Whether a person lets the machine wipe a disk."""
    return _object(objects, fingerprint).get("spec", {}).get("wipe", False) is True


def _decision(objects: dict[str, Object], fingerprint: str) -> str | None:
    """What a person decided; None when there is no object to say so."""
    item = _object(objects, fingerprint)
    return str(item.get("spec", {}).get("decision", "")) if item else None

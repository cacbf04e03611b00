"""What the cluster knows of its nodes, in etcd: the signed registry, requests to be admitted, identities, mesh keys."""

import asyncio
import json
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

from kmagent import candidates, settings
from kmagent import registry as registries
from kmagent.authority import Authority
from kmagent.candidates import Report
from kmagent.etcd import Etcd, Value
from kmagent.registry import Node, Registry
from kmagent.settings import Plan
from kmplan.tuning import CERTIFICATE_DAYS

log = logging.getLogger(__name__)

REGISTRY = "/kubermesh/registry"
ASKED = "/kubermesh/asked/"
IDENTITIES = "/kubermesh/identities/"
MESH_KEYS = "/kubermesh/mesh-keys"
REPORTS = "/kubermesh/reports/"
RESTING = "/kubermesh/resting/"
BARRED = "/kubermesh/barred"
SETTINGS_PLAN, SETTINGS = "/kubermesh/settings-plan", "/kubermesh/settings/"
# So many machines may wait for a decision, and so many of them at one node: a stranger on its cable fills no more than that. One
# that has not asked again for so long makes room; those that wait repeat it, which is written down every minute.
MAX_ASKED, MAX_ASKED_AT_ONE, QUIET_S = 128, 16, 180.0
# A removed node's number rests for as long as a kubelet certificate lives that names it.
REST_S = CERTIFICATE_DAYS * 86400.0
ATTEMPTS = 20
EPOCH_SERIALS = 1000


class Ledger:
    """The records in etcd; each change is one transaction, repeated when somebody else was faster."""

    def __init__(self, etcd: Etcd, authority: Authority, changed: Callable[[str], Awaitable[None]]) -> None:
        self.etcd = etcd
        self.authority = authority
        # Called with the signed text after each change that was made here.
        self._changed = changed
        # Who asks at the same time is counted one after the other.
        self._asking = asyncio.Lock()

    async def registry(self) -> tuple[Registry, Value]:
        """Read the registry and its signed form; the latter is empty when there is none yet."""
        value = await self.etcd.get(REGISTRY)
        return _registry(value), value

    async def registry_with(self, key: str) -> tuple[Registry, Value]:
        """Read the registry, and another key as it was at the same moment."""
        value, other = await self.etcd.get_all(REGISTRY, key)
        return _registry(value), other

    async def begin(self, first: Registry, mesh_key: str) -> Registry:
        """Write the first registry, if there is none: with it the cluster begins. Returns the one that there is."""
        registry, value = await self.registry()
        if value.revision:
            return registry
        packed = await self.authority.sign(first)
        puts = {REGISTRY: packed, MESH_KEYS: json.dumps({"1": mesh_key})}
        if await self.etcd.commit({REGISTRY: 0}, puts):
            await self._changed(packed)
        return (await self.registry())[0]

    async def change(self, change: registries.Change) -> Registry:
        """Change the registry by `change`, which is given the current one and may return None to leave it."""
        for _ in range(ATTEMPTS):
            old, value = await self.registry()
            new = change(old)
            if new is None:
                return old
            packed = await self.authority.sign(new)
            if await self.etcd.commit({REGISTRY: value.revision}, {REGISTRY: packed}):
                await self._changed(packed)
                return new
        raise OSError("the registry changes faster than it can be written")

    async def begin_epoch(self, epoch: int, voter: Node, serial: int, known_keys: Mapping[int, str]) -> Registry:
        """Go on in a new epoch, perhaps with older data than the nodes know of, and with `voter` as the one that votes.

        Nobody else has its data, so the others are workers, and nobody asks them whether it goes on without this node.
        `serial` is that of the registry this node had, `known_keys` the mesh keys (hex, by generation) that it has: with
        those the mesh runs.
        """
        for _ in range(ATTEMPTS):
            old, value = await self.registry()
            if old.epoch >= epoch:
                return old
            kept, kept_value = await self.mesh_keys()
            keys = {**kept, **known_keys}
            ahead = max(old.serial, serial) + EPOCH_SERIALS
            known = old.find(number=voter.number, certificate=voter.certificate) or voter
            others = replace(old, nodes=tuple(replace(node, role="worker") for node in old.nodes))
            new = replace(
                others.put(replace(known, role="voter")),
                epoch=epoch,
                serial=ahead,
                mesh_key=max(keys),
                oldest_key=max(old.oldest_key, min(known_keys)),
            )
            packed = await self.authority.sign(new)
            puts = {REGISTRY: packed, MESH_KEYS: json.dumps(keys)}
            if await self.etcd.commit({REGISTRY: value.revision, MESH_KEYS: kept_value.revision}, puts):
                log.warning("epoch %d of the cluster begins with registry %d", epoch, ahead)
                await self._changed(packed)
                return new
        raise OSError("the registry changes faster than it can be written")

    async def admit(self, asked: dict[str, Any], name_of: Callable[[int], str], now: float) -> Node:
        """Make a node of a machine that asked: a number, a name, an identity certificate. Repeating it changes nothing."""
        for _ in range(ATTEMPTS):
            old, value = await self.registry()
            if not value.text:
                raise OSError("the cluster has not begun yet")
            known = old.find(fingerprint=asked["fingerprint"])
            if known:
                return known
            resting = await self.resting(now)
            own = {number for number, uuid in resting.items() if uuid and uuid == asked["uuid"]}
            number = old.free_number(asked["wish"] or min(own, default=0), frozenset(resting.keys() - own))
            certificate, digest = await self.authority.identify(asked["csr"], name_of(number))
            node = Node(
                number, name_of(number), "worker", asked["fingerprint"], digest, asked["uuid"], float(int(now)),
                diskless=asked.get("diskless", False),
            )  # fmt: skip
            packed = await self.authority.sign(old.put(node))
            # What the machine said of itself stays until its MeshNode shows it.
            kept = json.dumps({**asked, "decision": ""})
            puts = {REGISTRY: packed, IDENTITIES + node.fingerprint: certificate, ASKED + node.fingerprint: kept}
            if await self.etcd.commit({REGISTRY: value.revision}, puts, [RESTING + str(number)]):
                log.info("admitted %s as node %d, %s", asked["fingerprint"][:16], number, node.name)
                await self._changed(packed)
                return node
        raise OSError("the registry changes faster than it can be written")

    async def rest(self, node: Node, now: float) -> None:
        """Give the number of a node that is to be removed to nobody but its own machine (by UUID) until REST_S have passed."""
        expired = [RESTING + str(number) for number, rest in (await self._rests()).items() if rest["until"] <= now]
        until = {RESTING + str(node.number): json.dumps({"until": now + REST_S, "uuid": node.uuid})}
        await self.etcd.commit({}, until, [key for key in expired if key not in until])

    async def resting(self, now: float) -> dict[int, str]:
        """Return the UUIDs of removed nodes by the numbers that rest."""
        return {number: rest["uuid"] for number, rest in (await self._rests()).items() if rest["until"] > now}

    async def _rests(self) -> dict[int, dict[str, Any]]:
        found = await self.etcd.read_all(RESTING)
        return {int(key.removeprefix(RESTING)): json.loads(value.text) for key, value in found.items()}

    async def remove(self, number: int) -> None:
        """Take a node out of the registry, and give the others a mesh key that it does not have."""
        for _ in range(ATTEMPTS):
            old, value = await self.registry()
            node = old.find(number=number)
            if node is None:
                return
            theirs = [
                IDENTITIES + node.fingerprint,
                ASKED + node.fingerprint,
                REPORTS + str(number),
                SETTINGS + str(number),
            ]
            if await self._roll(old.drop(number), value, theirs):
                log.info("removed node %d, %s", number, node.name)
                return
        raise OSError("the registry changes faster than it can be written")

    async def _roll(self, new: Registry, value: Value, deletes: list[str]) -> bool:
        keys, keys_value = await self.mesh_keys()
        generation = max(keys) + 1
        packed = await self.authority.sign(replace(new, mesh_key=generation))
        puts = {REGISTRY: packed, MESH_KEYS: json.dumps({**keys, generation: secrets.token_hex(32)})}
        unchanged = {REGISTRY: value.revision, MESH_KEYS: keys_value.revision}
        done = await self.etcd.commit(unchanged, puts, deletes)
        if done:
            await self._changed(packed)
        return done

    async def drop_old_keys(self, newest: int) -> None:
        """End all generations of the mesh key but the newest: who has only those has to ask for it with its identity.

        Nothing is done when there is a newer one than that by now, or they have ended.
        """
        old, value = await self.registry()
        if old.mesh_key != newest or old.oldest_key == newest:
            return
        keys, keys_value = await self.mesh_keys()
        packed = await self.authority.sign(replace(old, serial=old.serial + 1, oldest_key=old.mesh_key))
        puts = {REGISTRY: packed, MESH_KEYS: json.dumps({old.mesh_key: keys[old.mesh_key]})}
        if await self.etcd.commit({REGISTRY: value.revision, MESH_KEYS: keys_value.revision}, puts):
            log.info("the mesh key is of generation %d, and older ones are good no more", old.mesh_key)
            await self._changed(packed)

    async def mesh_keys(self) -> tuple[dict[int, str], Value]:
        """Return the mesh keys (hex) by generation."""
        value = await self.etcd.get(MESH_KEYS)
        return {int(generation): key for generation, key in json.loads(value.text or "{}").items()}, value

    async def asked(self) -> dict[str, dict[str, Any]]:
        """Return the requests that wait for a decision, were denied, or were admitted just now, by fingerprint."""
        found = await self.etcd.read_all(ASKED)
        return {key.removeprefix(ASKED): json.loads(value.text) for key, value in found.items()}

    async def note_asked(self, asked: dict[str, Any]) -> bool:
        """Keep a request; False when too many wait already, in all or at the node that this one came by (`relay`)."""
        async with self._asking:
            known = await self.asked()
            if asked["fingerprint"] not in known and not await self._has_room(asked, known):
                return False
            await self.etcd.put(ASKED + asked["fingerprint"], json.dumps(asked))
            return True

    async def _has_room(self, asked: dict[str, Any], known: dict[str, dict[str, Any]]) -> bool:
        """Whether one more may wait, perhaps in the place of one that has not asked again for long."""
        waiting = sorted((one for one in known.values() if not one["decision"]), key=lambda one: one["last_seen"])
        here = [one for one in waiting if one.get("relay") == asked["relay"]]
        full = here if len(here) >= MAX_ASKED_AT_ONE else waiting if len(waiting) >= MAX_ASKED else None
        if full:
            if asked["last_seen"] - full[0]["last_seen"] < QUIET_S:
                return False
            await self.forget_asked(full[0]["fingerprint"])
        return True

    async def forget_asked(self, fingerprint: str) -> None:
        """Drop a request."""
        await self.etcd.delete(ASKED + fingerprint)

    async def identity(self, fingerprint: str) -> str:
        """Return a node's identity certificate, PEM; empty when there is none."""
        return (await self.etcd.get(IDENTITIES + fingerprint)).text

    async def barred(self) -> frozenset[int]:
        """Return the numbers of the nodes that shall not be of the control plane, as their labels said last."""
        return frozenset(json.loads((await self.etcd.get(BARRED)).text or "[]"))

    async def note_barred(self, numbers: frozenset[int]) -> None:
        """Say so: who leads next knows it before there is an API to ask."""
        await self.etcd.put(BARRED, json.dumps(sorted(numbers)))

    async def note_report(self, number: int, report: Report) -> None:
        """Keep what a node says of itself."""
        await self.etcd.put(REPORTS + str(number), candidates.to_text(report))

    async def settings_plan(self) -> Plan:
        """Return which settings of the control plane which nodes shall have."""
        return settings.plan_from_text((await self.etcd.get(SETTINGS_PLAN)).text)

    async def note_settings_plan(self, plan: Plan) -> None:
        """Say it."""
        await self.etcd.put(SETTINGS_PLAN, settings.plan_to_text(plan))

    async def settings_reports(self) -> dict[int, settings.Report]:
        """Return what became of the settings on each node, by number."""
        found = await self.etcd.read_all(SETTINGS)
        return {int(key.removeprefix(SETTINGS)): settings.Report(**json.loads(one.text)) for key, one in found.items()}

    async def note_settings(self, number: int, report: settings.Report) -> None:
        """Tell what became of the settings on a node."""
        await self.etcd.put(SETTINGS + str(number), json.dumps(asdict(report)))

    async def reports(self) -> dict[int, Report]:
        """Return what the nodes said of themselves last, by number."""
        found = await self.etcd.read_all(REPORTS)
        return {int(key.removeprefix(REPORTS)): candidates.from_text(value.text) for key, value in found.items()}


def _registry(value: Value) -> Registry:
    text = registries.unpack(value.text)[0] if value.text else ""
    return registries.from_text(text) if text else Registry("")

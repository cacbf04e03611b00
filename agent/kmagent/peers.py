"""The other nodes, asked directly: each answers at its own address, and shows the certificate that the registry names."""

import asyncio
import json
import logging
from collections.abc import Mapping
from typing import Any

from kmagent import network
from kmagent.facts import Facts
from kmagent.http import Client, Tls
from kmagent.paths import Paths
from kmagent.registry import Node, Registry

log = logging.getLogger(__name__)

NODE_PORT = 9444
# What a node may say of itself, in bytes: the order that it keeps is most of it.
ANSWER_S, MOST = 3.0, 1 << 18


class Peers:
    """Asks all registered nodes at once; who does not answer in time, or at all, has no answer."""

    def __init__(self, paths: Paths, facts: Facts) -> None:
        self._paths, self._facts = paths, facts

    async def states(self, registry: Registry) -> dict[int, dict[str, Any]]:
        """Return what the other nodes say of themselves, by number."""
        answers = await self._ask_all(registry, "GET", "/v1/state", None)
        return {number: answer for number, answer in answers.items() if _is_sound(answer)}

    async def epochs(self, registry: Registry) -> dict[int, int]:
        """Return which epoch the other nodes know of, by number."""
        return {number: int(answer["epoch"]) for number, answer in (await self.states(registry)).items()}

    async def give_order(self, registry: Registry, packed: str) -> frozenset[int]:
        """Give an order to all; returns the numbers of those who keep it."""
        answers = await self._ask_all(registry, "POST", "/v1/order", packed.encode())
        return frozenset(number for number, answer in answers.items() if answer.get("state") == "kept")

    async def _ask_all(
        self, registry: Registry, method: str, path: str, body: bytes | None
    ) -> Mapping[int, dict[str, Any]]:
        others = [node for node in registry.nodes if node.number != self._facts.number]
        answers = await asyncio.gather(*(self._ask(node, method, path, body) for node in others))
        return {node.number: answer for node, answer in zip(others, answers, strict=True) if answer is not None}

    async def _ask(self, node: Node, method: str, path: str, body: bytes | None) -> dict[str, Any] | None:
        tls = Tls(self._paths.state / "pki/node-ca.crt", self._paths.state / "identity.crt", digest=node.certificate)
        address = network.node_address(self._facts.prefix, node.number)
        client = Client(address, NODE_PORT, tls=tls, timeout_s=ANSWER_S * self._facts.probe_scale, most=MOST)
        try:
            # Of all of it: one that was admitted may say it byte by byte.
            asked = client.request(method, path, body)
            answer = await asyncio.wait_for(asked, 2 * ANSWER_S * self._facts.probe_scale)
            client.close()
            data = json.loads(answer.body) if answer.status == 200 else None
        except (OSError, ValueError, RecursionError) as error:
            log.debug("%s: %s: %s", node.name, path, error)
            return None
        return data if isinstance(data, dict) else None


def _is_sound(answer: Mapping[str, Any]) -> bool:
    """Whether what is counted with are numbers, and so on; a node of another version may not say all of it."""
    counted = [answer[name] for name in ("own_epoch", "withdrawn") if name in answer]
    texts = [answer[name] for name in ("role", "signed_order") if name in answer]
    etcd = answer.get("etcd") or {"revision": None, "has_leader": False}
    return (
        all(isinstance(value, int) for value in (answer.get("epoch"), *counted))
        and all(isinstance(text, str) for text in texts)
        and isinstance(etcd, dict)
        and isinstance(etcd.get("has_leader"), bool)
        and isinstance(etcd.get("revision"), int | None)
    )

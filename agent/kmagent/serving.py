"""Approves kubelets' requests for serving certificates, which Kubernetes leaves to the cluster: against the registry."""

import base64
import logging
from typing import Any

from kmagent import kubernetes_api, network
from kmagent.authority import Authority, RefusedError
from kmagent.facts import Facts
from kmagent.http import Client
from kmagent.registry import Registry

log = logging.getLogger(__name__)

REQUESTS = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
SIGNER = "kubernetes.io/kubelet-serving"
USAGES = {"digital signature", "key encipherment", "server auth"}
PREFIX = "system:node:"


async def approve(client: Client, authority: Authority, registry: Registry, facts: Facts) -> None:
    """Decide on every request that waits; one that is refused stays denied, with the reason in it."""
    answer = await kubernetes_api.get(
        client, f"{REQUESTS}?fieldSelector=spec.signerName%3D{SIGNER.replace('/', '%2F')}"
    )
    for item in (answer or {}).get("items", []):
        if item.get("status", {}).get("conditions"):
            continue
        try:
            name, addresses = expected(item["spec"], registry, facts)
            csr = base64.b64decode(item["spec"]["request"]).decode()
            await authority.check_serving(csr, name, addresses)
            verdict = ("Approved", "RegisteredNode", f"{name} and its addresses are in the registry")
        except (RefusedError, ValueError) as error:
            verdict = ("Denied", "NotTheNodes", str(error))
            log.warning("serving certificate %s: denied: %s", item["metadata"]["name"], error)
        await _decide(client, item, *verdict)


def expected(spec: dict[str, Any], registry: Registry, facts: Facts) -> tuple[str, list[str]]:
    """Return the name and addresses that a request may name; ValueError when its sender may not ask."""
    name = str(spec.get("username", "")).removeprefix(PREFIX)
    node = registry.find(name=name)
    if not str(spec.get("username", "")).startswith(PREFIX) or "system:nodes" not in spec.get("groups", []):
        raise ValueError(f"{spec.get('username')} is not a node")
    if node is None:
        raise ValueError(f"no node {name} in the registry")
    usages = set(spec.get("usages", []))
    if not usages <= USAGES or "server auth" not in usages:
        raise ValueError(f"it asks for {', '.join(sorted(usages))}")
    return name, network.node_addresses(facts.prefix, node.number)


async def _decide(client: Client, item: dict[str, Any], kind: str, reason: str, message: str) -> None:
    name = item["metadata"]["name"]
    condition = {"type": kind, "status": "True", "reason": reason, "message": message}
    item["status"] = {**item.get("status", {}), "conditions": [condition]}
    await kubernetes_api.replace(client, f"{REQUESTS}/{name}/approval", item)

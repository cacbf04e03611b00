"""Pods that a node denied when it came back: its kubelet still saw the taint of a lost node.

Their controllers have made others elsewhere by then. Kubernetes keeps the old objects, `Failed`, until there are thousands.
"""

import asyncio
import logging
from typing import Any

from kmagent import kubernetes_api
from kmagent.http import Client

log = logging.getLogger(__name__)

FAILED = "/api/v1/pods?fieldSelector=status.phase%3DFailed&resourceVersion=0"
# The name of the scheduler's plugin that kubelet asks as well: pkg/kubelet/lifecycle/predicate.go of Kubernetes.
REASON = "TaintToleration"


async def delete(client: Client) -> None:
    """Delete those that a controller has replaced; a pod that somebody made by hand stays."""
    listed = await kubernetes_api.get(client, FAILED)
    pods = [item for item in (listed or {}).get("items", []) if is_denied(item)]
    if pods:
        log.info("deleting pods that nodes denied as they came back: %d", len(pods))
    metadata = [item["metadata"] for item in pods]
    paths = [f"/api/v1/namespaces/{one['namespace']}/pods/{one['name']}" for one in metadata]
    await asyncio.gather(*(kubernetes_api.delete(client, path) for path in paths))


def is_denied(item: dict[str, Any]) -> bool:
    """Whether a pod was denied for a taint, and is one of a controller's."""
    owned = any(owner.get("controller") for owner in item["metadata"].get("ownerReferences", []))
    return owned and item.get("status", {}).get("reason") == REASON

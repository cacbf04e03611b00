"""Leases of the control plane's leaders that run on lost nodes: given back in their name.

kube-controller-manager makes pods anew, kube-scheduler finds them a place; where one of them led on the node that is lost, the
others wait for 15 s until its lease has run out. Such a leader writes nothing any more: no way leads from it to etcd's majority.
"""

import logging
from collections.abc import Collection
from typing import Any

from kmagent import kubernetes_api
from kmagent.http import Client

log = logging.getLogger(__name__)

LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases"
NAMES = ("kube-controller-manager", "kube-scheduler")


async def give_back(client: Client, nodes: Collection[str]) -> None:
    """Give back what these nodes hold, as client-go does when it ends (tools/leaderelection, `release`)."""
    for name in NAMES:
        path = f"{LEASES}/{name}"
        lease = await kubernetes_api.get(client, path)
        if lease and (holder := holder_of(lease)) in nodes:
            log.warning("%s led on %s: another may lead now", name, holder)
            # Refused when it was renewed, or taken, meanwhile.
            version = {"resourceVersion": lease["metadata"]["resourceVersion"]}
            await kubernetes_api.merge(
                client, path, {"metadata": version, "spec": {"holderIdentity": "", "leaseDurationSeconds": 1}}
            )


def holder_of(lease: dict[str, Any]) -> str:
    """The node of the process that holds a lease: its identity is the host's name and a random part."""
    return str(lease.get("spec", {}).get("holderIdentity") or "").rpartition("_")[0]

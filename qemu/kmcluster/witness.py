"""An oracle: a pod on every node, which Kubernetes makes anew elsewhere as soon as its node is given up, rightly or not."""

import json
from typing import Any

from kmcluster import steady
from kmcluster.state import Cluster

NAME = "kubermesh-verify"
READY_S = 60


def place(cluster: Cluster) -> dict[str, str]:
    """Have a pod on every node, and wait for it; returns the nodes' names by the pods' UIDs."""
    steady.kubectl(cluster, "apply", "-f", "-", given=json.dumps(deployment(len(cluster.machines))))
    steady.kubectl(cluster, "rollout", "status", f"deployment/{NAME}", f"--timeout={READY_S}s")
    return where(cluster)


def deployment(replicas: int) -> dict[str, Any]:
    """A pod for each node, and no more than one on any: so each stands for its node."""
    labels = {"app": NAME}
    apart = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": labels}}
    container = {
        "name": "pause",
        "image": "kubermesh.local/pause:1",
        "imagePullPolicy": "Never",
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    pod = {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 1,
        "securityContext": {"runAsUser": 65535, "runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [apart]}},
        "containers": [container],
    }
    template = {"metadata": {"labels": labels}, "spec": pod}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": NAME},
        "spec": {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template},
    }


def where(cluster: Cluster) -> dict[str, str]:
    """The nodes' names by the UIDs of the pods on them, of those that are not being ended."""
    found = steady.items(cluster, "pods", f"--selector=app={NAME}")
    alive = [item for item in found if "deletionTimestamp" not in item["metadata"]]
    return {item["metadata"]["uid"]: item["spec"].get("nodeName", "") for item in alive}


def evicted(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """The nodes whose pods are gone."""
    return sorted(node for uid, node in before.items() if uid not in after)

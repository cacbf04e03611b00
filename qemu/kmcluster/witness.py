"""An oracle: a pod on every node, which Kubernetes makes anew elsewhere as soon as its node is given up, rightly or not."""

import json
from typing import Any

from kmcluster import steady
from kmcluster.state import Cluster

NAME = "kubermesh-verify"
READY_S = 60
CONTAINER = {
    "name": "pause",
    "image": "kubermesh.local/pause:1",
    "imagePullPolicy": "Never",
    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
}


def place(cluster: Cluster) -> dict[str, str]:
    """Have a pod on every node, and wait for it; returns the nodes' names by the pods' UIDs."""
    # No more than one on any node: so each stands for its own.
    apart = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": NAME}}}
    affinity = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [apart]}}
    roll_out(cluster, NAME, [deployment(NAME, len(cluster.machines), affinity, CONTAINER)])
    return where(cluster)


def roll_out(cluster: Cluster, name: str, objects: list[dict[str, Any]]) -> None:
    """Apply objects, and wait for the deployment of this name among them; UserError when it is not ready in time."""
    given = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    steady.kubectl(cluster, "apply", "--filename=-", given=given)
    steady.kubectl(cluster, "rollout", "status", f"deployment/{name}", f"--timeout={READY_S * steady.pace(cluster):g}s")


def deployment(name: str, replicas: int, affinity: dict[str, Any], container: dict[str, Any]) -> dict[str, Any]:
    """Pods of one container, that end at once."""
    labels = {"app": name}
    pod = {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 1,
        "securityContext": {"runAsUser": 65535, "runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "affinity": affinity,
        "containers": [container],
    }
    template = {"metadata": {"labels": labels}, "spec": pod}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template},
    }


def where(cluster: Cluster) -> dict[str, str]:
    """The nodes' names by the UIDs of the pods on them, of those that are not being ended."""
    return {item["metadata"]["uid"]: item["spec"].get("nodeName", "") for item in alive(cluster)}


def addresses(cluster: Cluster) -> dict[str, str]:
    """The pods' addresses by the names of their nodes."""
    return {item["spec"]["nodeName"]: item["status"]["podIP"] for item in alive(cluster)}


def alive(cluster: Cluster) -> list[dict[str, Any]]:
    """The pods that are not being ended."""
    found = steady.items(cluster, "pods", f"--selector=app={NAME}")
    return [item for item in found if "deletionTimestamp" not in item["metadata"]]


def evicted(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """The nodes whose pods are gone."""
    return sorted(node for uid, node in before.items() if uid not in after)

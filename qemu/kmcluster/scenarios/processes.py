"""Faults of programs: killed, stopped, or deleted by hand."""

import json

from kmcluster.scenario import GRACE_S, Scenario, Scene, follower, leader, worker
from kmplan.errors import UserError

# etcd's quota where it is reached on purpose; an object of the API server may have 1 MiB.
QUOTA_MIB, LARGE_BYTES = 48, 1_000_000

VICTIMS = {"leader": leader, "follower": follower, "worker": worker}


def kill(program: str, role: str) -> Scenario:
    """A program is killed on a node: on the one whose etcd leads (`leader`), on another voter (`follower`), or a worker."""
    where = {"leader": "the leading node", "follower": "a voter that does not lead", "worker": "a worker"}[role]

    return Scenario(
        name=f"kill-{program}-{role}",
        title=f"{program} is killed on {where}",
        tags=("process", "quick"),
        victims=VICTIMS[role],
        fault=lambda scene, chosen: scene.signal(chosen[0], program),
        outage_s=10,
        whole_s=90,
    )


def stop(program: str) -> Scenario:
    """A program on the leading node stands still, and goes on."""
    return Scenario(
        name=f"stop-{program}-leader",
        title=f"{program} on the leading node stands still for a quarter of a minute",
        tags=("process",),
        victims=leader,
        fault=lambda scene, chosen: scene.signal(chosen[0], program, "STOP"),
        undo=lambda scene, chosen: scene.signal(chosen[0], program, "CONT"),
        after_s=15,
        outage_s=15,
    )


def spoil(scene: Scene, chosen: list[int]) -> None:
    """Spoil what etcd has written, and have it read that: it does not start again."""
    scene.disk(chosen[0], "corrupt")
    scene.signal(chosen[0], "etcd")


def delete_pods(scene: Scene, _: list[int]) -> None:
    """Delete every mirror pod of the control plane, twice."""
    for _again in range(2):
        scene.tell("kubectl delete pods of the control plane")
        scene.kubectl("-n", "kube-system", "delete", "pods", "-l", "tier=control-plane", "--wait=false")


def delete_addons(scene: Scene, _: list[int]) -> None:
    """Delete the objects of kube-proxy and CoreDNS."""
    scene.tell("kubectl delete daemonsets kube-proxy, coredns")
    scene.kubectl("-n", "kube-system", "delete", "daemonset", "kube-proxy", "coredns")


def fill_history(scene: Scene, _: list[int]) -> None:
    """Change a large object again and again, until etcd's database has reached its quota and nothing can be written."""
    scene.tell("kubectl replace of a large object, again and again")
    for number in range(QUOTA_MIB):
        data = {"metadata": {"name": "large"}, "data": {"text": f"{number}".ljust(LARGE_BYTES, "x")}}
        item = json.dumps({"apiVersion": "v1", "kind": "ConfigMap", **data})
        try:
            scene.kubectl("replace" if number else "create", "--filename=-", given=item)
        except UserError as error:
            if "database space exceeded" in str(error):
                scene.tell(f"etcd has no room after {number} changes")
                return
            raise
    raise UserError(f"{QUOTA_MIB} changes of 1 MiB fit into {QUOTA_MIB} MiB: the quota is not in force")


def drop_large(scene: Scene, _: list[int]) -> None:
    """Delete the large object, which takes an etcd that can be written to again."""
    scene.kubectl("delete", "configmap", "large")


def nobody(_: Scene) -> list[int]:
    """No machine is harmed."""
    return []


SCENARIOS = [
    kill("etcd", "leader"),
    kill("etcd", "follower"),
    kill("kube-apiserver", "leader"),
    stop("etcd"),
    stop("kube-apiserver"),
    kill("kubelet", "worker"),
    kill("containerd", "worker"),
    kill("kmagent", "leader"),
    kill("babeld", "follower"),
    Scenario(
        name="delete-mirror-pods",
        title="the pods of the control plane are deleted, twice",
        tags=("process", "quick"),
        victims=nobody,
        fault=delete_pods,
        whole_s=60,
    ),
    Scenario(
        name="delete-addons",
        title="the objects of kube-proxy and CoreDNS are deleted",
        tags=("process",),
        victims=nobody,
        fault=delete_addons,
        whole_s=120,
    ),
    Scenario(
        name="corrupt-etcd",
        title="what etcd wrote last on a voter is spoiled: the node gives up its vote and begins anew",
        tags=("process", "members"),
        victims=follower,
        fault=spoil,
        after_s=GRACE_S + 20,
        whole_s=180,
        replaced=True,
    ),
    Scenario(
        name="etcd-quota",
        title="an object that changes too often fills etcd's database up to its quota",
        tags=("process", "disk"),
        victims=nobody,
        fault=fill_history,
        undo=drop_large,
        after_s=25,
        outage_s=25,
        tuning={"arguments": {"etcd": {"quota-backend-bytes": str(QUOTA_MIB * 2**20)}}},
    ),
]

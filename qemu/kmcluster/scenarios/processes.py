"""Faults of programs: killed, stopped, or deleted by hand."""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kmcluster import inside, steady
from kmcluster.scenario import GRACE_S, Scenario, Scene, follower, lead_who_is_asked, leader, nobody, worker
from kmcluster.steady import etcdctl
from kmplan.errors import UserError

# etcd's quota where it is reached on purpose; an object of the API server may have 1 MiB.
# The number of a node that nobody has, and how long its member of etcd may be there.
PHANTOM, PHANTOM_S = 99, 60.0
QUOTA_MIB, LARGE_BYTES = 48, 1_000_000
SETTINGS, SAYS = "kubermesh-control-plane", "kubermesh\\.io/state"
# How long settings may take until they are refused, and on all voters in turn.
REFUSED_S, APPLIED_S = 180.0, 300.0
BAD_SETTING = "no-such-argument"
# How long kubelets may take to show pods anew that somebody deleted: they look at each about once a minute.
MIRRORED_S = 120.0

# How long etcd may take to compare what was left: once a minute.
COMPARED_S = 120.0
# Where nodes' Leases are.
DATABASE, OBJECT = "/var/lib/kubermesh/etcd/member/snap/db", "kube-node-lease"

VICTIMS = {"leader": leader, "follower": follower, "worker": worker}


def kill(program: str, role: str, **more: Any) -> Scenario:
    """A program is killed on a node: on the one whose etcd leads (`leader`), on another voter (`follower`), or a worker."""
    where = {"leader": "the leading node", "follower": "a voter that does not lead", "worker": "a worker"}[role]

    return Scenario(
        name=f"kill-{program.removesuffix('-runc-v2')}-{role}",
        title=f"{program} is killed on {where}",
        tags=("process", "quick"),
        victims=VICTIMS[role],
        fault=lambda scene, chosen: scene.signal(chosen[0], program),
        before=lead_who_is_asked if role == "leader" else None,
        outage_s=10,
        whole_s=90,
        **more,
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
        asks_victim=True,
        after_s=15,
        outage_s=15,
    )


def spoil(scene: Scene, chosen: list[int]) -> None:
    """Spoil what etcd has written, and have it read that: it does not start again."""
    scene.disk(chosen[0], "corrupt")
    scene.signal(chosen[0], "etcd")


def alter(scene: Scene, chosen: list[int]) -> None:
    """Change a bit of an object, as often as it is in etcd's database: to itself that looks well."""
    name = scene.machine(chosen[0]).name
    changed = inside.run_script(scene.driver, scene.machine(chosen[0]), "alter", DATABASE, OBJECT)
    scene.tell(f"changed: {OBJECT} in etcd's database of {name}, {len(changed['offsets'])} times")


def alter_and_kill(scene: Scene, chosen: list[int]) -> None:
    """Have etcd start with what was changed. Nothing would be compared if the API server dropped history right then."""
    compact(scene)
    alter(scene, chosen)
    scene.signal(chosen[0], "etcd")


def alter_and_compact(scene: Scene, chosen: list[int]) -> None:
    """Have etcd serve what was changed, and drop history; UserError when it is still a member a while later."""
    member = scene.member(chosen[0])
    alter(scene, chosen)
    compact(scene)

    def missing() -> str:
        with contextlib.suppress(UserError):
            if member not in scene.run(scene.leader(), etcdctl("member", "list")):
                return ""
        return f"{scene.machine(chosen[0]).name} is still a member of etcd"

    scene.wait(missing, COMPARED_S)
    scene.tell("it is no member any more")


def compact(scene: Scene) -> None:
    """Drop all history of etcd."""
    status = json.loads(scene.run(scene.leader(), etcdctl("endpoint", "status", "--write-out=json")))
    scene.run(scene.leader(), etcdctl("compact", str(status[0]["Status"]["header"]["revision"])))


def delete_pods(scene: Scene, _: list[int]) -> None:
    """Delete every mirror pod of the control plane, and when they are back do it again."""
    for _again in range(2):
        before = control_plane_pods(scene)
        scene.tell("kubectl delete pods of the control plane")
        scene.kubectl("-n", "kube-system", "delete", "pods", "-l", "tier=control-plane", "--wait=false")
        scene.wait(lambda gone=before: missing_pods(gone, control_plane_pods(scene)), MIRRORED_S)  # type: ignore[misc]


def control_plane_pods(scene: Scene) -> dict[str, str]:
    """The UIDs of the control plane's mirror pods, by name."""
    found = steady.items(scene.cluster, "pods", "--namespace=kube-system", "--selector=tier=control-plane")
    return {item["metadata"]["name"]: item["metadata"]["uid"] for item in found}


def missing_pods(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """The pods that were not made anew yet, in words."""
    left = [name for name, uid in before.items() if now.get(name, uid) == uid]
    return f"not made anew: {', '.join(left)}" if left else ""


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


def set_badly_then_well(scene: Scene, _: list[int]) -> None:
    """Set an argument that the API server does not know, and when that was refused one that it does."""
    before = manifests(scene)
    configure(scene, {f"kube-apiserver.{BAD_SETTING}": "1"}, "refused by")
    if manifests(scene) != before:
        raise UserError("what was refused is still in force somewhere")
    configure(scene, {"kube-apiserver.event-ttl": "2h0m0s", "etcd.snapshot-count": "20000"}, "applied")
    check_arguments(scene, wanted=True)


def unset(scene: Scene, _: list[int]) -> None:
    """Go back to what the image has."""
    configure(scene, {}, "applied")
    check_arguments(scene, wanted=False)
    scene.kubectl("-n", "kube-system", "delete", "configmap", SETTINGS)


def check_arguments(scene: Scene, *, wanted: bool) -> None:
    """UserError when what was set is not in force on every voter, or still is on any."""
    wrong = [
        name
        for name, text in manifests(scene).items()
        if any((argument in text) != wanted for argument in ("event-ttl=2h0m0s", "snapshot-count=20000"))
    ]
    if wrong:
        raise UserError(f"{', '.join(wrong)}: {'without' if wanted else 'still with'} the settings")


def configure(scene: Scene, data: dict[str, str], wanted: str) -> None:
    """Write the control plane's settings, and wait for what becomes of them; UserError with what is said when it is not that."""
    metadata = {"name": SETTINGS, "namespace": "kube-system"}
    item = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}
    scene.kubectl("-n", "kube-system", "delete", "configmap", SETTINGS, "--ignore-not-found")
    scene.kubectl("create", "--filename=-", given=json.dumps(item))
    scene.tell(f"kubectl create configmap {SETTINGS}: {data or 'empty'}")
    said = ""

    def missing() -> str:
        nonlocal said
        with contextlib.suppress(UserError):
            output = f"--output=jsonpath={{.metadata.annotations.{SAYS}}}"
            said = scene.kubectl("-n", "kube-system", "get", "configmap", SETTINGS, output)
        if len(tried := [name for name, text in manifests(scene).items() if BAD_SETTING in text]) > 1:
            raise UserError(f"{', '.join(tried)}: with a setting that does not work")
        if wanted in (said, said.partition(" node ")[0]):
            return ""
        return f"the settings are {said or 'nothing'}, not {wanted},"

    scene.wait(missing, APPLIED_S if wanted == "applied" else REFUSED_S)
    scene.tell(f"settings: {said}")


def add_phantom(scene: Scene, _: list[int]) -> None:
    """Add a member to etcd that never comes; UserError when it is still there after a while."""
    lead = scene.leader()
    phantom = steady.peer_url(scene.cluster, PHANTOM)
    scene.tell(f"etcdctl member add phantom --learner: {scene.machine(lead).name}")
    scene.run(lead, etcdctl("member", "add", "phantom", "--learner", f"--peer-urls={phantom}"))

    def missing() -> str:
        return f"{phantom} is still a member" if phantom in scene.run(lead, etcdctl("member", "list")) else ""

    scene.wait(missing, PHANTOM_S)
    scene.tell("it is no member any more")


def manifests(scene: Scene) -> dict[str, str]:
    """What kubelet was given of etcd and the API server, on each voter."""
    paths = [f"/run/kubernetes/manifests/{name}.yaml" for name in ("etcd", "kube-apiserver")]
    machines = [scene.machine(number) for number in scene.with_role("voter")]
    return {machine.name: inside.run(scene.driver, machine, ["cat", *paths]).stdout for machine in machines}


CORRUPT = Scenario(
    name="corrupt-etcd",
    title="what etcd wrote last on a voter is spoiled: the node gives up its vote and begins anew",
    tags=("process", "members"),
    victims=follower,
    fault=spoil,
    after_s=GRACE_S + 20,
    whole_s=180,
    replaced=True,
)
SCENARIOS = [
    kill("etcd", "leader"),
    kill("etcd", "follower"),
    kill("kube-apiserver", "leader"),
    stop("etcd"),
    stop("kube-apiserver"),
    kill("kubelet", "worker"),
    kill("containerd", "worker"),
    # A container ends with its shim: the pods' servers begin anew, and a service has to learn where.
    kill("containerd-shim-runc-v2", "worker", silence_s=20),
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
    CORRUPT,
    replace(
        CORRUPT,
        name="corrupt-etcd-database",
        title="bits of what etcd has stored on a voter are changed: when it starts the others' data say so",
        fault=alter_and_kill,
    ),
    replace(
        CORRUPT,
        name="corrupt-etcd-served",
        title="bits of what etcd has stored are changed while it serves them: the voters compare, and it is replaced",
        fault=alter_and_compact,
        after_s=20,
        outage_s=30,
        silence_s=30,
    ),
    replace(
        CORRUPT,
        name="corrupt-etcd-of-three",
        title="the same where there is no other node that could vote: it takes its own place",
        replaced=False,
        topology="line3",
    ),
    Scenario(
        name="phantom-member",
        title="etcd is given a member that never comes",
        tags=("process", "members"),
        victims=nobody,
        fault=add_phantom,
        # etcd takes one learner: where there are three nodes none is kept as the standby.
        topology="line3",
    ),
    Scenario(
        name="settings",
        title="the control plane's settings are changed, to what does not work and then to what does",
        tags=("process", "settings"),
        victims=nobody,
        fault=set_badly_then_well,
        undo=unset,
        after_s=5,
        outage_s=15,
        # An etcd that is started anew with other arguments is away for about as long as the others are waited for here.
        settings=(("voter_grace_s", 120.0),),
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

"""Whether a cluster is as it should be: what is not, in words."""

import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from kmcluster import access, inside, report
from kmcluster.drivers import driver_of
from kmcluster.state import Cluster, Machine
from kmplan.cluster import read_cluster
from kmplan.errors import UserError
from kmplan.run import run
from kmplan.voters import FEW_VOTERS, voters_of, wanted_of

POLL_S = 1.0
# At the end of a fault all has to be well twice, so far apart: what is asked may have been known for a while.
STILL_S = 5.0
# A container that is started anew so often while a scenario is played crashes again and again.
CRASHES = 6
KUBECTL_S = 10.0
ETCDCTL = """
cd /run/kubermesh/pki/agent && exec etcdctl --endpoints=https://[::1]:2379 --cacert=etcd-ca.crt --cert=etcd-client.crt \\
  --key=etcd-client.key "$@"
"""
EMULATED_PACE = 10.0
CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
ADDONS = ("kube-proxy", "coredns")
# What every machine runs by itself: Kubernetes misses a kubelet after 40 s only.
UNITS = ("kmagent.service", "kubermesh-babeld.service", "containerd.service", "kubelet.service")
# Shows the addresses that do not answer. Arguments: seconds to wait for an answer, addresses.
PING = 'wait=$1; shift; for to; do ping -q -c 1 -W "$wait" "$to" > /dev/null || echo "$to" & done; wait'
PING_S = 2.0


def pace(cluster: Cluster) -> float:
    """By how much everything takes longer on a cluster's machines than on this one."""
    return EMULATED_PACE if cluster.accelerator == "tcg" else 1.0


def kubectl(cluster: Cluster, *arguments: str, given: str | None = None) -> str:
    """Run kubectl as the administrator; UserError when it fails."""
    argv, environment = access.kubectl(cluster)
    limit = KUBECTL_S * pace(cluster)
    limits = [f"--request-timeout={limit:g}s"]
    return run([*argv, *limits, *arguments], env=environment, input=given, timeout_s=6 * limit).stdout


def wait_steady(cluster: Cluster, timeout_s: float, still_s: float = 0.0) -> float:
    """Wait until nothing is wrong, and nothing was for so long; returns the moment since when, of the monotonic clock.

    Raises UserError with what is wrong when it is not in time.
    """
    start, since = time.monotonic(), None
    while True:
        wrong, now = complaints(cluster), time.monotonic()
        since = None if wrong else since or now
        if since and now - since >= still_s:
            return since
        if wrong and now - start > timeout_s:
            raise UserError(f"not as before after {timeout_s:g} s: {'; '.join(wrong[:4])}")
        time.sleep(POLL_S)


def complaints(cluster: Cluster) -> list[str]:
    """Everything that is not as it should be; the API is asked only when the nodes themselves are content."""
    described = report.describe(cluster)
    wrong = [f"{node['name']} is {node['state']}" for node in described["nodes"] if node["state"] != "ready"]
    wrong += [f"{node['name']}: {node['alarm']}" for node in described["nodes"] if node["alarm"]]
    wrong += wrong_roles(cluster, [node["role"] for node in described["nodes"]])
    wrong += [f"no link between {' and '.join(cable['nodes'])}" for cable in described["cables"] if not cable["up"]]
    if wrong:
        return wrong
    try:
        roles = {node["name"]: node["role"] for node in described["nodes"]}
        addresses = [address for node in described["nodes"] for address in node["addresses"]]
        if wrong := wrong_units(cluster) + wrong_ways(cluster, addresses):
            return wrong
        if wrong := wrong_members(cluster, described["nodes"]):
            return wrong
        return [*wrong_nodes(cluster), *wrong_pods(cluster, roles), *wrong_data(cluster)]
    except (UserError, ValueError, KeyError) as error:
        return [str(error)]


def wrong_roles(cluster: Cluster, roles: Sequence[str | None]) -> list[str]:
    """Too few or too many voters, or no standby."""
    wanted = wanted_roles(read_cluster(cluster.directory).wanted_voters, len(cluster.machines))
    return [f"{roles.count(role)} of {count} {role}" for role, count in wanted.items() if roles.count(role) != count]


def wanted_roles(wanted_voters: int, nodes: int) -> dict[str, int]:
    """How many of so many nodes have which part in the control plane when all is well; `wanted_voters` is the cluster file's."""
    voters = voters_of(wanted_of(wanted_voters, nodes), nodes)
    return {"voter": voters, "standby": int(FEW_VOTERS < voters < nodes)}


def wrong_members(cluster: Cluster, nodes: Sequence[report.Described]) -> list[str]:
    """Members of etcd that are not the voters and the standby, or never started."""
    wanted = {
        peer_url(cluster, int(node["node"].rpartition("-")[2])): node["role"] == "standby"
        for node in nodes
        if node["role"] in ("voter", "standby")
    }
    voter = next(node["name"] for node in nodes if node["role"] == "voter")
    members = list_members(cluster, cluster.machine(voter))
    found = {"".join(one["peerURLs"]): bool(one.get("isLearner")) for one in members if one.get("name")}
    if found == wanted and len(members) == len(found):
        return []
    shown = [f"{one.get('name') or 'not started'}{' (learner)' if one.get('isLearner') else ''}" for one in members]
    return [f"etcd's members are {', '.join(shown)}, not the voters and the standby"]


def peer_url(cluster: Cluster, number: int) -> str:
    """Where a node's etcd is known to the others."""
    return f"https://[{read_cluster(cluster.directory).plan.node(number)}]:2380"


def list_members(cluster: Cluster, voter: Machine) -> list[dict[str, Any]]:
    """Etcd's members as one of the voters knows them; UserError when it does not say."""
    listed = inside.run(driver_of(cluster), voter, etcdctl("member", "list", "--write-out=json"))
    if listed.code != 0:
        raise UserError(f"{voter.name}: {listed.stderr.strip()[-200:]}")
    members: list[dict[str, Any]] = json.loads(listed.stdout)["members"]
    return members


def etcdctl(*arguments: str) -> list[str]:
    """The argv that asks a voter's own etcd something, with its agent's certificate."""
    return ["sh", "-c", ETCDCTL, "etcdctl", *arguments]


def wrong_units(cluster: Cluster) -> list[str]:
    """Units that do not run on a machine."""
    wrong, driver = [], driver_of(cluster)
    for machine in cluster.machines:
        said = driver.execute(machine, ["systemctl", "is-active", *UNITS]).stdout.split()
        wrong += [f"{machine.name}: {unit} is {how}" for unit, how in zip(UNITS, said, strict=True) if how != "active"]
    return wrong


def wrong_ways(cluster: Cluster, addresses: Sequence[str]) -> list[str]:
    """Nodes' addresses, of either family, that do not answer a machine."""
    driver = driver_of(cluster)
    argv = ["sh", "-c", PING, "ping", f"{PING_S * pace(cluster):g}", *addresses]

    def lost(machine: Machine) -> list[str]:
        asked = driver.execute(machine, argv)
        if asked.code != 0:
            return [f"{machine.name} cannot ask who answers: status {asked.code}"]
        return [f"{machine.name} does not reach {address}" for address in asked.stdout.split()]

    with ThreadPoolExecutor() as pool:
        return [line for lines in pool.map(lost, cluster.machines) for line in lines]


def wrong_nodes(cluster: Cluster) -> list[str]:
    """Nodes that Kubernetes does not take for Ready, or that are still given up."""
    wrong = []
    for item in items(cluster, "nodes"):
        ready = next((one["status"] for one in item["status"]["conditions"] if one["type"] == "Ready"), "Unknown")
        taints = [taint["key"] for taint in item["spec"].get("taints", [])]
        if ready != "True" or taints:
            wrong.append(f"{item['metadata']['name']}: Ready {ready}, taints {', '.join(taints) or 'none'}")
    return wrong


def wrong_pods(cluster: Cluster, roles: Mapping[str, str | None]) -> list[str]:
    """Pods that do not run, and those that are not there: of the control plane by the nodes' roles, and of add-ons."""
    found = items(cluster, "pods", "--all-namespaces")
    missing = {f"{component}-{name}" for component in CONTROL_PLANE for name in roles if roles[name] == "voter"}
    missing |= {f"etcd-{name}" for name in roles if roles[name] == "standby"}
    missing -= {item["metadata"]["name"] for item in found}
    wrong = [f"pod {name} is not there" for name in sorted(missing)]
    sets = {
        item["metadata"]["name"]: item["status"] for item in items(cluster, "daemonsets", "--namespace=kube-system")
    }
    for name in ADDONS:
        ready = sets.get(name, {}).get("numberReady", 0)
        wrong += (
            [f"{name} is ready on {ready} of {len(cluster.machines)} nodes"] if ready < len(cluster.machines) else []
        )
    for item in found:
        ready = next((one["status"] for one in item["status"].get("conditions", []) if one["type"] == "Ready"), "False")
        if ready != "True" and item["status"].get("phase") != "Succeeded":
            wrong.append(f"pod {item['metadata']['name']} is not ready")
    return wrong


def restarts(cluster: Cluster) -> dict[str, int]:
    """How often containers were started anew, by pod, its UID (of the static pod where this is its mirror), and container."""
    return {
        f"{item['metadata']['name']} {identity(item['metadata'])} {one['name']}": one["restartCount"]
        for item in items(cluster, "pods", "--all-namespaces")
        for one in item["status"].get("containerStatuses", [])
    }


def identity(metadata: Mapping[str, Any]) -> str:
    """What stays the same of a pod while its containers are counted; a mirror is made anew now and then."""
    return str(metadata.get("annotations", {}).get("kubernetes.io/config.mirror", metadata["uid"]))


def crashed(before: Mapping[str, int], after: Mapping[str, int]) -> list[str]:
    """The containers that were started anew again and again between two looks, in words."""
    again = {name: count - before.get(name, 0) for name, count in after.items()}
    return [f"{name.split()[0]} was started anew {count} times" for name, count in again.items() if count >= CRASHES]


def wrong_data(cluster: Cluster) -> list[str]:
    """Voters whose etcd does not hold the same: compared at the newest revision that all of them have."""
    driver = driver_of(cluster)
    voters = [one for one in cluster.machines if (driver.read_status(one) or {}).get("role") == "voter"]

    def ask(machine: Machine, revision: int) -> dict[str, int]:
        found: dict[str, int] = inside.run_script(
            driver, machine, "etcd_hash", str(revision), timeout_s=KUBECTL_S * pace(cluster)
        )
        return found

    common = min((ask(machine, 0)["revision"] for machine in voters), default=0)
    hashes = {machine.name: ask(machine, common)["hash"] for machine in voters}
    return [f"etcd holds different data at revision {common}: {hashes}"] if len(set(hashes.values())) > 1 else []


def items(cluster: Cluster, *what: str) -> list[dict[str, Any]]:
    """Objects of the API."""
    found: list[dict[str, Any]] = json.loads(kubectl(cluster, "get", *what, "--output=json"))["items"]
    return found

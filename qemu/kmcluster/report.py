"""What a cluster looks like now, as data for tables, pictures and --json."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from kmcluster import access, state
from kmcluster.cable import Cable, Port
from kmcluster.driver import Driver
from kmcluster.drivers import driver_of
from kmcluster.state import Cluster, Machine
from kmplan import run
from kmplan.errors import UserError

# What babel gives a neighbour that nothing gets to.
INFINITE_COST = 65535
AT_ONCE = 16
KUBECTL_S = {"native": 5.0, "kvm": 15.0, "tcg": 60.0}
COLUMNS = 'N:.spec.nodeName,P:.status.phase,R:.status.conditions[?(@.type=="Ready")].status'
PODS = ["get", "pods", "--all-namespaces", "--no-headers", f"--output=custom-columns={COLUMNS}"]
ENDED = ("Succeeded", "Failed")
Described = dict[str, Any]


def describe(cluster: Cluster, *, ask_api: bool = False) -> Described:
    """A cluster, its nodes and its cables, asked now, all at once.

    With `ask_api` every node has `pods` {ready, total}, or None when it is not on or the API does not answer.
    """
    driver = driver_of(cluster)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        nodes = list(pool.map(lambda machine: describe_machine(driver, machine), cluster.machines))
    link_up(nodes, cluster)
    if ask_api:
        pods = count_pods(cluster) if any(node["role"] == "voter" for node in nodes) else None
        for node in nodes:
            node["pods"] = None
            if pods is not None and node["power"] == "on":
                node["pods"] = pods.get(node["node"] or node["name"], {"ready": 0, "total": 0})
    return {
        "name": cluster.name,
        "driver": cluster.driver,
        "accelerator": cluster.accelerator,
        "directory": str(cluster.directory),
        "image": str(cluster.image.raw),
        "roothash": cluster.roothash,
        "nodes": nodes,
        "cables": [{**cable.describe(), **describe_link(cable, nodes)} for cable in cluster.cables],
    }


def describe_machine(driver: Driver, machine: Machine) -> Described:
    """One machine: its power, and what its agent says when it says something.

    `node` is the node's name, not the machine's when that was admitted anew; `role` its part in the cluster (voter,
    standby, worker). Both are None while it has none or does not say.
    """
    power = driver.power(machine)
    status = (driver.read_status(machine) if power == "on" else None) or {}
    node, events = status.get("node") or {}, status.get("events", [])
    return {
        "name": machine.name,
        "number": machine.number,
        "drawn_role": machine.node.role.value,
        "node": node.get("name"),
        "role": status.get("role"),
        "power": power,
        "state": status.get("state", "unknown" if power == "on" else power),
        "message": status.get("message", ""),
        "alarm": status.get("alarm", ""),
        "conditions": status.get("conditions", {}),
        "addresses": node.get("addresses", []),
        "api": f"https://127.0.0.1:{machine.api_port}",
        "registry": status.get("registry"),
        "routes": status.get("routes"),
        "ports": status.get("ports", []),
        "disk_faults": machine.disk_faults,
        "ready_after_s": next((event.get("boot_s") for event in events if event.get("name") == "node-ready"), None),
        "events": events,
        "memory_mib": status.get("memory_mib"),
        "console": str(driver.console(machine)),
    }


def link_up(nodes: list[Described], cluster: Cluster) -> None:
    """Add `links` to every node: how many are up, how many cables there are, and the worst cost of those that are up."""
    for node, machine in zip(nodes, cluster.machines, strict=True):
        costs = [cost for port in node["ports"] if (cost := cost_of(port)) is not None]
        total = len(cluster.cables_of(machine))
        node["links"] = {"up": len(costs), "total": total, "worst_cost": max(costs, default=None)}


def cost_of(port: Described) -> int | None:
    """Cost of the link on an agent's port; None when none is up: nobody, no authenticated neighbour, or no way to it."""
    neighbour = port.get("neighbour") or {}
    cost = neighbour.get("cost") if neighbour.get("authenticated") else None
    return cost if isinstance(cost, int) and cost < INFINITE_COST else None


def describe_link(cable: Cable, nodes: list[Described]) -> Described:
    """The link over a cable: `up`, `cost` as the node at a and the one at b see it, and seconds it has been so."""
    ports = [find_port(nodes, end) for end in (cable.a, cable.b)]
    costs = [cost_of(port) for port in ports]
    sinces = [(port.get("neighbour") or {}).get("since_s") for port in ports]
    up = None not in costs
    return {
        "nodes": [nodes[end.node - 1]["name"] for end in (cable.a, cable.b)],
        "up": up,
        "cost": costs,
        "since_s": min((since for since in sinces if since is not None), default=None) if up else None,
    }


def find_port(nodes: list[Described], end: Port) -> Described:
    """The agent's view of a port; empty when it does not say."""
    ports: list[Described] = nodes[end.node - 1]["ports"]
    return next((port for port in ports if port.get("name") == end.name), {})


def count_pods(cluster: Cluster) -> dict[str, dict[str, int]] | None:
    """Pods by the node they are on: {ready, total}; None when the API does not answer."""
    limit_s = KUBECTL_S[cluster.accelerator]
    try:
        argv, environment = access.kubectl(cluster)
        text = run.run([*argv, f"--request-timeout={limit_s:g}s", *PODS], env=environment, timeout_s=2 * limit_s).stdout
    except UserError:
        return None
    return tally(text)


def tally(lines: str) -> dict[str, dict[str, int]]:
    """Count lines of NODE PHASE READY; what has ended is not counted."""
    rows = [line.split() for line in lines.splitlines()]
    counted = Counter((row[0], row[2] == "True") for row in rows if len(row) == 3 and row[1] not in ENDED)
    names = {name for name, _ in counted}
    return {name: {"ready": counted[name, True], "total": counted[name, True] + counted[name, False]} for name in names}


def overview() -> list[Described]:
    """All clusters on this machine, without asking inside of theirs."""
    rows = []
    for name in state.cluster_names():
        if not (state.folder_of(name) / state.FILE).exists():
            rows.append({"name": name, "driver": "?", "nodes": 0, "on": 0})
            continue
        cluster = state.load(name)
        driver = driver_of(cluster)
        powers = [driver.power(machine) for machine in cluster.machines]
        rows.append({"name": name, "driver": cluster.driver, "nodes": len(powers), "on": powers.count("on")})
    return rows

"""What a cluster looks like now, as data for tables and --json."""

from typing import Any

from kmcluster import state
from kmcluster.driver import Driver
from kmcluster.drivers import driver_of
from kmcluster.state import Cluster, Machine


def describe(cluster: Cluster) -> dict[str, Any]:
    """A cluster and its nodes, asked now."""
    driver = driver_of(cluster)
    return {
        "name": cluster.name,
        "driver": cluster.driver,
        "accelerator": cluster.accelerator,
        "directory": str(cluster.directory),
        "image": str(cluster.image.raw),
        "roothash": cluster.roothash,
        "nodes": [describe_machine(driver, machine) for machine in cluster.machines],
        "cables": [cable.describe() for cable in cluster.cables],
    }


def describe_machine(driver: Driver, machine: Machine) -> dict[str, Any]:
    """One machine: its power, and what its agent says when it says something."""
    power = driver.power(machine)
    status = (driver.read_status(machine) if power == "on" else None) or {}
    return {
        "name": machine.name,
        "number": machine.number,
        "role": machine.node.role.value,
        "power": power,
        "state": status.get("state", "unknown" if power == "on" else power),
        "message": status.get("message", ""),
        "addresses": (status.get("node") or {}).get("addresses", []),
        "api": f"https://127.0.0.1:{machine.api_port}",
        "events": status.get("events", []),
        "memory_mib": status.get("memory_mib"),
        "console": str(driver.console(machine)),
    }


def overview() -> list[dict[str, Any]]:
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

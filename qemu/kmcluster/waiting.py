"""Waits until a cluster is Ready, telling what happens as it happens."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kmcluster import bench, state
from kmcluster.console import read_lines
from kmcluster.driver import Driver
from kmcluster.drivers import driver_of
from kmcluster.state import Cluster, Machine
from kmcluster.steady import wanted_roles
from kmplan.cluster import read_cluster
from kmplan.errors import UserError

TAIL_LINES = 12
# What OVMF's shell ends with when nothing is left to boot from.
SHELL = "Shell>"
POLL_S = {"native": 0.2, "kvm": 1.0, "tcg": 4.0}
TIMEOUT_S = {"native": 120.0, "kvm": 180.0, "tcg": 900.0}
# Every further machine takes its share of this one's processors.
TIMEOUT_PER_NODE_S = {"native": 15.0, "kvm": 30.0, "tcg": 600.0}


@dataclass
class Seen:
    """What was seen of a machine so far."""

    events: list[dict[str, Any]] = field(default_factory=list)
    state: str = "no word from the agent"
    message: str = ""
    role: str = ""

    @property
    def ready(self) -> bool:
        """Whether the node says of itself that it is Ready."""
        return self.state == "ready"

    def take(self, status: dict[str, Any]) -> list[dict[str, Any]]:
        """Take in a status; returns the events that are new. A list that got shorter is that of a new boot."""
        events = [event for event in status.get("events", []) if isinstance(event, dict)]
        new = events[len(self.events) :] if len(events) >= len(self.events) else events
        self.events = events
        self.role = str(status.get("role", ""))
        self.state, self.message = str(status.get("state", "?")), str(status.get("message", ""))
        return new


Show = Callable[[float, str, str], None]


def wait_ready(cluster: Cluster, show: Show, timeout_s: float | None = None) -> float:
    """Wait until every node is Ready and as many vote as shall; returns the seconds it took.

    A machine that boots from a neighbour stays off, and is not waited for, when all of its cables have been pulled out.
    `show` is called with (seconds since the call, node, event). Raises UserError when a machine dies or fails, or time
    is over: with what was seen last and the console's end.
    """
    limit = timeout_s if timeout_s is not None else default_timeout_s(cluster)
    driver = driver_of(cluster)
    seen = {machine.name: Seen() for machine in cluster.machines}
    voters = read_cluster(cluster.directory).wanted_voters
    start = time.monotonic()
    while not is_settled(awaited := awaited_of(cluster, seen), wanted := wanted_roles(voters, len(awaited))):
        for machine in [machine for machine in cluster.machines if not machine.waits]:
            observe(driver, machine, seen[machine.name], lambda node, what: show(time.monotonic() - start, node, what))
        for machine in switch_on(cluster, seen):
            show(time.monotonic() - start, machine.name, "power on")
        for machine in start_again(cluster, driver, seen):
            show(time.monotonic() - start, machine.name, "reset, as its firmware has given up")
        if is_settled(awaited, wanted):
            continue
        if time.monotonic() - start > limit:
            late = next((name for name in awaited if not awaited[name].ready), cluster.machines[0].name)
            roles = ", ".join(f"{count} {role}" for role, count in wanted.items())
            what = "Ready" if not seen[late].ready else f"in a cluster with {roles}"
            raise failure(driver, cluster.machine(late), f"is not {what} after {limit:g} s", seen[late])
        time.sleep(POLL_S[cluster.accelerator])
    return time.monotonic() - start


def awaited_of(cluster: Cluster, seen: Mapping[str, Seen]) -> dict[str, Seen]:
    """What was seen of the machines that can come up: not of one that waits for a neighbour while it has no cable to any."""
    if not any(machine.waits for machine in cluster.machines):
        return dict(seen)
    now = state.load(cluster.name)
    lost = {one.name for one in cluster.machines if one.waits and all(cable.cut for cable in now.cables_of(one))}
    return {name: what for name, what in seen.items() if name not in lost}


def switch_on(cluster: Cluster, seen: Mapping[str, Seen]) -> list[Machine]:
    """Switch on the machines that boot from a neighbour which is Ready by now, as whoever cables them does; returns them."""
    if not any(machine.waits for machine in cluster.machines):
        return []
    found = []
    # Somebody may have pulled one out meanwhile.
    for cable in state.load(cluster.name).cables:
        for end, other in ((cable.a, cable.b), (cable.b, cable.a)):
            machine, neighbour = cluster.machines[end.node - 1], cluster.machines[other.node - 1]
            if machine.waits and not cable.cut and seen[neighbour.name].ready:
                cluster.machines = bench.power(cluster.name, machine.name, "on").machines
                found.append(cluster.machines[end.node - 1])
    return found


def start_again(cluster: Cluster, driver: Driver, seen: Mapping[str, Seen]) -> list[Machine]:
    """Reset the machines whose firmware was not answered in time and shows its shell, as whoever sees that does; returns them.

    A neighbour that is emulated may take longer to serve than firmware waits.
    """
    silent = [machine for machine in cluster.machines if not machine.waits and not seen[machine.name].events]
    tried = [machine for machine in silent if machine.node.boot.is_from_network]
    found = [machine for machine in tried if read_lines(driver.console(machine))[-1:] == [SHELL]]
    for machine in found:
        bench.power(cluster.name, machine.name, "reset")
    return found


def is_settled(seen: Mapping[str, Seen], wanted: Mapping[str, int]) -> bool:
    """Whether all nodes are Ready, and enough of them have a part in the control plane."""
    roles = [one.role for one in seen.values()]
    return all(one.ready for one in seen.values()) and all(roles.count(role) >= wanted[role] for role in wanted)


def default_timeout_s(cluster: Cluster) -> float:
    """How long a cluster of that many machines is given; one that boots from a neighbour begins when that is Ready."""
    further = len(cluster.machines) - 1 + sum(machine.node.boot.is_from_network for machine in cluster.machines)
    return TIMEOUT_S[cluster.accelerator] + further * TIMEOUT_PER_NODE_S[cluster.accelerator]


def observe(driver: Driver, machine: Machine, seen: Seen, show: Callable[[str, str], None]) -> None:
    """Look at one machine once."""
    status = driver.read_status(machine)
    if status is None:
        if driver.power(machine) == "off":
            raise failure(driver, machine, "died", seen)
        return
    for event in seen.take(status):
        boot_s = event.get("boot_s")
        times = f" ({boot_s:.1f} s after power on)" if isinstance(boot_s, int | float) else ""
        show(machine.name, f"{event.get('name', '?')}{times}")
    if seen.state == "failed":
        raise failure(driver, machine, "failed", seen)


def failure(driver: Driver, machine: Machine, what: str, seen: Seen) -> UserError:
    """The error for a machine that did not come up."""
    last = f"last seen: {seen.state}{': ' + seen.message if seen.message else ''}"
    shown = "".join(f"\n  | {line}" for line in read_lines(driver.console(machine))[-TAIL_LINES:])
    return UserError(f"{machine.name} {what}; {last}{shown}\n  console: {driver.console(machine)}")

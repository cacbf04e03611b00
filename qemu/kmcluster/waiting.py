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
from kmplan.errors import UserError

TAIL_LINES = 12
POLL_S = {"native": 0.2, "kvm": 1.0, "tcg": 4.0}
TIMEOUT_S = {"native": 120.0, "kvm": 180.0, "tcg": 900.0}
# Every further machine takes its share of this one's processors.
TIMEOUT_PER_NODE_S = {"native": 15.0, "kvm": 30.0, "tcg": 300.0}


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

    `show` is called with (seconds since the call, node, event). Raises UserError when a machine dies or fails, or time
    is over: with what was seen last and the console's end.
    """
    limit = timeout_s if timeout_s is not None else default_timeout_s(cluster)
    driver = driver_of(cluster)
    seen = {machine.name: Seen() for machine in cluster.machines}
    start = time.monotonic()
    wanted = wanted_roles(cluster)
    while not is_settled(seen, wanted):
        for machine in [machine for machine in cluster.machines if not machine.waits]:
            observe(driver, machine, seen[machine.name], lambda node, what: show(time.monotonic() - start, node, what))
        for machine in switch_on(cluster, seen):
            show(time.monotonic() - start, machine.name, "power on")
        if time.monotonic() - start > limit and not is_settled(seen, wanted):
            late = next((machine for machine in cluster.machines if not seen[machine.name].ready), cluster.machines[0])
            roles = ", ".join(f"{count} {role}" for role, count in wanted.items())
            what = "Ready" if not seen[late.name].ready else f"in a cluster with {roles}"
            raise failure(driver, late, f"is not {what} after {limit:g} s", seen[late.name])
        time.sleep(0 if is_settled(seen, wanted) else POLL_S[cluster.accelerator])
    return time.monotonic() - start


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

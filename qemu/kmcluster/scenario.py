"""A scenario of `kmbuild verify`: what is done to a cluster, and what has to hold while and after it."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from kmcluster import bench, cabling, disk_faults, inside, state, steady
from kmcluster.driver import Driver
from kmcluster.drivers import driver_of
from kmcluster.state import Cluster, Machine
from kmcluster.steady import etcdctl
from kmcluster.tuning import Tuning
from kmplan.addresses import AddressPlan
from kmplan.cluster import read_cluster
from kmplan.errors import UserError

# How long the clusters that are verified wait for a voter.
GRACE_S = 20.0
LEAD_S = 30.0
POLL_S = 1.0


class Scene:
    """The cluster that a scenario is played on; what is done to it is noted by `tell`, and those it is done to are victims."""

    def __init__(self, name: str, random: Random, tell: Callable[[str], None]) -> None:
        self.name, self.random, self.tell = name, random, tell
        # From when to when a majority that the cluster went on without may acknowledge writes, which are lost.
        self.split = (0.0, 0.0)

    @property
    def cluster(self) -> Cluster:
        """The cluster as it is now."""
        return state.load(self.name)

    @property
    def driver(self) -> Driver:
        """What runs its machines."""
        return driver_of(self.cluster)

    def machine(self, number: int) -> Machine:
        """A machine by its number."""
        return self.cluster.machine(str(number))

    def status(self, number: int) -> dict[str, object]:
        """What a machine's agent says; nothing while it is off."""
        machine = self.machine(number)
        return (self.driver.read_status(machine) if self.driver.power(machine) == "on" else None) or {}

    def with_role(self, role: str) -> list[int]:
        """Machines that are on and have this part in the control plane."""
        return [one.number for one in self.cluster.machines if self.status(one.number).get("role") == role]

    def leader(self) -> int:
        """The machine whose etcd leads."""
        for _ in range(int(LEAD_S)):
            for number in self.with_role("voter"):
                if self.status(number).get("leads"):
                    return number
            time.sleep(1)
        raise UserError("no node says that its etcd leads")

    def lead(self, number: int) -> None:
        """Have a voter's etcd lead; UserError when it does not."""
        leader = self.leader()
        if leader == number:
            return
        moved = inside.run(self.driver, self.machine(leader), etcdctl("move-leader", self.member(number)))
        if moved.code != 0:
            raise UserError(f"{self.machine(number).name} does not lead: {moved.stderr.strip()[-200:]}")
        self.wait(lambda: "" if self.leader() == number else f"{self.machine(number).name} does not lead", LEAD_S)

    def member(self, number: int) -> str:
        """The id of a voter's member of etcd, as etcdctl shows it."""
        role = json.loads(self.run(number, ["cat", "/var/lib/kubermesh/role.json"]))
        return f"{int(role['member']):x}"

    def wait(self, missing: Callable[[], str], limit_s: float) -> None:
        """Wait until nothing is missing; UserError with what still is when time is over."""
        deadline = time.monotonic() + limit_s
        while words := missing():
            if time.monotonic() > deadline:
                raise UserError(f"{words} after {limit_s:g} s")
            time.sleep(POLL_S)

    def follower(self) -> int:
        """A voter that does not lead."""
        return self.random.choice([number for number in self.with_role("voter") if number != self.leader()])

    def one(self, role: str) -> int:
        """A machine with this part in the control plane; UserError when there is none."""
        found = self.with_role(role)
        if not found:
            raise UserError(f"no node is a {role}")
        return self.random.choice(found)

    def power(self, number: int, action: str) -> None:
        """Do something to a machine's power."""
        self.tell(f"power {action}: {self.machine(number).name}")
        bench.power(self.name, str(number), action)

    def cable(self, a: int, b: int, action: str, loss: float | None = None, delay: float | None = None) -> None:
        """Do something to a cable."""
        self.tell(f"cable {action}: {self.machine(a).name} to {self.machine(b).name}")
        cabling.change(self.name, str(a), str(b), action, loss, delay)

    def plug_all(self) -> None:
        """Make all cables good again."""
        for cable in self.cluster.cables:
            if cable.state != "plugged":
                self.cable(cable.a.node, cable.b.node, "plug")

    def signal(self, number: int, program: str, signal: str = "KILL") -> None:
        """Send all processes of a program on a machine a signal: KILL, STOP or CONT."""
        self.tell(f"kill -{signal} {program}: {self.machine(number).name}")
        inside.run_script(self.driver, self.machine(number), "kill", program, signal)

    def run(self, number: int, argv: Sequence[str], given: bytes = b"") -> str:
        """Run a command in a machine, or on the disk of one that is off; returns its output, UserError when it fails."""
        machine = self.machine(number)
        result = inside.run(self.driver, machine, argv, given)
        if result.code != 0:
            raise UserError(f"{machine.name}: {result.stderr.strip()}")
        return result.stdout

    def disk(self, number: int, action: str) -> None:
        """Do something to a machine's disk; corrupt overwrites bytes of what its etcd has written last."""
        self.tell(f"disk {action}: {self.machine(number).name}")
        disk_faults.change(self.name, str(number), action)

    def kubectl(self, *arguments: str, given: str | None = None) -> str:
        """Run kubectl as the administrator, perhaps with something to read; UserError when it fails."""
        return steady.kubectl(self.cluster, *arguments, given=given)

    def neighbours(self, number: int) -> list[int]:
        """The machines at the other ends of a machine's cables."""
        pairs = [(cable.a.node, cable.b.node) for cable in self.cluster.cables_of(self.machine(number))]
        return [there if here == number else here for here, there in pairs]

    def next_hop(self, number: int, address: object) -> int | None:
        """The machine behind the cable by which a machine sends to an address; None where it is its own, or there is no way."""
        asked = inside.run(self.driver, self.machine(number), ["ip", "-6", "--json", "route", "get", str(address)])
        port = json.loads(asked.stdout or "[{}]")[0].get("dev")
        pairs = [(cable.a, cable.b) for cable in self.cluster.cables]
        ends = [*pairs, *((there, here) for here, there in pairs)]
        return next((there.node for here, there in ends if (here.node, here.name) == (number, port)), None)

    def asked_by(self, number: int) -> int | None:
        """The machine by which a machine reaches the API's anycast address: where that votes, the one that answers."""
        return self.next_hop(number, self.plan.api)

    @property
    def plan(self) -> AddressPlan:
        """The cluster's addresses."""
        return read_cluster(self.cluster.directory).plan


def lead_who_is_asked(scene: Scene) -> None:
    """Have a voter lead whose API a node asks that has none of its own: so it is missed."""
    voters = scene.with_role("voter")
    others = [machine.number for machine in scene.cluster.machines if machine.number not in voters]
    asked = sorted({hop for number in others if (hop := scene.asked_by(number)) in voters})
    if asked and scene.leader() not in asked:
        scene.lead(scene.random.choice(asked))


def leader(scene: Scene) -> list[int]:
    """Harm the node whose etcd leads."""
    return [scene.leader()]


def follower(scene: Scene) -> list[int]:
    """Harm a voter that does not lead."""
    return [scene.follower()]


def nobody(_: Scene) -> list[int]:
    """Harm no machine."""
    return []


def worker(scene: Scene) -> list[int]:
    """Harm a node that has no part in the control plane."""
    return [scene.one("worker")]


@dataclass(frozen=True)
class Scenario:
    """One fault. `victims` chooses the machines that it is done to, before anything is measured; they host no oracle, but for
    one writer where it `asks_victim`. `before` is what is made ready first, if anything.

    `fault` does it, `undo` is what a person does `after_s` later, if anything. There may be no time longer than
    `outage_s` without an answered write, nor than `silence_s` without a connection to a service whose pod is on a victim, if
    there is one: until `undo` where the cluster `heals_alone`. Everything has to be as before `whole_s` after that.
    `replaced` says whether voters change, None that they may; `evicts` whether a node may be given up and its pods made anew
    elsewhere, `moves` that the victims' have to be, `elects` whether etcd may elect a leader.
    `driver` is what its machines take; `settings` are further keys of the cluster file, `tuning` is overridden on every node.
    """

    name: str
    title: str
    tags: tuple[str, ...]
    victims: Callable[[Scene], list[int]]
    fault: Callable[[Scene, list[int]], None]
    undo: Callable[[Scene, list[int]], None] | None = None
    before: Callable[[Scene], None] | None = None
    asks_victim: bool = False
    after_s: float = 5.0
    outage_s: float = 10.0
    silence_s: float = 5.0
    whole_s: float = 120.0
    replaced: bool | None = False
    evicts: bool = False
    moves: bool = False
    elects: bool = True
    heals_alone: bool = True
    driver: str = "nspawn"
    topology: str = "ring5"
    settings: tuple[tuple[str, Any], ...] = ()
    tuning: Tuning = field(default_factory=dict)

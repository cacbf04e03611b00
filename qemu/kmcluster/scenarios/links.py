"""Faults of cables: cut, silent, lossy, slow, one-way, and a mesh in two parts."""

import time
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from kmcluster.cable import Cable
from kmcluster.scenario import Scenario, Scene, follower, lead_who_is_asked, leader, nobody, worker
from kmcluster.scenarios.nodes import all_but_two, cut_off, power_on
from kmcluster.topology import reach

FLAPS, FLAP_S = 5, 1.5
AWAY_S, BACK_S = 10.0, 5.0
# How long one that has lost the others may announce the API.
WITHDRAWN_S = 10.0
SOAK_S, SOAK_LOSS, SOAK_DELAY_MS = 90.0, 1.0, 15.0
SLOW_MS = 500.0


def crossed(scene: Scene, number: int) -> int:
    """The machine at the other end of the cable by which a machine is joined to the oracles: they look from the first other."""
    home = min(machine.number for machine in scene.cluster.machines if machine.number != number)
    return scene.next_hop(number, scene.plan.node(home)) or scene.neighbours(number)[0]


def harm(action: str, **values: float) -> Callable[[Scene, list[int]], None]:
    """Do something to the cable of the victim that is looked over."""

    def do(scene: Scene, chosen: list[int]) -> None:
        scene.cable(chosen[0], crossed(scene, chosen[0]), action, **values)

    return do


cut_one = harm("cut")
# It loses everything, and keeps its carrier.
silent = harm("lossy", loss=100)
lossy = harm("lossy", loss=30)
# It takes longer than anybody waits.
slow = harm("slow", delay=SLOW_MS)
one_way = harm("one-way")


def flap(scene: Scene, chosen: list[int]) -> None:
    """One cable of the victim comes and goes."""
    other = crossed(scene, chosen[0])
    for _ in range(FLAPS):
        scene.cable(chosen[0], other, "cut")
        time.sleep(FLAP_S)
        scene.cable(chosen[0], other, "plug")
        time.sleep(FLAP_S)


def come_back(scene: Scene, a: int, b: int) -> None:
    """A cable is away for a while."""
    scene.cable(a, b, "cut")
    time.sleep(AWAY_S)
    scene.cable(a, b, "plug")


def one_after_another(scene: Scene, chosen: list[int]) -> None:
    """One cable of the victim is away for a while; soon after it is back, the other one is cut."""
    near = crossed(scene, chosen[0])
    far = next(number for number in scene.neighbours(chosen[0]) if number != near)
    come_back(scene, chosen[0], far)
    time.sleep(BACK_S)
    scene.cable(chosen[0], near, "cut")


def lead_beside_worker(scene: Scene) -> None:
    """Have a voter lead that has a cable to the worker: one has, where three of five machines on a ring vote."""
    voters = scene.with_role("voter")
    scene.lead(next(number for number in scene.neighbours(scene.one("worker")) if number in voters))


def cut_and_power(scene: Scene, chosen: list[int]) -> None:
    """The leading node's cable that does not lead to the victim is away for a while; soon after it is back, the victim is off."""
    leading = scene.leader()
    far = next(number for number in scene.neighbours(leading) if number not in chosen)
    come_back(scene, leading, far)
    # Routes go the other way for some seconds yet.
    time.sleep(BACK_S)
    scene.power(chosen[0], "cut")


def spanning_tree(cables: Sequence[Cable], random: Random) -> list[Cable]:
    """Cables of which none can be spared, and that still join all machines that these join."""
    left = list(cables)
    for cable in random.sample(left, len(left)):
        less = [one for one in left if one != cable]
        if cable.b.node in reach(cable.a.node, less):
            left = less
    return left


def cut_to_a_tree(scene: Scene, _: list[int]) -> None:
    """Cut every cable that can be spared, one right after the other."""
    kept = spanning_tree(scene.cluster.cables, scene.random)
    for cable in scene.cluster.cables:
        if cable not in kept:
            scene.cable(cable.a.node, cable.b.node, "cut")


def soak(scene: Scene, _: list[int]) -> None:
    """Every cable is as bad as a long radio link."""
    for cable in scene.cluster.cables:
        scene.cable(cable.a.node, cable.b.node, "slow", loss=SOAK_LOSS, delay=SOAK_DELAY_MS)


def plug_all(scene: Scene, _: list[int]) -> None:
    """All cables are good again."""
    scene.plug_all()


def part(scene: Scene, chosen: list[int]) -> None:
    """The victims are cut off from all others: their voters stop to announce the API, which they have without a majority."""
    voters = [number for number in scene.with_role("voter") if number in chosen]
    cut_off(scene, chosen)

    def announcing() -> str:
        left = [scene.machine(number).name for number in voters if announces(scene, number)]
        return f"{', '.join(left)} still announces the API" if left else ""

    scene.wait(announcing, WITHDRAWN_S)
    scene.tell("they announce the API no more")


def announces(scene: Scene, number: int) -> bool:
    """Whether a machine has the API's anycast address."""
    return f"inet6 {scene.plan.api}/" in scene.run(number, ["ip", "-6", "address", "show", "dev", "lo"])


def plug(scene: Scene, chosen: list[int]) -> None:
    """All cables of the victim are good again."""
    for other in scene.neighbours(chosen[0]):
        scene.cable(chosen[0], other, "plug")


def link(name: str, what: str, fault: Callable[[Scene, list[int]], None], **more: Any) -> Scenario:
    """A fault of a cable of the leading node: traffic goes another way, so soon that etcd elects nobody."""
    values = {"undo": plug, "outage_s": 3.0, "elects": False, "tags": ("link",), **more}
    return Scenario(name, f"a cable of the leading node {what}", victims=leader, fault=fault, **values)


SCENARIOS = [
    link("cable-cut", "is cut", cut_one, tags=("link", "quick")),
    link("cable-silent", "loses everything", silent),
    # It is left when two hellos in a row are lost: after 1.5 s as a rule, 6 s now and then. What etcd had under way comes again
    # some seconds later.
    link("cable-lossy", "loses 30 %", lossy, after_s=20, outage_s=12),
    link("cable-slow", f"takes {SLOW_MS:g} ms longer", slow, after_s=20, outage_s=10, silence_s=10),
    link("cable-one-way", "goes one way", one_way, after_s=10),
    link("cable-flapping", "comes and goes", flap, undo=None),
    link("cable-after-cable", "returns, and the other one is cut", one_after_another),
    Scenario("worker-after-cable", "a cable of the leading node returns, and the worker on its other one loses its power",
             ("link", "power"), worker, cut_and_power, power_on, before=lead_beside_worker, after_s=20, outage_s=3, silence_s=20,
             evicts=True, moves=True, elects=False),
    Scenario("spanning-tree", "every cable that can be spared is cut", ("link",), nobody, cut_to_a_tree, plug_all, after_s=10,
             outage_s=3, elects=False, topology="mesh5"),
    Scenario("soak", f"all cables lose {SOAK_LOSS:g} % and take {SOAK_DELAY_MS:g} ms longer", ("link", "soak"), leader, soak,
             plug_all, after_s=SOAK_S, outage_s=5, elects=False),
    Scenario("leader-cut-off", "the leading node is cut off from all others", ("link", "partition"), leader, part, plug,
             lead_who_is_asked, after_s=4, outage_s=15, silence_s=30, evicts=True),
    Scenario("voter-cut-off", "a voter that does not lead is cut off from all others", ("link", "partition"), follower, part,
             plug, after_s=4, outage_s=10, silence_s=30, evicts=True),
    # They are most of the nodes: nobody gives them up (agent/kmagent/outages.py).
    Scenario("minority-cut-off", "a voter and all nodes that do not vote are cut off from the two other voters",
             ("link", "partition"), all_but_two, part, plug_all, after_s=20, outage_s=10, silence_s=45),
]  # fmt: skip

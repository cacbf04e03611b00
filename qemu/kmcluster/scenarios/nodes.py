"""Faults of machines: power, and what stands still."""

import time
from collections.abc import Callable, Sequence

from kmcluster.scenario import GRACE_S, Scenario, Scene, follower, leader, worker

STAGGER_S = 3.0
OTHERS = 4


def power(action: str, pause_s: float = 0.0) -> Callable[[Scene, list[int]], None]:
    """Do the same to all victims' power, one after the other."""

    def act(scene: Scene, chosen: list[int]) -> None:
        for number in chosen:
            scene.power(number, action)
            time.sleep(pause_s)

    return act


cut, power_on, freeze, thaw = power("cut"), power("on", STAGGER_S), power("freeze"), power("thaw")


def lose_disk(scene: Scene, chosen: list[int]) -> None:
    """Pull the plug of all victims, put empty disks in, and power them on."""
    for number in chosen:
        scene.power(number, "cut")
        scene.wipe(number)
        scene.power(number, "on")


def cut_with_a_cable(scene: Scene, chosen: list[int]) -> None:
    """Cut a cable without which, and without the victim, all others are still joined; then the victim's power."""
    (number,) = chosen
    pairs = [
        (cable.a.node, cable.b.node) for cable in scene.cluster.cables if number not in (cable.a.node, cable.b.node)
    ]
    spared = [pair for pair in pairs if are_joined([other for other in pairs if other != pair])]
    scene.cable(*scene.random.choice(spared), "cut")
    scene.power(number, "cut")


def are_joined(pairs: Sequence[tuple[int, int]]) -> bool:
    """Whether cables between these four machines leave none of them alone."""
    reached = {pairs[0][0]}
    for _ in pairs:
        reached |= {one for pair in pairs for one in pair if reached & set(pair)}
    return len(reached) == OTHERS


def mend(scene: Scene, chosen: list[int]) -> None:
    """Plug all cables in, and power the victim on."""
    for cable in scene.cluster.cables:
        if cable.cut:
            scene.cable(cable.a.node, cable.b.node, "plug")
    power_on(scene, chosen)


def everyone(scene: Scene) -> list[int]:
    """All machines, in any order."""
    numbers = [machine.number for machine in scene.cluster.machines]
    return scene.random.sample(numbers, len(numbers))


SCENARIOS = [
    Scenario("power-leader", "the leading node loses its power, and gets it back in time", ("power", "quick"), leader, cut,
             power_on, after_s=10, outage_s=10),
    Scenario("power-follower", "another voter loses its power, and gets it back in time", ("power",), follower, cut, power_on,
             after_s=10, outage_s=5),
    Scenario("power-worker", "a worker loses its power, and gets it back", ("power",), worker, cut, power_on, after_s=20),
    Scenario("freeze-leader", "the leading node stands still for half a minute", ("power",), leader, freeze, thaw, after_s=15,
             outage_s=10),
    Scenario("power-all", "all machines lose their power at once, and get it back in any order", ("power",), everyone, cut,
             power_on, after_s=1, outage_s=90, whole_s=240, heals_alone=False),
    Scenario("voter-disk-lost", "a voter gets an empty disk", ("power", "members"), follower, lose_disk, after_s=20, whole_s=180,
             replaced=True),
    Scenario("worker-disk-lost", "a worker gets an empty disk", ("power",), worker, lose_disk, after_s=20, whole_s=180),
    Scenario("leader-gone", "the leading node is gone for longer than is waited for a voter, and returns", ("power", "members"),
             leader, cut, power_on, after_s=GRACE_S + 40, outage_s=10, replaced=True),
    Scenario("link-and-voter", "a cable is cut, and a voter loses its power", ("power", "link"), follower, cut_with_a_cable,
             mend, after_s=15, topology="mesh5"),
]  # fmt: skip

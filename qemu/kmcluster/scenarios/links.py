"""Faults of cables: cut, silent, lossy, one-way, and a mesh in two parts."""

import time

from kmcluster.scenario import Scenario, Scene, follower, leader

FLAPS, FLAP_S = 5, 1.5
AWAY_S, BACK_S = 10.0, 5.0
SOAK_S, SOAK_LOSS, SOAK_DELAY_MS = 90.0, 1.0, 15.0


def cut_one(scene: Scene, chosen: list[int]) -> None:
    """Cut one cable of the victim."""
    scene.cable(chosen[0], scene.neighbours(chosen[0])[0], "cut")


def lossy(scene: Scene, chosen: list[int]) -> None:
    """One cable of the victim loses a third of all packets."""
    scene.cable(chosen[0], scene.neighbours(chosen[0])[0], "lossy", loss=30)


def silent(scene: Scene, chosen: list[int]) -> None:
    """One cable of the victim loses everything, and keeps its carrier."""
    scene.cable(chosen[0], scene.neighbours(chosen[0])[0], "lossy", loss=100)


def one_way(scene: Scene, chosen: list[int]) -> None:
    """One cable of the victim carries packets in one direction only."""
    scene.cable(chosen[0], scene.neighbours(chosen[0])[0], "one-way")


def flap(scene: Scene, chosen: list[int]) -> None:
    """One cable of the victim comes and goes."""
    for _ in range(FLAPS):
        scene.cable(chosen[0], scene.neighbours(chosen[0])[0], "cut")
        time.sleep(FLAP_S)
        scene.cable(chosen[0], scene.neighbours(chosen[0])[0], "plug")
        time.sleep(FLAP_S)


def one_after_another(scene: Scene, chosen: list[int]) -> None:
    """One cable of the victim is away for a while; soon after it is back, the other one is cut."""
    near, far = scene.neighbours(chosen[0])[:2]
    scene.cable(chosen[0], far, "cut")
    time.sleep(AWAY_S)
    scene.cable(chosen[0], far, "plug")
    time.sleep(BACK_S)
    scene.cable(chosen[0], near, "cut")


def soak(scene: Scene, _: list[int]) -> None:
    """Every cable is as bad as a long radio link."""
    for cable in scene.cluster.cables:
        scene.cable(cable.a.node, cable.b.node, "slow", loss=SOAK_LOSS, delay=SOAK_DELAY_MS)


def plug_all(scene: Scene, _: list[int]) -> None:
    """All cables are good again."""
    scene.plug_all()


def cut_off(scene: Scene, chosen: list[int]) -> None:
    """All cables of the victim are cut."""
    for other in scene.neighbours(chosen[0]):
        scene.cable(chosen[0], other, "cut")


def plug(scene: Scene, chosen: list[int]) -> None:
    """All cables of the victim are good again."""
    for other in scene.neighbours(chosen[0]):
        scene.cable(chosen[0], other, "plug")


SCENARIOS = [
    Scenario("cable-cut", "a cable of the leading node is cut", ("link", "quick"), leader, cut_one, plug, outage_s=3),
    Scenario("cable-silent", "a cable of the leading node loses everything", ("link",), leader, silent, plug, outage_s=3),
    Scenario("cable-lossy", "a cable of the leading node loses 30 %", ("link",), leader, lossy, plug, after_s=20, outage_s=3),
    Scenario("cable-one-way", "a cable of the leading node goes one way", ("link",), leader, one_way, plug,
             after_s=10, outage_s=3),
    Scenario("cable-flapping", "a cable of the leading node comes and goes", ("link",), leader, flap, outage_s=3),
    Scenario("cable-after-cable", "a cable of the leading node returns, and the other one is cut", ("link",), leader,
             one_after_another, plug, outage_s=3),
    Scenario("soak", f"all cables lose {SOAK_LOSS:g} % and take {SOAK_DELAY_MS:g} ms longer", ("link", "soak"), leader, soak,
             plug_all, after_s=SOAK_S, outage_s=5),
    Scenario("leader-cut-off", "the leading node is cut off from all others", ("link", "partition"), leader, cut_off, plug,
             after_s=20, outage_s=15, silence_s=30, evicts=True),
    Scenario("voter-cut-off", "a voter that does not lead is cut off from all others", ("link", "partition"), follower, cut_off,
             plug, after_s=20, outage_s=10, silence_s=30, evicts=True),
]  # fmt: skip

"""Faults of cables: cut, silent, lossy, one-way, and a mesh in two parts."""

import time

from kmcluster.scenario import Scenario, Scene, follower, leader

FLAPS, FLAP_S = 5, 1.5


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
    Scenario("leader-cut-off", "the leading node is cut off from all others", ("link", "partition"), leader, cut_off, plug,
             after_s=20, outage_s=15),
    Scenario("voter-cut-off", "a voter that does not lead is cut off from all others", ("link", "partition"), follower, cut_off,
             plug, after_s=20, outage_s=10),
]  # fmt: skip

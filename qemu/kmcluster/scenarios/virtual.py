"""Faults of virtual machines: power with firmware and boot loader, a root that returns wrong data, clocks."""

import errno
from dataclasses import replace

from kmcluster import clock, inside
from kmcluster.scenario import Scenario, Scene, leader, worker
from kmcluster.scenarios.nodes import cut, power_on
from kmplan.errors import UserError

# Without KVM a boot takes minutes.
BOOT_S = 1500.0
YEAR, DECADES = 365, 50 * 365


def spoil_root(scene: Scene, chosen: list[int]) -> None:
    """Overwrite a block of the victim's root partition; UserError when the machine then reads anything there."""
    machine = scene.machine(chosen[0])
    spoiled = inside.run_script(scene.driver, machine, "spoil_root", "spoil")
    scene.tell(f"spoiled: {spoiled['file']} on {machine.name}")
    check_root(scene, chosen[0], "check", errno.EIO)


def repair_root(scene: Scene, chosen: list[int]) -> None:
    """Put back what was there; UserError when it still cannot be read."""
    check_root(scene, chosen[0], "repair", 0)


def check_root(scene: Scene, number: int, action: str, wanted: int) -> None:
    """Have the machine read the file; UserError when that ends in another way than is wanted."""
    machine = scene.machine(number)
    seen = inside.run_script(scene.driver, machine, "spoil_root", action)
    words = {0: "is read", errno.EIO: "is refused"}
    said = words.get(seen["error"], f"ends with error {seen['error']}")
    if seen["error"] != wanted:
        raise UserError(f"{machine.name}: {seen['file']} {said}, not {words[wanted]}")
    scene.tell(f"{seen['file']} {said}")


def shift(scene: Scene, number: int, days: int) -> None:
    """Put a machine's clocks ahead or behind; by nothing sets them right."""
    text = f"{days:+d}d"
    scene.tell(f"clock {text}: {scene.machine(number).name}")
    clock.shift(scene.name, str(number), text)


def lose_clock(scene: Scene, chosen: list[int]) -> None:
    """The victim starts anew with a clock that is decades back, as without a battery."""
    shift(scene, chosen[0], -DECADES)
    scene.power(chosen[0], "reset")


def virtual(scenario: Scenario, topology: str = "pair") -> Scenario:
    """One that takes virtual machines: a voter and a worker."""
    return replace(scenario, driver="qemu", topology=topology, tags=(*scenario.tags, "virtual"))


ON_PAIR = (
    Scenario("vm-power-worker", "a virtual worker loses its power, and gets it back", ("power",), worker, cut, power_on,
             after_s=60, outage_s=30, whole_s=BOOT_S, evicts=True),
    Scenario("vm-power-voter", "the only virtual voter loses its power, and gets it back", ("power",), leader, cut, power_on,
             after_s=10, outage_s=BOOT_S, whole_s=BOOT_S, evicts=True, heals_alone=False),
    Scenario("vm-root-spoiled", "a block of a running worker's root is spoiled: dm-verity refuses it", ("disk",), worker,
             spoil_root, repair_root, after_s=20, outage_s=30, whole_s=300),
    Scenario("vm-clock-ahead", "a worker's clock is a year ahead for a minute", ("clock",), worker,
             lambda scene, chosen: shift(scene, chosen[0], YEAR), lambda scene, chosen: shift(scene, chosen[0], 0),
             after_s=60, outage_s=30, whole_s=600),
    Scenario("vm-clock-lost", "the only voter starts with a clock that is decades back", ("clock", "power"), leader,
             lose_clock, after_s=10, outage_s=BOOT_S, whole_s=BOOT_S, evicts=True),
)  # fmt: skip
DISKLESS = Scenario(
    name="vm-power-diskless",
    title="a virtual worker that lives in memory loses its power, and gets it back",
    tags=("power",),
    victims=worker,
    fault=cut,
    undo=power_on,
    after_s=180,
    outage_s=30,
    whole_s=BOOT_S,
    evicts=True,
    settings=(("install", {"to": "ram"}),),
)
SCENARIOS = [*map(virtual, ON_PAIR), virtual(DISKLESS, topology="netboot")]

"""What is done to a machine's disk: emptied, spoiled, filled, made to fail; and mended again."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kmcluster import inside, state
from kmcluster.driver import Driver
from kmcluster.drivers import driver_of
from kmcluster.state import Cluster, Machine
from kmcluster.topology import Role
from kmplan import files, seed
from kmplan.errors import UserError

ACTIONS = ("wipe", "corrupt", "fill", "errors", "repair")
FULL, ERRORS = "full", "errors"
SCRIPT_S = 120.0


@dataclass(frozen=True)
class Outcome:
    """What came of it: the faults that the disk has now, and facts of the action (file, bytes, hint)."""

    node: str
    action: str
    faults: list[str]
    facts: dict[str, Any] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """The outcome as data for --json."""
        return asdict(self)


def change(name: str, node: str, action: str, file: str | None = None) -> Outcome:
    """Do something to a machine's disk; `file` (for corrupt) is a path, relative ones are below /var.

    A fault that is there already stays as it is. Raises UserError when the machine's power does not allow it.
    """
    if action not in ACTIONS:
        raise UserError(f"{action}: no such action", f"there are: {', '.join(ACTIONS)}")
    if file and action != "corrupt":
        raise UserError(f"{action} takes no file", "give it with corrupt")
    with state.locked(name):
        cluster = state.load(name)
        machine, driver = cluster.machine(node), driver_of(cluster)
        try:
            match action:
                case "wipe":
                    facts = wipe(cluster, driver, machine)
                case "corrupt":
                    facts = corrupt(driver, machine, file)
                case "fill":
                    facts = fill(driver, machine)
                case "errors":
                    facts = fail(driver, machine)
                case _:
                    facts = repair(driver, machine)
        finally:
            cluster.save()
    return Outcome(machine.name, action, machine.disk_faults, facts)


def wipe(cluster: Cluster, driver: Driver, machine: Machine) -> dict[str, Any]:
    """Give a machine that is off an empty disk without faults.

    A seed that has neighbours gets no second seeding: two clusters of the same keys would come of it.
    """
    if driver.power(machine) != "off":
        raise UserError(f"{machine.name} is on", f"`kmbuild cluster power {machine.name} cut`, then wipe")
    shared = len(cluster.machines) > 1
    if shared and machine.stick and machine.node.role is Role.SEED:
        hint = f"`kmbuild cluster stick {machine.name} pull`, then wipe"
        raise UserError(f"{machine.name}: its stick makes a seed of it again", hint)
    driver.wipe_disk(machine)
    machine.disk_faults = []
    if shared:
        unseed(cluster.directory, cluster.machine_folder(machine) / "credentials", machine.number)
    return {}


def unseed(directory: Path, credentials: Path, number: int) -> None:
    """Make a blank machine of a seed; leaves others as they are."""
    if (credentials / "kubermesh.seed").exists():
        files.write(credentials / "kubermesh.join", seed.make_join(directory, number), 0o600)
        (credentials / "kubermesh.seed").unlink()


def corrupt(driver: Driver, machine: Machine, file: str | None) -> dict[str, Any]:
    """Overwrite bytes of a file; without one, of etcd's newest log."""
    facts: dict[str, Any] = inside.run_script(driver, machine, "corrupt", *([file] if file else []), timeout_s=SCRIPT_S)
    return facts


def fill(driver: Driver, machine: Machine) -> dict[str, Any]:
    """Leave no byte free on /var."""
    facts: dict[str, Any] = inside.run_script(driver, machine, "fill", "fill", timeout_s=SCRIPT_S)
    add(machine, FULL)
    return facts


def fail(driver: Driver, machine: Machine) -> dict[str, Any]:
    """From now on every write to the disk fails, also after the next power on."""
    driver.fail_disk(machine, True)
    add(machine, ERRORS)
    return {}


def repair(driver: Driver, machine: Machine) -> dict[str, Any]:
    """Undo fill and errors. A file system that has seen an error stays read-only until the machine's next power on."""
    facts = {}
    if ERRORS in machine.disk_faults:
        driver.fail_disk(machine, False)
        machine.disk_faults.remove(ERRORS)
        if driver.power(machine) != "off":
            facts["hint"] = f"/var stays read-only until `kmbuild cluster power {machine.name} reset`"
    if FULL in machine.disk_faults:
        inside.run_script(driver, machine, "fill", "free", timeout_s=SCRIPT_S)
        machine.disk_faults.remove(FULL)
    return facts


def add(machine: Machine, fault: str) -> None:
    """Note a fault, once."""
    if fault not in machine.disk_faults:
        machine.disk_faults.append(fault)

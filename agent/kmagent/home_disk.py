"""`python3 -m kmagent disk`: which disk this node lives on, completed and ready to be mounted; runs once, early in the boot.

A node lives on the disk that it booted from, unless that can be pulled out.
"""

import importlib
import os
import time
from pathlib import Path

from kmagent import machine
from kmagent.paths import Paths
from kmplan.errors import UserError
from kmplan.run import run

DEFINITIONS = Path("/usr/lib/kubermesh/repart.d")
APPEARS_S, AGAIN_S = 20.0, 30.0
ESP, VAR = "kubermesh-esp", "kubermesh-var"
MEMORY = "zram"


def main() -> int:
    """Say where `/var` is, as soon as that is found; what is in the way is told on the consoles, and looked at again."""
    paths = Paths()
    paths.run.mkdir(mode=0o755, parents=True, exist_ok=True)
    told = ""
    while True:
        try:
            var = find(paths)
        except (UserError, OSError) as error:
            # A unit that fails ends the boot, where nobody can log in and nothing is said.
            if told != str(error):
                told = str(error)
                importlib.import_module("kmagent.install").say(
                    paths, None, f"no disk to live on: {told}", state="blocked"
                )
            time.sleep(AGAIN_S)
            paths.disk.unlink(missing_ok=True)
        else:
            break
    paths.var_device.unlink(missing_ok=True)
    paths.var_device.symlink_to(f"/dev/{var}")
    return 0


def find(paths: Paths) -> str:
    """Return the partition for `/var`, of a disk that is installed first where that is due, and completed."""
    drive = root_drive()
    if (
        drive.startswith(MEMORY)
        or machine.is_removable(drive)
        or any(machine.partition(name, ESP) for name in machine.removable_disks())
    ):
        # What it takes to install is not loaded at every boot.
        return str(importlib.import_module("kmagent.install").settle_on(paths))
    if len([name for name in machine.fixed_disks() if machine.partition(name, VAR)]) > 1:
        drive = importlib.import_module("kmagent.install").own_of(paths, drive)
    return complete(drive)


def root_drive() -> str:
    """Return the name of the disk that the root is on, or of the memory."""
    number = Path("/").stat().st_dev
    device = machine.SYS / "dev/block" / f"{os.major(number)}:{os.minor(number)}"
    below = sorted((device / "slaves").iterdir())
    if not below:
        raise UserError("the root is on no partition of a disk", "is this a Kubermesh image?")
    found = below[0].resolve()
    return found.parent.name if (found / "partition").exists() else found.name


def complete(drive: str) -> str:
    """Add the partitions that the disk does not have yet, let the last one grow (systemd-repart(8)); returns that of `/var`.

    A disk to which nothing can be added does as it is, as long as `/var` is there.
    """
    argv = ["systemd-repart", "--dry-run=no", f"--definitions={DEFINITIONS}", "--no-pager", f"/dev/{drive}"]
    run(argv, check=False)
    return var_of(drive)


def var_of(drive: str) -> str:
    """Return the partition of a disk that is for `/var`; UserError when it has none."""
    return partition_of(drive, VAR)


def partition_of(drive: str, label: str) -> str:
    """Return the partition of a disk that has a label; UserError when there is none.

    udev reads a partition table anew that was written, and for a moment there are no partitions.
    """
    deadline = time.monotonic() + APPEARS_S
    while (found := machine.partition(drive, label)) is None:
        if time.monotonic() > deadline:
            raise UserError(f"/dev/{drive}: no partition {label}", "flash or install it again")
        time.sleep(0.1)
    return found

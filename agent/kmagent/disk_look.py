"""What is on the disks of a machine that was booted from a stick."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from kmagent import home_disk, machine
from kmagent.disk_choice import Found
from kmagent.paths import Paths
from kmplan.drives import Drive, listed, lsblk
from kmplan.errors import UserError
from kmplan.run import run
from kmplan.seed import parse_join

NO_DISKS = ("zram", "loop", "nbd", "ram", "sr", "fd")
FIRST_BYTES = 1 << 20
NODE_AUTHORITY = "pki/node-ca.crt"
# What an install has begun to write to `/var`.
BEGUN = "begun"
NEW_FILE_SYSTEM = {"lost+found", BEGUN}


def look_around(paths: Paths, authority: str) -> list[Found]:
    """Return the disks that stay in the machine, and what is on them."""
    machine.settle()
    return [look(paths, drive, authority) for drive in listed(lsblk()) if may_be_home(drive)]


def may_be_home(drive: Drive) -> bool:
    """Tell whether this is a disk that stays in the machine, and that nothing but the root is read from."""
    name = drive.path.name
    is_disk = not name.startswith(NO_DISKS) and "boot" not in name
    return is_disk and not set(drive.mounts) - {"/"} and not machine.is_removable(name)


def look(paths: Paths, drive: Drive, authority: str) -> Found:
    """Return what is on a disk; what cannot be read is never taken for nothing."""
    var = next((part for part in drive.partitions if part.label == home_disk.VAR), None)
    try:
        if var is None:
            empty = not drive.content and not drive.partitions and is_zero(drive.path)
            return Found(drive, "nothing" if empty else "data", ", ".join(drive.content) or "something unknown")
        # With its journal: what was written last may be there only.
        with mounted(paths, var.path, "ro") as folder:
            name, known = cluster_on(folder / "lib/kubermesh")
            is_new = {path.name for path in folder.iterdir()} <= NEW_FILE_SYSTEM
    except (UserError, OSError, ValueError, LookupError, TypeError) as error:
        text = str(error).strip().rpartition("\n")[2]
        return Found(drive, "data" if var is None else "broken", f"something that cannot be read: {text}")
    if known:
        return Found(drive, "ours" if known.strip() == authority.strip() else "theirs", name)
    only_ours = all(part.label.startswith("kubermesh-") or part.label == "_empty" for part in drive.partitions)
    return Found(drive, "nothing" if is_new and only_ours else "data", "a Kubermesh that knows no cluster")


def is_zero(path: Path) -> bool:
    """Tell whether a disk begins with nothing but zeros."""
    with path.open("rb") as device:
        return not any(device.read(FIRST_BYTES))


@contextlib.contextmanager
def mounted(paths: Paths, device: Path, how: str, kind: str = "ext4") -> Iterator[Path]:
    """Show what is on a partition."""
    folder = paths.run / "look"
    folder.mkdir(mode=0o700, exist_ok=True)
    run(["umount", "--quiet", folder], check=False)
    run(["mount", "-t", kind, "-o", f"{how},nodev,nosuid,noexec", device, folder])
    try:
        yield folder
    finally:
        run(["umount", folder])


def cluster_on(state: Path) -> tuple[str, str]:
    """Return the name and the node authority of the cluster that a node's state is of; empty when it is of none.

    Raises OSError, ValueError, LookupError, TypeError or UserError for what is there and cannot be read.
    """
    with contextlib.suppress(FileNotFoundError):
        authority = (state / NODE_AUTHORITY).read_text(encoding="ascii")
        return str(json.loads((state / "cluster.json").read_bytes())["name"]), authority
    with contextlib.suppress(FileNotFoundError):
        join = parse_join((state / "join.json").read_bytes())
        return join.name, join.authority
    return "", ""

"""Cgroups of a machine: own children only, on hosts with cgroup v1, hybrid or v2."""

import os
import signal
import time
from pathlib import Path

from kmplan.errors import UserError

ROOT = Path("/sys/fs/cgroup")
NEEDED = ("cpu", "cpuset", "memory", "pids")


def is_unified() -> bool:
    """Whether the host has cgroup v2 only."""
    return (ROOT / "cgroup.controllers").exists()


def own_folders() -> list[Path]:
    """This process's cgroup in every mounted hierarchy (proc_pid_cgroup in cgroups(7))."""
    folders = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        name = controllers.removeprefix("name=") if controllers else "unified"
        mount = ROOT if is_unified() else ROOT / name
        if (mount / "cgroup.procs").exists():
            folders.append(mount / path.lstrip("/"))
    return folders


def plan(name: str) -> list[str]:
    """Folders to make for a machine.

    On v2 a cgroup with processes gives no controllers to its children, except the root: so the machine's is a child
    of the root. On v1 each hierarchy gets a child of the cgroup this process is in.
    """
    parents = [ROOT] if is_unified() else own_folders()
    return [str(parent / name) for parent in parents]


def make(folders: list[str]) -> None:
    """Make the planned cgroups."""
    if is_unified():
        try:
            delegate(ROOT)
        except OSError as error:
            raise UserError(
                f"{ROOT}: its children cannot be given {', '.join(NEEDED)}: {error.strerror}",
                "are you root, and not in a container that has no cgroups of its own?",
            ) from error
    for folder in map(Path, folders):
        try:
            folder.mkdir(exist_ok=True)
            for file in ("cpuset.cpus", "cpuset.mems"):
                # A new v1 cpuset is empty, and takes no process before it is filled.
                if not is_unified() and (folder / file).exists():
                    (folder / file).write_text((folder.parent / file).read_text())
        except OSError as error:
            raise UserError(f"{folder}: cannot be made: {error.strerror}", "are you root?") from error


def delegate(folder: Path) -> None:
    """Give the controllers a machine needs to the children of a v2 cgroup; those that are given stay."""
    given = (folder / "cgroup.subtree_control").read_text().split()
    there = (folder / "cgroup.controllers").read_text().split()
    for controller in NEEDED:
        if controller in there and controller not in given:
            (folder / "cgroup.subtree_control").write_text(f"+{controller}")


def freeze(folders: list[str], frozen: bool) -> None:
    """Stop or continue everything in a machine's cgroups."""
    for folder in map(Path, folders):
        if (folder / "freezer.state").exists():
            (folder / "freezer.state").write_text("FROZEN" if frozen else "THAWED")
        elif is_unified() and (folder / "cgroup.freeze").exists():
            (folder / "cgroup.freeze").write_text("1" if frozen else "0")


def is_frozen(folders: list[str]) -> bool:
    """Whether a machine's cgroups are stopped."""
    for folder in map(Path, folders):
        if (folder / "freezer.state").exists():
            return (folder / "freezer.state").read_text().strip() != "THAWED"
        if is_unified() and (folder / "cgroup.freeze").exists():
            return (folder / "cgroup.freeze").read_text().strip() == "1"
    return False


def remove(folders: list[str], deadline_s: float = 10.0) -> None:
    """Kill what is left in a machine's cgroups and remove them."""
    deadline = time.monotonic() + deadline_s
    left = [Path(folder) for folder in folders]
    while left:
        left = [folder for folder in left if not remove_tree(folder)]
        if left and time.monotonic() > deadline:
            raise UserError(f"{left[0]}: cannot be removed, something in it does not end")
        time.sleep(0.05 if left else 0)


def remove_tree(top: Path) -> bool:
    """Kill and remove once, children first; False if something is still there."""
    for folder, _, _ in os.walk(top, topdown=False):
        try:
            for pid in (Path(folder) / "cgroup.procs").read_text().split():
                os.kill(int(pid), signal.SIGKILL)
            Path(folder).rmdir()
        except (FileNotFoundError, ProcessLookupError):
            continue
        except OSError:
            return False
    return not top.exists()

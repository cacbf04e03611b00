"""Whether this host has inotify instances for more containers: they share those of root, 128 by default (inotify(7))."""

import contextlib
import os
from pathlib import Path

from kmplan.errors import UserError

# Of a container's systemd, containerd, kubelet and kube-proxy, measured; there are fewer until all of them run.
EACH = 12
LIMIT = Path("/proc/sys/fs/inotify/max_user_instances")


def check(containers: int, proc: Path = Path("/proc"), limit: Path = LIMIT) -> None:
    """Raise UserError when there is no room for so many more containers: their kube-proxy would not run."""
    most, used = int(limit.read_text()), count(proc)
    if used + EACH * containers > most:
        raise UserError(
            f"{used} of {most} inotify instances of this host are in use, a container takes {EACH}",
            f"`sysctl -w fs.inotify.max_user_instances={max(1024, 2 * (used + EACH * containers))}`, "
            "or take another cluster down",
        )


def count(proc: Path) -> int:
    """Count those of this user's processes."""
    used = 0
    for process in proc.glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it may have ended
            if process.stat().st_uid == os.geteuid():
                used += sum(map(is_inotify, (process / "fd").iterdir()))
    return used


def is_inotify(descriptor: Path) -> bool:
    """Tell whether a file descriptor is an inotify instance."""
    try:
        return str(descriptor.readlink()) == "anon_inode:inotify"
    except OSError:
        return False  # it was closed

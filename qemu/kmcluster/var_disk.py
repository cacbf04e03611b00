"""The disk of an nspawn machine: ext4 in a file, mounted as /var where only the machine sees it.

As on a real machine it has a size, and a journal that is aborted when a write fails. The loop device belongs to the
mount (LO_FLAGS_AUTOCLEAR), and the mount to the machine's mount namespace: both go with the machine's last process.
"""

import contextlib
import fcntl
import os
import struct
import time
from collections.abc import Sequence
from pathlib import Path

from kmplan import run
from kmplan.errors import UserError

FILE = "var.ext4"
SYS = Path("/sys")
# The host's page cache stays when a machine dies, so a barrier would only cost the host's disk its time.
OPTIONS = "loop,barrier=0,noinit_itable,errors=remount-ro"
MAKE = ["mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"]

# include/uapi/linux/ext4.h
EXT4_IOC_SHUTDOWN, EXT4_GOING_FLAGS_NOLOGFLUSH = 0x8004587D, 2


def make(disk: Path, size_gib: int) -> None:
    """Make an empty disk unless there is one; the file has holes, and takes of the host what is written to it."""
    if disk.exists():
        return
    partial = disk.with_suffix(".partial")
    with partial.open("wb") as file:
        file.truncate(size_gib << 30)
    run.run([*MAKE, partial])
    partial.rename(disk)


def mounted(disk: Path, target: Path, argv: Sequence[str], *, failing: bool = False) -> list[str]:
    """The argv that mounts a disk on `target` in its own mount namespace, and becomes `argv`.

    A failing one is left as ext4 leaves a disk that does not take a write: readable, with its journal aborted.
    """
    steps = ['mount -t ext4 -o "$1" "$2" "$3"']
    steps += ['mount -o remount,abort "$3"'] if failing else []
    script = " && ".join([*steps, "shift 3", 'exec "$@"'])
    # The last line is what the user is told, and mount's own is a hint at dmesg.
    script += f"; echo {disk.name} cannot be mounted, see the console >&2; exit 1"
    return ["sh", "-c", script, "-", OPTIONS, str(disk), str(target), *argv]


def opened(disk: Path, root: Path, argv: Sequence[str]) -> list[str]:
    """The argv that runs `argv` where the disk is at `root`/var, `root` is read-only and has the host's /dev and /proc.

    All mounts are in a mount namespace of the command's own.
    """
    steps = ['mount --bind "$1" "$1"', 'mount -o remount,bind,ro "$1"']
    steps += [f'mount --rbind {shown} "$1"{shown}' for shown in ("/dev", "/proc")]
    script = " && ".join([*steps, "shift", 'exec "$@"'])
    return ["unshare", "--mount", "sh", "-c", script, "-", str(root), *mounted(disk, root / "var", argv)]


def cut_off(mounted: Path, disk: Path) -> None:
    """Let a mounted disk keep what it was given until now, as in a power cut: what the kernel has yet to write is lost.

    Nothing is done where another file system is mounted, as before a container has its own: that may be the host's.
    """
    with contextlib.suppress(FileNotFoundError):
        folder = os.open(mounted, os.O_RDONLY | os.O_DIRECTORY)
        try:
            device = os.fstat(folder).st_dev
            if is_behind(SYS / f"dev/block/{os.major(device)}:{os.minor(device)}", disk):
                fcntl.ioctl(folder, EXT4_IOC_SHUTDOWN, struct.pack("I", EXT4_GOING_FLAGS_NOLOGFLUSH))
        finally:
            os.close(folder)


def wait_free(disk: Path, timeout_s: float = 20.0) -> None:
    """Wait until no loop device holds the disk: the kernel unmounts it some moments after the last process's end."""
    deadline = time.monotonic() + timeout_s
    while is_held(disk):
        if time.monotonic() > deadline:
            raise UserError(f"{disk}: still mounted after {timeout_s:g} s", "see `losetup --list`")
        time.sleep(0.01)


def is_held(disk: Path) -> bool:
    """Whether a loop device holds the disk."""
    return any(is_behind(device, disk) for device in (SYS / "block").glob("loop*"))


def is_behind(device: Path, disk: Path) -> bool:
    """Whether the disk is the file behind a block device, which is given by its folder in sysfs."""
    try:
        return (device / "loop/backing_file").read_text().rstrip("\n") == str(disk.resolve())
    except OSError:
        return False

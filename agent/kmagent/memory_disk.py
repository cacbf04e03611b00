"""Disks in memory, for a machine that has no other (zram, Documentation/admin-guide/blockdev/zram.rst).

Blocks of zeros take no memory, and what can be compressed takes less than its size.
"""

import contextlib
import time
from pathlib import Path

from kmplan.errors import UserError
from kmplan.run import run

CONTROL = Path("/sys/class/zram-control/hot_add")
HOT_REMOVE = CONTROL.with_name("hot_remove")
RELEASED_S = 10.0
BLOCK = Path("/sys/block")
MEMINFO = Path("/proc/meminfo")
CHUNK = 1 << 20
# The largest part of the machine's memory that /var may take: the rest is for programs.
VAR_SHARE = 0.5
# What has to stay free while the root is loaded.
RESERVE = 256 << 20


def require(size: int) -> None:
    """Raise UserError when `size` bytes of memory, and some to run with, are not free."""
    free = read_memory("MemAvailable")
    if size + RESERVE > free:
        needed, there = (f"{one >> 20} MB of memory" for one in (size + RESERVE, free))
        raise UserError(f"that takes {needed}, and there are {there}")


def create(size: int) -> str:
    """Make a disk of `size` bytes; returns its name."""
    run(["modprobe", "zram", "num_devices=0"])
    name = f"zram{CONTROL.read_text().strip()}"
    (BLOCK / name / "disksize").write_text(str(size))
    return name


def copy(source: Path, target: Path) -> None:
    """Copy a partition; what is zero already is not written."""
    with source.open("rb", buffering=0) as one, target.open("r+b", buffering=0) as other:
        at = 0
        while data := one.read(CHUNK):
            if data.count(0) != len(data):
                other.seek(at)
                other.write(data)
            at += len(data)


def release(name: str) -> None:
    """Give the memory of a disk back that nobody reads from any more."""
    deadline = time.monotonic() + RELEASED_S
    while time.monotonic() < deadline:
        # udev looks at it for a moment, once it is empty, too.
        with contextlib.suppress(OSError):
            (BLOCK / name / "reset").write_text("1")
            HOT_REMOVE.write_text(name.removeprefix("zram"))
            return
        time.sleep(0.2)


def read_memory(name: str) -> int:
    """Return a figure of the machine's memory in bytes (proc(5), meminfo)."""
    return next(int(line.split()[1]) for line in MEMINFO.read_text().splitlines() if line.startswith(f"{name}:")) * 1024


def make_var() -> str:
    """Make the file system for `/var`; returns its device's name."""
    name = create(int(read_memory("MemTotal") * VAR_SHARE) // CHUNK * CHUNK)
    run(["mkfs.ext4", "-q", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1", f"/dev/{name}"])
    return name

"""The root's dm-verity device, and how it is moved to another disk while it is in use (dmsetup(8)).

The kernel lets a table of dm-verity be replaced by another one, between two reads of the root.
"""

import os
from pathlib import Path
from uuid import UUID

from kmplan.errors import UserError
from kmplan.run import run

ROOT = "root"
TRIAL = "kubermesh-trial"
CHUNK = 4 << 20
# Places in a table's line (dm-verity, kernel documentation): start, length, "verity", version, data device, hash device, sizes of
# their blocks, number of data blocks, where the hashes begin, algorithm, root hash, …
DATA, HASHES, BLOCKS, ROOT_HASH = 4, 5, 8, 11


def table() -> list[str]:
    """Return the root's table, in words."""
    words = run(["dmsetup", "table", ROOT]).stdout.split()
    if words[2:3] != ["verity"]:
        raise UserError(f"the root is no dm-verity device: {' '.join(words)}")
    return words


def elsewhere(words: list[str], data: str, hashes: str) -> str:
    """Return the table of the same root on other devices, `major:minor` each."""
    moved = [*words]
    moved[DATA], moved[HASHES] = data, hashes
    return " ".join(moved)


def root_uuids(words: list[str]) -> tuple[str, str]:
    """Return the UUIDs of the partitions that root and hashes are on: halves of the root hash (repart.d(5), Verity=)."""
    roothash = words[ROOT_HASH]
    return str(UUID(roothash[:32])), str(UUID(roothash[32:]))


def root_bytes() -> int:
    """Return how many bytes of the root's device its file system uses."""
    status = os.statvfs("/")
    return status.f_blocks * status.f_frsize


def check(moved: str) -> None:
    """Read all that the root's file system uses by another table; UserError when it is something else."""
    run(["dmsetup", "remove", "--retry", TRIAL], check=False)
    run(["dmsetup", "create", TRIAL, "--readonly", "--noudevsync", "--table", moved])
    try:
        node = Path("/dev/mapper") / TRIAL
        run(["dmsetup", "mknodes", TRIAL])
        read_through(node, root_bytes())
    except OSError as error:
        raise UserError(f"what was written is not what the root hash says: {error.strerror}") from error
    finally:
        run(["dmsetup", "remove", "--retry", "--noudevsync", TRIAL])


def read_through(path: Path, length: int) -> None:
    """Read a device from its beginning; its blocks come from the disk, as nobody has read them by this device before."""
    device = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        left = length
        while left > 0:
            count = len(os.read(device, min(CHUNK, left)))
            if not count:
                raise UserError(f"{path} ends {left} bytes too early")
            left -= count
    finally:
        os.close(device)


def move(moved: str) -> None:
    """Have the running root read from other devices, and let go of the old ones."""
    run(["dmsetup", "reload", ROOT, "--readonly", "--table", moved])
    run(["dmsetup", "resume", "--noudevsync", ROOT])

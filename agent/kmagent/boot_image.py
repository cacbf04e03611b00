"""The system that this node runs, as its neighbours may have it: root, hashes, and the boot image that names their hash."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from kmagent import verity
from kmagent.paths import Paths, in_container
from kmplan.errors import UserError

# Where it is served by HTTP (provide.py).
PORT = 9445
# Where a boot image may be: kept from the network, or on the EFI system partition (systemd-gpt-auto-generator(8)).
FOLDERS = ("run/kubermesh-boot", "efi/EFI/Linux", "boot/EFI/Linux")
# A container has no disk: the bench gives it the image's files.
GIVEN = Path("/run/kubermesh-image")
BLOCK, DIGEST = 4096, 32
PER_BLOCK = BLOCK // DIGEST


@dataclass(frozen=True)
class System:
    """A root and its hashes, devices or files, with how many bytes of them are used, and the root hash (hex)."""

    roothash: str
    root: Path
    root_bytes: int
    hashes: Path
    hash_bytes: int


def running() -> System:
    """Return the system that runs; UserError when it is on no dm-verity device."""
    if in_container():
        given = json.loads((GIVEN / "system.json").read_text())
        root, hashes = GIVEN / "root", GIVEN / "hashes"
        return System(str(given["roothash"]), root, root.stat().st_size, hashes, hashes.stat().st_size)
    words = verity.table()
    status = os.statvfs("/")
    used = -(-status.f_blocks * status.f_frsize // BLOCK) * BLOCK
    blocks = int(words[verity.BLOCKS])
    data, hashes = (Path("/dev/block") / words[place] for place in (verity.DATA, verity.HASHES))
    return System(words[verity.ROOT_HASH], data, used, hashes, hash_bytes(blocks))


def hash_bytes(blocks: int) -> int:
    """Return the length of the hashes of so many blocks, with their superblock (dm-verity, kernel documentation)."""
    total = 1
    while True:
        blocks = -(-blocks // PER_BLOCK)
        total += blocks
        if blocks <= 1:
            return total * BLOCK


def find(roothash: str, top: Path = Path("/")) -> Path:
    """Return the boot image that starts the system with this root hash; UserError when it is nowhere."""
    folders = [GIVEN] if in_container() else [top / folder for folder in FOLDERS]
    for path in (path for folder in folders for path in sorted(folder.glob("*.efi"))):
        if re.search(rb"\broothash=" + roothash.encode() + rb"\b", path.read_bytes()):
            return path
    raise UserError(f"no boot image of the system that runs in {', '.join(map(str, folders))}")


def offer(paths: Paths, system: System, name: str, join: bytes) -> bytes:
    """Return what is offered (JSON): the system's version and sizes, and what lets a machine ask to be admitted."""
    return json.dumps(
        {
            "node": name,
            "version": json.loads(paths.versions.read_text())["image"],
            "roothash": system.roothash,
            "root_bytes": system.root_bytes,
            "hash_bytes": system.hash_bytes,
            "join": json.loads(join),
        }
    ).encode()

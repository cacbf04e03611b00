"""The system that this node runs, as its neighbours may have it: root, hashes, and the boot image that names their hash."""

import contextlib
import json
import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from kmagent import verity
from kmagent.paths import in_container
from kmplan import boot_images
from kmplan.errors import UserError

# Where it is served by HTTP (provide.py).
PORT = 9445
# Where a boot image may be: kept from the network, or on the EFI system partition, as systemd-gpt-auto-generator(8) shows it, or
# `provide` itself, where the firmware has not said which one it is.
FOLDERS = ("run/kubermesh-boot", "efi/EFI/Linux", "boot/EFI/Linux", "run/kubermesh/boot-esp/EFI/Linux")
# A container has no disk: the bench gives it the image's files.
GIVEN = Path("/run/kubermesh-image")
PE_OFFSET = 0x3C
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
    while blocks > 1:
        blocks = -(-blocks // PER_BLOCK)
        total += blocks
    return total * BLOCK


def find(roothash: str, top: Path = Path("/")) -> Path:
    """Return the boot image of the system with this root hash, which runs; UserError when it is nowhere."""
    folders = [GIVEN] if in_container() else [top / folder for folder in FOLDERS]
    for path in (path for folder in folders for path in sorted(folder.glob("*.efi"))):
        # Another copy may be one that can be read.
        with contextlib.suppress(OSError):
            if is_of(path, roothash, top):
                return path
    raise UserError(f"no boot image of the system that runs in {', '.join(map(str, folders))}")


def is_of(path: Path, roothash: str, top: Path = Path("/")) -> bool:
    """Tell whether a boot image belongs to the system with this root hash, which runs: its root has the digest.

    A neighbour that sent it may have put another kernel into it, with the right root hash behind it.
    """
    return boot_images.digest(path, roothash) == (top / boot_images.DIGEST).read_text().strip()


def command_line(path: Path) -> str:
    """Return the kernel's command line that a boot image has in it (PE/COFF, section `.cmdline`; systemd-stub(7))."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        head: int = struct.unpack_from("<I", data, PE_OFFSET)[0]
        count, optional = struct.unpack_from("<H12xH", data, head + 6)
        for place in range(count):
            name, size, _, _, start = struct.unpack_from("<8sIIII", data, head + 24 + optional + 40 * place)
            if name.rstrip(b"\0") == b".cmdline":
                return data[start : start + size].rstrip(b"\0").decode()
    raise UserError(f"{path}: a boot image without a command line")


def script(path: Path) -> bytes:
    """Return what iPXE does (https://ipxe.org/scripting): start the boot image, with the command line that is in it.

    iPXE gives every program its name as an argument, and the stub takes arguments for another command line.
    """
    return f"#!ipxe\nchain kubermesh.efi {command_line(path)}\n".encode()

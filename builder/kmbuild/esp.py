"""Credentials on the EFI system partition of a disk that is not mounted, where systemd-stub finds them (systemd-stub(7)).

They are encrypted with the empty key, as systemd wants them encrypted at all: that keeps no secret. Whoever has the stick has
what is on it.
"""

import os
import struct
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path

from kmbuild import sandbox
from kmcluster.tools import tool
from kmplan import files
from kmplan.errors import UserError
from kmplan.run import CommandError, run

SECTOR = 512
ENTRIES, ENTRY, TABLE = 128, 128, 2 * SECTOR
ESP = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")  # UEFI 2.10, 5.3.3
FOLDER = "loader/credentials"


def find(image: Path) -> int:
    """Where the EFI system partition of a disk image begins, in bytes; UserError when it has none."""
    with image.open("rb") as file:
        file.seek(TABLE)
        table = file.read(ENTRIES * ENTRY)
    for start in range(0, len(table), ENTRY):
        if table[start : start + 16] == ESP.bytes_le:
            first: int = struct.unpack_from("<Q", table, start + 32)[0]
            return first * SECTOR
    raise UserError(f"{image}: no EFI system partition", "is it the image that `make image` built?")


def encrypt(tools: Path, name: str, data: bytes) -> bytes:
    """A credential as systemd takes it from a disk (systemd-creds(1)); `tools` is the tree with the program."""
    argv = ["systemd-creds", "encrypt", "--with-key=null", f"--name={name}", "-", "-"]
    return run(sandbox.in_tree(tools, argv), input=data).stdout.encode()


def put(tools: Path, target: Path, offset: int, credentials: Mapping[str, bytes]) -> None:
    """Write credentials to the partition that begins at `offset` of a drive; UserError when they do not get there."""
    place = f"{target}@@{offset}"
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for name, data in credentials.items():
            paths.append(Path(folder) / f"{name}.cred")
            files.write(paths[-1], encrypt(tools, name, data), 0o600)
        try:
            run(tool(tools, "mmd", "-D", "s", "-i", place, f"::{FOLDER}"), check=False)
            run(tool(tools, "mcopy", "-o", "-i", place, *paths, f"::{FOLDER}/"))
            forget(target)
            kept = [run(tool(tools, "mtype", "-i", place, f"::{FOLDER}/{path.name}")).stdout for path in paths]
        except CommandError as error:
            raise UserError(f"{target}: no credentials on it: {error.output.strip()[-200:]}") from error
        if kept != [path.read_text() for path in paths]:
            raise UserError(f"{target}: does not keep what is written to it", "it is broken: take another drive")


def forget(drive: Path) -> None:
    """Have what is read of a drive from now on come from the drive, and not from this machine's memory."""
    with drive.open("rb") as device:
        os.fsync(device.fileno())
        os.posix_fadvise(device.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

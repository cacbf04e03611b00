"""A disk is made from the stick that the machine was booted from.

The partition table comes last: what ends it early leaves a disk that does not boot.
"""

import asyncio
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kmagent import boot_image, home_disk, machine
from kmagent.disk_look import FIRST_BYTES, mounted
from kmagent.paths import Paths
from kmagent.programs import run_async
from kmplan import esp
from kmplan.drives import Drive, Partition, listed, lsblk
from kmplan.errors import UserError
from kmplan.files import sync_folder
from kmplan.run import run

PROGRESS_S = 2.0
CHUNK = 4 << 20


@dataclass(frozen=True)
class Parts:
    """What is copied: the root that runs with its hashes, and a stick's EFI system partition, or the files of a new one."""

    root: Partition
    hashes: Partition
    esp: Partition | None = None
    files: Path = Path()

    def sizes(self) -> int:
        """Bytes of all of it."""
        return sum(machine.size(part.path.name) for part in (self.esp, self.root, self.hashes) if part)


def parts_of(stick: Drive, root: str, hashes: str) -> Parts:
    """Return what is on the stick, root and hashes by their UUIDs; UserError when something is not there."""
    by_uuid = {part.uuid: part for part in stick.partitions}
    esp = next((part for part in stick.partitions if part.label == home_disk.ESP), None)
    if esp is None or not {root, hashes} <= set(by_uuid):
        raise UserError(f"{stick.path}: the system that runs is not on it")
    return Parts(by_uuid[root], by_uuid[hashes], esp)


async def copy(paths: Paths, parts: Parts, target: Drive, report: Callable[[int], None]) -> None:
    """Write the disk with systemd-repart(8), which writes the partition table last; reports percent."""
    clear(target.path)
    definitions = define(paths, parts)
    argv = ["systemd-repart", "--dry-run=no", "--empty=force", "--seed=random", f"--definitions={definitions}"]
    work = asyncio.create_task(run_async([*argv, "--no-pager", target.path]))
    total, before, shown = parts.sizes(), machine.written(target.path.name), 0
    while not (await asyncio.wait([work], timeout=PROGRESS_S))[0]:
        done = min(99, 100 * (machine.written(target.path.name) - before) // total)
        if done >= shown + 10:
            shown = done
            report(done)
    await work
    shutil.rmtree(definitions)
    machine.settle()


def clear(disk: Path) -> None:
    """Take away all that says what is on a disk: one that is cut off from here on is an empty one at the next boot."""
    run(["wipefs", "--all", "--force", disk])
    with disk.open("r+b", buffering=0) as device:
        device.write(bytes(FIRST_BYTES))
        os.fsync(device.fileno())


def define(paths: Paths, parts: Parts) -> Path:
    """Write what the disk shall have (repart.d(5)); the copies keep their UUIDs, which lead from the root hash to them."""
    folder = paths.run / "repart.d"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(home_disk.DEFINITIONS, folder)
    for name, part in (("10-esp", parts.esp), ("20-root-a", parts.root), ("21-root-a-verity", parts.hashes)):
        drop_in = folder / f"{name}.conf.d"
        drop_in.mkdir()
        filled = f"CopyBlocks={part.path}\nUUID={part.uuid}\n" if part else f"Format=vfat\nCopyFiles={parts.files}:/\n"
        (drop_in / "install.conf").write_text(f"[Partition]\n{filled}")
    return folder


def partition(target: Drive, uuid: str) -> Partition:
    """Return a partition of a disk as it is now; UserError when it is not there."""
    machine.settle()
    for drive in listed(lsblk(target.path)):
        for part in drive.partitions:
            if part.uuid == uuid:
                return part
    raise UserError(f"{target.path}: no partition {uuid} after it was written")


def check_esp(paths: Paths, parts: Parts, target: Drive, roothash: str) -> None:
    """Read the EFI system partition back; UserError when it has something else than was written, or than the root asks for."""
    if parts.esp:
        there = partition(target, parts.esp.uuid).path
        compare(parts.esp.path, there)
        bless(paths, there, roothash)
        return
    with mounted(paths, esp_of(target), "ro", "vfat") as folder:
        for path in sorted(one for one in parts.files.rglob("*") if one.is_file()):
            compare(path, folder / path.relative_to(parts.files))
    shutil.rmtree(parts.files)


def esp_of(target: Drive) -> Path:
    """Return a disk's EFI system partition; UserError when it has none."""
    return Path("/dev") / home_disk.partition_of(target.path.name, home_disk.ESP)


def compare(source: Path, target: Path) -> None:
    """Read two partitions or files from their disks; UserError when the second is not the first."""
    with source.open("rb", buffering=0) as one, target.open("rb", buffering=0) as other:
        for file in (one, other):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while data := one.read(CHUNK):
            if other.read(len(data)) != data:
                raise UserError(f"{target}: keeps something else than was written to it")


def bless(paths: Paths, there: Path, roothash: str, top: Path = Path("/")) -> None:
    """Take the boot counter off the disk's entry: the stick's goes on counting, and the two would no longer be the same.

    systemd-bless-boot(8) is content with an entry that is good already. There is no other slot yet to fall back to. Raises
    UserError when it starts something else than the system that runs: nothing else has read what a stick has outside the root.
    """
    with mounted(paths, there, "rw", "vfat") as folder:
        for path in (folder / esp.ENTRIES).glob("*+*.efi"):
            path.rename(path.with_name(f"{path.name.partition('+')[0]}.efi"))
            sync_folder(path.parent)
        images = [*(folder / esp.ENTRIES).glob("*.efi")]
        if not images or not all(boot_image.is_of(path, roothash, top) for path in images):
            raise UserError("the stick's boot image is not that of the system on it", "flash the stick again")
        for name in esp.LOADERS:
            compare(top / esp.LOADER, folder / name)

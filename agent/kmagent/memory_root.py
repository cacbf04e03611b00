"""The running root in memory: loaded from the stick, or given back once it is read from a disk."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from kmagent import boot_image, disk_copy, home_disk, machine, memory_disk, verity
from kmagent.disk_copy import Parts
from kmagent.disk_look import mounted
from kmagent.paths import Paths
from kmplan.drives import Drive
from kmplan.errors import UserError
from kmplan.run import run

log = logging.getLogger(__name__)

# As the initrd's of a machine that fetched its root (components/fetch/store.go).
RULES = Path("/run/udev/rules.d/90-kubermesh-fetch.rules")


def load(paths: Paths, stick: Drive) -> None:
    """Move the root to memory, and the boot image with it; UserError or OSError when nothing was moved."""
    words = verity.table()
    uuids = verity.root_uuids(words)
    parts = disk_copy.parts_of(stick, *uuids)
    memory_disk.require(verity.root_bytes())
    made: list[str] = []
    try:
        for part in (parts.root, parts.hashes):
            made.append(memory_disk.create(machine.size(part.path.name)))
            memory_disk.copy(part.path, Path("/dev") / made[-1])
        keep_boot_image(paths, parts, words[verity.ROOT_HASH])
        table = verity.elsewhere(words, *map(machine.number, made))
        verity.check(table)
        link(made, uuids)
        verity.move(table)
    except (UserError, OSError):
        for name in made:
            memory_disk.release(name)
        raise


def link(names: Sequence[str], uuids: Sequence[str]) -> None:
    """Have udev name disks in memory like the partitions in whose place they are: the root's units are bound to these links."""
    rule = 'SUBSYSTEM=="block", KERNEL=="{}", SYMLINK+="disk/by-partuuid/{}", TAG+="systemd"\n'
    RULES.parent.mkdir(parents=True, exist_ok=True)
    RULES.write_text("".join(rule.format(name, uuid) for name, uuid in zip(names, uuids, strict=True)))
    run(["udevadm", "control", "--reload"])
    run(["udevadm", "trigger", "--settle", "--action=change", *(f"/dev/{name}" for name in names)])


def keep_boot_image(paths: Paths, parts: Parts, roothash: str) -> None:
    """Keep the stick's boot image in memory, too: this machine serves it to others when the stick is out."""
    assert parts.esp is not None  # noqa: S101 - a stick's
    paths.booted.mkdir(exist_ok=True)
    with mounted(paths, parts.esp.path, "ro", "vfat") as folder:
        found = [path for path in (folder / "EFI/Linux").glob("*.efi") if boot_image.is_of(path, roothash)]
        for path in found[:1]:
            shutil.copyfile(path, paths.booted / ".boot.efi")
            (paths.booted / ".boot.efi").rename(paths.booted / "boot.efi")
    if not found:
        log.warning("the stick has no boot image of this system: no neighbour can boot from this machine")


def leave(words: list[str], moved: str) -> None:
    """Have the root read from elsewhere, and give back the memory that it was in, if it was.

    The units of the root are bound to links by UUID, which lead to the memory as long as it is there. systemd stops them when
    it finds none, so udev has to know the disk before that, and to have set the links before systemd looks again.
    """
    verity.move(moved)
    before = [machine.name_of(words[place]) for place in (verity.DATA, verity.HASHES)]
    if memory := [name for name in before if name.startswith(home_disk.MEMORY)]:
        machine.settle()
        for name in memory:
            memory_disk.release(name)
        machine.settle()

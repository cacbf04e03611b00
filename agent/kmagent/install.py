"""A machine that was booted from a stick: it takes a disk of its own, or memory, and runs from that at once.

The partition table of the disk comes last: what ends an installation early leaves a disk that does not boot, and the next
boot from the stick begins anew.
"""

import asyncio
import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from kmagent import console, disk_choice, home_disk, machine, memory_disk, verity
from kmagent.disk_choice import Found, describe
from kmagent.paths import Paths
from kmplan.cluster import Install
from kmplan.drives import Drive, Partition, listed, lsblk
from kmplan.errors import UserError
from kmplan.files import write
from kmplan.run import CommandError, run, run_async
from kmplan.seed import parse_bundle, parse_join

ESP, HASH_SUFFIX = "kubermesh-esp", "-verity"
NO_DISKS = ("zram", "loop", "nbd", "ram", "sr", "fd")
AGAIN_S, PROGRESS_S = 5.0, 2.0
FIRST_BYTES = 1 << 20
CHUNK = 4 << 20
# Where systemd-gpt-auto-generator(8) shows the EFI system partition.
BOOT_MOUNTS = ("boot.automount", "efi.automount", "boot.mount", "efi.mount")
NODE_AUTHORITY = "pki/node-ca.crt"


@dataclass(frozen=True)
class Parts:
    """What is copied from the stick: its EFI system partition, and the root that runs with its hashes."""

    esp: Partition
    root: Partition
    hashes: Partition

    def sizes(self) -> int:
        """Bytes of all of it."""
        return sum(machine.size(part.path.name) for part in (self.esp, self.root, self.hashes))


def main(permission: str = "") -> int:
    """`kmagent install [wipe]`: look again for a disk, with `wipe` whatever is on it, and take this machine's key there.

    Prints `{"state": "installed"}`, after which the machine is to be started anew, or `{"state": "blocked", "message": …}`.
    """
    paths, stick = Paths(), home_disk.root_drive()
    wish, authority = wishes(paths)
    if permission == "wipe":
        wish = msgspec.structs.replace(wish, wipe=True, wipe_clusters=True)
    found = look_around(paths, authority)
    chosen = disk_choice.choose(found, wish)
    if chosen is None:
        print(json.dumps({"state": "blocked", "message": refusals(found, wish)}))
        return 0
    drive = next(drive for drive in listed(lsblk()) if drive.path.name == stick)
    # A file system that is mounted would change under the copy.
    run(["systemctl", "stop", *BOOT_MOUNTS], check=False)
    try:
        carry_over(paths, home_disk.complete(take(paths, drive, chosen)))
    except (UserError, OSError) as error:
        say(paths, chosen.drive, f"cannot be used: {reason(error)}", state="blocked")
        raise UserError(f"{chosen.drive.path}: {reason(error)}") from error
    print(json.dumps({"state": "installed"}))
    return 0


def settle_on(paths: Paths, stick: str) -> str:
    """Return the device that `/var` is on, of a disk that is installed first where that is due.

    Where no disk may be taken, a seed waits for one, as nobody can be asked; any other machine goes on in memory, and says so
    when it asks to be admitted.
    """
    wish, authority = wishes(paths)
    if not authority or wish.to == "stick":
        return home_disk.complete(stick)
    if wish.to == "ram":
        return live_in_memory(paths, stick)
    failed: set[Path] = set()
    shown = ""
    while True:
        found = [one for one in look_around(paths, authority) if one.drive.path not in failed]
        chosen = disk_choice.choose(found, wish)
        if chosen:
            try:
                drive = next(drive for drive in listed(lsblk()) if drive.path.name == stick)
                return home_disk.complete(take(paths, drive, chosen))
            except (UserError, OSError) as error:
                failed.add(chosen.drive.path)
                say(paths, chosen.drive, f"cannot be used: {reason(error)}")
                continue
        if (text := refusals(found, wish)) != shown:
            shown = text
            say(paths, None, text, state="blocked")
        if not is_seed(paths):
            return memory_disk.make_var()
        time.sleep(AGAIN_S)


def look_around(paths: Paths, authority: str) -> list[Found]:
    """Return the disks that stay in the machine, and what is on them."""
    run(["udevadm", "settle", "--timeout=60"], check=False)
    return [look(paths, drive, authority) for drive in listed(lsblk()) if may_be_home(drive)]


def carry_over(paths: Paths, var: str) -> None:
    """Take this machine's key, and whom it asks, to the disk's `/var`: it comes again as the one that was approved."""
    with mounted(paths, Path("/dev") / var, how="rw") as folder:
        state = folder / "lib/kubermesh"
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("identity.key", "join.json"):
            write(state / name, (paths.state / name).read_bytes(), 0o600)


def is_seed(paths: Paths) -> bool:
    """Tell whether this machine begins a cluster."""
    return paths.credentials is not None and (paths.credentials / "kubermesh.seed").exists()


def live_in_memory(paths: Paths, stick: str) -> str:
    """Move the root to memory, and return the device for a `/var` in memory."""
    words = verity.table()
    drive = next(iter(listed(lsblk(Path(f"/dev/{stick}")))))
    parts = parts_of(drive, words)
    say(paths, None, "loading the system into memory; leave the stick in")
    moved = []
    for part in (parts.root, parts.hashes):
        name = memory_disk.create(machine.size(part.path.name))
        memory_disk.copy(part.path, Path("/dev") / name)
        moved.append(machine.number(name))
    table = verity.elsewhere(words, moved[0], moved[1])
    verity.check(table, root_bytes())
    verity.move(table)
    say(paths, None, "this machine runs in memory: it forgets all when it is switched off", state="ram")
    return memory_disk.make_var()


def wishes(paths: Paths) -> tuple[Install, str]:
    """Return what the cluster file says, and the certificate of the cluster's node authority; empty without a cluster."""
    folder = paths.credentials
    if folder and is_seed(paths):
        seed = parse_bundle((folder / "kubermesh.seed").read_bytes())
        wish = seed.cluster.install
        if wish.to == "ram":
            # A seed that forgets what it began would begin it again.
            wish = msgspec.structs.replace(wish, to="stick")
        return wish, seed.files[NODE_AUTHORITY]
    if folder and (folder / "kubermesh.join").exists():
        join = parse_join((folder / "kubermesh.join").read_bytes())
        return join.install, join.authority
    return Install(), ""


def may_be_home(drive: Drive) -> bool:
    """Tell whether this is a disk that stays in the machine."""
    name = drive.path.name
    is_disk = not name.startswith(NO_DISKS) and "boot" not in name
    return is_disk and not drive.mounts and not machine.is_removable(name)


def look(paths: Paths, drive: Drive, authority: str) -> Found:
    """Return what is on a disk."""
    var = next((part for part in drive.partitions if part.label == home_disk.VAR), None)
    if var is None:
        empty = not drive.content and not drive.partitions and is_zero(drive.path)
        return Found(drive, "nothing" if empty else "data", ", ".join(drive.content) or "something unknown")
    try:
        with mounted(paths, var.path) as folder:
            name, known = cluster_on(folder / "lib/kubermesh")
    except CommandError:
        return Found(drive, "data", "a Kubermesh that cannot be read")
    if not known:
        return Found(drive, "nothing")
    return Found(drive, "ours" if known.strip() == authority.strip() else "theirs", name)


def is_zero(path: Path) -> bool:
    """Tell whether a disk begins with nothing but zeros."""
    with path.open("rb") as device:
        return not any(device.read(FIRST_BYTES))


@contextlib.contextmanager
def mounted(paths: Paths, device: Path, kind: str = "ext4", how: str = "ro,noload") -> Iterator[Path]:
    """Show what is on a partition, without changing a byte of it unless `how` says so."""
    folder = paths.run / "look"
    folder.mkdir(mode=0o700, exist_ok=True)
    run(["mount", "-t", kind, "-o", f"{how},nodev,nosuid,noexec", device, folder])
    try:
        yield folder
    finally:
        run(["umount", folder])


def cluster_on(state: Path) -> tuple[str, str]:
    """Return the name and the node authority of the cluster that a node's state is of; empty when it is of none."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        authority = (state / NODE_AUTHORITY).read_text(encoding="ascii")
        return str(json.loads((state / "cluster.json").read_bytes())["name"]), authority
    with contextlib.suppress(OSError, UserError):
        join = parse_join((state / "join.json").read_bytes())
        return join.name, join.authority
    return "", ""


def refusals(found: list[Found], wish: Install) -> str:
    """Return why there is no disk to live on."""
    if not found:
        return "waiting for a disk to install to; `install.to` in the cluster file can be `stick` or `ram` instead"
    why = [f"{describe(one.drive)} {disk_choice.refusal(one, wish)}" for one in found]
    return "no disk to install to: " + "; ".join(why)


def take(paths: Paths, stick: Drive, chosen: Found) -> str:
    """Make the disk this machine's own, and have the root read from it."""
    target = chosen.drive
    words = verity.table()
    if chosen.holds == "ours":
        return keep(paths, target, words)
    parts = parts_of(stick, words)
    say(paths, target, "installing; leave the stick in")
    asyncio.run(copy(paths, parts, target, lambda done: say(paths, target, f"installing, {done} %")))
    run(["udevadm", "settle", "--timeout=60"], check=False)
    say(paths, target, "reading back what was written")
    try:
        moved = table_on(target, parts, words)
        verity.check(moved, root_bytes())
        esp = partition(target, parts.esp.uuid).path
        compare(parts.esp.path, esp)
        bless(paths, esp)
    except (UserError, OSError):
        run(["wipefs", "--all", "--force", target.path], check=False)
        raise
    verity.move(moved)
    # Where the EFI system partition is follows from the root's disk (systemd-gpt-auto-generator(8)).
    run(["systemctl", "daemon-reload"])
    say(paths, target, "installed; this machine runs from it, the stick may be pulled out", state="installed")
    return target.path.name


def keep(paths: Paths, target: Drive, words: list[str]) -> str:
    """Go on with a disk that has been this machine's before; the root moves there when it is the same."""
    data = next((part for part in target.partitions if part.device == words[verity.DATA]), None)
    if data is None:
        same = [part for part in target.partitions if part.uuid == uuid_of(words[verity.DATA])]
        hashes = [part for part in target.partitions if part.uuid == uuid_of(words[verity.HASHES])]
        if not same or not hashes:
            text = "has this machine's data and another version of the system: leave the stick in"
            say(paths, target, text, state="kept")
            return target.path.name
        verity.move(verity.elsewhere(words, same[0].device, hashes[0].device))
        run(["systemctl", "daemon-reload"])
    say(paths, target, "is this machine's own; the stick may be pulled out", state="kept")
    return target.path.name


def parts_of(stick: Drive, words: list[str]) -> Parts:
    """Return what is on the stick; UserError when it is no Kubermesh."""
    by_device = {part.device: part for part in stick.partitions}
    esp = next((part for part in stick.partitions if part.label == ESP), None)
    try:
        root, hashes = by_device[words[verity.DATA]], by_device[words[verity.HASHES]]
    except KeyError:
        raise UserError(f"{stick.path}: the root is not on it") from None
    if esp is None:
        raise UserError(f"{stick.path}: no partition {ESP}")
    return Parts(esp, root, hashes)


async def copy(paths: Paths, parts: Parts, target: Drive, report: Callable[[int], None]) -> None:
    """Write the disk with systemd-repart(8), which writes the partition table last; reports percent."""
    run(["wipefs", "--all", "--force", target.path])
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


def define(paths: Paths, parts: Parts) -> Path:
    """Write what the disk shall have (repart.d(5)); the copies keep their UUIDs, which lead from the root hash to them."""
    folder = paths.run / "repart.d"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(home_disk.DEFINITIONS, folder)
    for name, part in (("10-esp", parts.esp), ("20-root-a", parts.root), ("21-root-a-verity", parts.hashes)):
        drop_in = folder / f"{name}.conf.d"
        drop_in.mkdir()
        (drop_in / "install.conf").write_text(f"[Partition]\nCopyBlocks={part.path}\nUUID={part.uuid}\n")
    return folder


def root_bytes() -> int:
    """Return how many bytes of the root's device its file system uses."""
    status = os.statvfs("/")
    return status.f_blocks * status.f_frsize


def table_on(target: Drive, parts: Parts, words: list[str]) -> str:
    """Return the root's table on another disk."""
    root, hashes = (partition(target, part.uuid) for part in (parts.root, parts.hashes))
    return verity.elsewhere(words, root.device, hashes.device)


def partition(target: Drive, uuid: str) -> Partition:
    """Return a partition of a disk as it is now; UserError when it is not there."""
    for drive in listed(lsblk(target.path)):
        for part in drive.partitions:
            if part.uuid == uuid:
                return part
    raise UserError(f"{target.path}: no partition {uuid} after it was written")


def uuid_of(device: str) -> str:
    """Return the UUID of a partition by `major:minor`."""
    for drive in listed(lsblk()):
        for part in drive.partitions:
            if part.device == device:
                return part.uuid
    return ""


def compare(source: Path, target: Path) -> None:
    """Read two partitions from their disks; UserError when the second is not the first."""
    with source.open("rb", buffering=0) as one, target.open("rb", buffering=0) as other:
        for file in (one, other):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while data := one.read(CHUNK):
            if other.read(len(data)) != data:
                raise UserError(f"{target}: keeps something else than was written to it")


def bless(paths: Paths, esp: Path) -> None:
    """Take the boot counter off the disk's entry: the stick's goes on counting, and the two would no longer be the same.

    systemd-bless-boot(8) is content with an entry that is good already. There is no other slot yet to fall back to.
    """
    with mounted(paths, esp, "vfat", "rw") as folder:
        for path in (folder / "EFI/Linux").glob("*+*.efi"):
            path.rename(path.with_name(f"{path.name.partition('+')[0]}.efi"))


def reason(error: Exception) -> str:
    """Return the last line of what went wrong."""
    text = error.output if isinstance(error, CommandError) else str(error)
    return text.strip().rpartition("\n")[2]


def say(paths: Paths, drive: Drive | None, text: str, *, state: str = "installing") -> None:
    """Tell everyone: on the consoles, in the journal, and for the agent."""
    line = f"{describe(drive)}: {text}" if drive else text
    print(line, flush=True)
    for device in console.devices():
        console.show(device, f"\r\n  Kubermesh: {line}\r\n")
    write(paths.disk, json.dumps({"state": state, "disk": drive.path.name if drive else "", "message": line}))

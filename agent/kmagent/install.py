"""A machine that was booted from a stick or a neighbour: it takes a disk of its own, or memory, and runs from that at once."""

import asyncio
import contextlib
import json
import time
from pathlib import Path

import msgspec

from kmagent import (
    boot_entry,
    console,
    disk_choice,
    disk_copy,
    disk_state,
    home_disk,
    identity,
    join,
    machine,
    memory_disk,
    memory_root,
    network_boot,
    verity,
)
from kmagent.disk_choice import Found, describe
from kmagent.disk_look import BEGUN, NODE_AUTHORITY, look, look_around, mounted
from kmagent.paths import Paths
from kmplan.cluster import Install
from kmplan.drives import Drive, listed, lsblk
from kmplan.errors import UserError
from kmplan.files import sync_folder, write
from kmplan.run import CommandError, run
from kmplan.seed import parse_bundle, parse_join

IN_MEMORY = "this machine runs in memory: it forgets all when it is switched off"
AGAIN_S, FAILED_AGAIN_S, RESTART_S = 5.0, 60.0, 600.0
FAILED = "install-failed"
# Disks may come late: one is taken when as many looks in a row found the same.
LOOKS = 3
# Where systemd-gpt-auto-generator(8) shows the EFI system partition.
BOOT_MOUNTS = ("boot.automount", "efi.automount", "boot.mount", "efi.mount")


def main(permission: str = "") -> int:
    """`kmagent install [wipe]`: look again for a disk, with `wipe` whatever is on it, and take this machine's key there.

    Prints `{"state": "installed"}`, after which the machine is to be started anew, or `{"state": "blocked", "message": …}`.
    A permission to wipe is used once in a boot. Raises UserError when the disk cannot be used.
    """
    paths = Paths()
    wish, authority = wishes(paths)
    used = paths.run / "wiped"
    force = permission == "wipe" and not used.exists()
    if failed_lately(paths):
        print(json.dumps({"state": "blocked", "message": disk_state.read(paths)[1]}))
        return 0
    found = look_around(paths, authority)
    chosen = disk_choice.choose(found, wish, force=force)
    if chosen:
        found, chosen = look_until_agreed(paths, wish, authority, force=force)
    from_network = network_boot.was_booted(paths, home_disk.root_drive())
    stick = None if from_network else find_stick(verity.table())
    if chosen is None or not (stick or from_network):
        text = (
            refusals(found, wish, is_asked=not used.exists(), stick=bool(stick))
            if stick or from_network
            else "the stick is not in"
        )
        if text != disk_state.read(paths)[1]:
            say(paths, None, text, state="blocked")
        print(json.dumps({"state": "blocked", "message": text}))
        return 0
    if force:
        used.touch()
    # A file system that is mounted would change under the copy.
    run(["systemctl", "stop", *BOOT_MOUNTS], check=False)
    try:
        take(paths, stick, chosen, key=join.own_key(paths))
    except (UserError, OSError) as error:
        give_up(paths, chosen.drive, error)
        raise UserError(f"{chosen.drive.path}: {reason(error)}") from error
    print(json.dumps({"state": "installed"}))
    return 0


def settle_on(paths: Paths) -> str:
    """Return the device that `/var` is on, of a disk that is installed first where that is due.

    Where no disk may be taken, a seed waits for one, as nobody can be asked; any other machine goes on in memory, and says so
    when it asks to be admitted. What came from a neighbour and shall stay on a stick takes a disk.
    """
    machine.settle()
    from_network = network_boot.was_booted(paths, home_disk.root_drive())
    stick = None if from_network else the_stick(paths)
    if not (stick or from_network):
        # What is plugged in is another version's: the machine was booted from its disk.
        return home_disk.complete(home_disk.root_drive())
    wish, authority = wishes(paths)
    if stick and not authority and (home := home_beside(paths, stick, verity.root_uuids(verity.table()))):
        # It was booted from the network, or from its disk, with a stick that was left in.
        return keep(paths, stick, home, verity.table())
    if stick is None and not authority:
        return memory_disk.make_var()
    if stick is None and wish.to == "ram":
        say(paths, None, IN_MEMORY, state="ram")
        return memory_disk.make_var()
    if stick and (not authority or wish.to != "disk"):
        move_to(stick)
        if authority and wish.to == "ram":
            return live_in_memory(paths, stick)
        say(paths, stick, "this machine lives on it: leave it in", state="stick")
        return home_disk.complete(stick.path.name)
    return find_home(paths, stick, wish, authority)


def find_home(paths: Paths, stick: Drive | None, wish: Install, authority: str) -> str:
    """Take a disk as soon as there is one to take; returns the device of `/var`."""
    while True:
        found, chosen = look_until_agreed(paths, wish, authority)
        if chosen:
            try:
                return take(paths, stick, chosen)
            except (UserError, OSError) as error:
                # Not the next one: what is wrong may be the stick.
                give_up(paths, chosen.drive, error)
        else:
            text = refusals(found, wish, is_asked=not is_seed(paths), stick=bool(stick))
            if text != disk_state.read(paths)[1]:
                say(paths, None, text, state="blocked")
        if not is_seed(paths):
            return memory_disk.make_var()
        time.sleep(FAILED_AGAIN_S if chosen else AGAIN_S)


def look_until_agreed(
    paths: Paths, wish: Install, authority: str, *, force: bool = False
) -> tuple[list[Found], Found | None]:
    """Return what is on the disks, and the one to take, or none, as soon as several looks have found the same.

    The machine's own is taken at sight; with `force` it does not matter what is on them.
    """
    seen: list[str] = []
    while True:
        found = look_around(paths, authority)
        chosen = disk_choice.choose(found, wish, force=force)
        seen = [*seen, str(chosen.drive.path) if chosen else ""][-LOOKS:]
        if (chosen and chosen.holds == "ours") or seen == LOOKS * seen[:1]:
            return found, chosen
        time.sleep(AGAIN_S)


def give_up(paths: Paths, drive: Drive, error: Exception) -> None:
    """Say and note that a disk cannot be used."""
    say(paths, drive, f"cannot be used: {reason(error)}", state="blocked")
    (paths.run / FAILED).write_text(str(time.monotonic()))


def failed_lately(paths: Paths) -> bool:
    """Tell whether a disk could not be used a moment ago: it is not written to again and again."""
    with contextlib.suppress(OSError, ValueError):
        return time.monotonic() < float((paths.run / FAILED).read_text()) + FAILED_AGAIN_S
    return False


def own_of(paths: Paths, drive: str) -> str:
    """Return which of several disks that a node could live on is this machine's, by the cluster that it was started for.

    Where they have the same image, partitions have the same UUIDs (disk_copy.define), and the root may be read from either.
    """
    ours = [one.drive.path.name for one in look_around(paths, wishes(paths)[1]) if one.holds == "ours"]
    return drive if drive in ours or not ours else ours[0]


def home_beside(paths: Paths, stick: Drive, uuids: tuple[str, str]) -> Drive | None:
    """Return the disk that a node of whichever cluster lives on and that has this root, unless the stick is such a one itself."""
    if look(paths, stick, "").holds == "theirs":
        return None
    homes = [one.drive for one in look_around(paths, "") if one.holds == "theirs"]
    return next((drive for drive in homes if {*uuids} <= {part.uuid for part in drive.partitions}), None)


def the_stick(paths: Paths) -> Drive | None:
    """Return the one stick that has the root that runs; where there are several, wait until somebody has left one in."""
    told = ""
    while True:
        words = verity.table()
        try:
            found = find_stick(words)
        except UserError as error:
            if told != str(error):
                say(paths, None, told := str(error), state="blocked")
            time.sleep(AGAIN_S)
            continue
        if told:
            paths.disk.unlink()
            if found:
                # The root may have been read from the other one.
                move_to(found)
        return found


def find_stick(words: list[str]) -> Drive | None:
    """Return the one stick that has the root whose table this is; UserError when there are several."""
    uuids = {*verity.root_uuids(words)}
    sticks = [
        drive
        for drive in listed(lsblk())
        if machine.is_removable(drive.path.name) and uuids <= {part.uuid for part in drive.partitions}
    ]
    if len(sticks) > 1:
        names = ", ".join(describe(drive) for drive in sticks)
        used = [one for one in sticks if words[verity.DATA] in {part.device for part in one.partitions}]
        hint = f"leave {describe((used or sticks)[0])} in, and no other"
        raise UserError(f"several sticks with the same system: {names}", hint)
    return sticks[0] if sticks else None


def is_seed(paths: Paths) -> bool:
    """Tell whether this machine begins a cluster."""
    return paths.credentials is not None and (paths.credentials / "kubermesh.seed").exists()


def wishes(paths: Paths) -> tuple[Install, str]:
    """Return what the cluster file says, and the certificate of the cluster's node authority; empty without a cluster."""
    folder = paths.credentials
    if folder and is_seed(paths):
        seed = parse_bundle((folder / "kubermesh.seed").read_bytes())
        return identity.install_of(seed), seed.files[NODE_AUTHORITY]
    if folder and (folder / "kubermesh.join").exists():
        try:
            asked = parse_join((folder / "kubermesh.join").read_bytes())
        except UserError as error:
            # Whoever gave it: the agent says it, too, and the machine stays where it is.
            print(error, flush=True)
        else:
            return asked.install, asked.authority
    return Install(), ""


def refusals(found: list[Found], wish: Install, *, is_asked: bool, stick: bool = False) -> str:
    """Return why there is no disk to live on; where a person is asked, what `--wipe` would take comes first."""
    if not found:
        return "waiting for a disk to install to; `install.to` in the cluster file can be `stick` or `ram` instead"
    why = [f"{describe(one.drive)} {disk_choice.refusal(one, wish)}" for one in found if disk_choice.refusal(one, wish)]
    wiped = disk_choice.choose(found, wish, force=True) if is_asked else None
    offer = f", `--wipe` would take {describe(wiped.drive)}" if wiped else ""
    return f"no disk to install to{', leave the stick in' if stick else ''}{offer}: {'; '.join(why)}"


def take(paths: Paths, stick: Drive | None, chosen: Found, key: str = "") -> str:
    """Make the disk this machine's own, and have the root read from it; returns the device of its `/var`.

    A machine that asked already takes its `key` there. UserError or OSError when the disk cannot be used: it has nothing
    that boots then.
    """
    target, words = chosen.drive, verity.table()
    if chosen.holds == "ours":
        return keep(paths, stick, target, words)
    uuids = verity.root_uuids(words)
    if stick:
        parts = disk_copy.parts_of(stick, *uuids)
        move_to(stick)
    else:
        parts = network_boot.parts_of(paths, words, uuids)
    say(paths, target, "installing; leave the stick in" if stick else "installing")
    asyncio.run(disk_copy.copy(paths, parts, target, lambda done: say(paths, target, f"installing, {done} %")))
    say(paths, target, "reading back what was written")
    try:
        moved = table_on(target, words)
        verity.check(moved)
        disk_copy.check_esp(paths, parts, target, words[verity.ROOT_HASH])
        var = home_disk.var_of(target.path.name)
        claim(paths, var, key)
    except (UserError, OSError):
        with contextlib.suppress(UserError, OSError):
            disk_copy.clear(target.path)
        raise
    memory_root.leave(words, moved)
    # Where the EFI system partition is follows from the root's disk (systemd-gpt-auto-generator(8)).
    run(["systemctl", "daemon-reload"], check=False)
    may_go = ", the stick may be pulled out" if stick else ""
    boot_first(target)
    say(paths, target, f"installed; this machine runs from it{may_go}", state="installed")
    return var


def keep(paths: Paths, stick: Drive | None, target: Drive, words: list[str]) -> str:
    """Go on with a disk that has been this machine's before; the root moves there when it is the same, and can be read."""
    devices = {part.device for part in target.partitions}
    text = "is this machine's own; the stick may be pulled out" if stick else "is this machine's own"
    if not {words[verity.DATA], words[verity.HASHES]} <= devices:
        try:
            moved = table_on(target, words)
            verity.check(moved)
        except (UserError, OSError) as error:
            if stick is None:
                start_own(paths, target)
            leave = ": leave the stick in" if stick else ""
            text = f"has this machine's data, but not the system that runs{leave} ({reason(error)})"
        else:
            memory_root.leave(words, moved)
            run(["systemctl", "daemon-reload"], check=False)
            # The power may have been cut before it had an entry, or the firmware has forgotten it.
            boot_first(target)
    say(paths, target, text, state="kept")
    return home_disk.complete(target.path.name)


def start_own(paths: Paths, target: Drive) -> None:
    """Start the machine anew from a disk of its own that has another system than the neighbour's: that one is its data's.

    Once: when it comes to this again, its own system does not start, and the neighbour's has to do.
    """
    with mounted(paths, Path("/dev") / home_disk.var_of(target.path.name), "rw") as folder:
        # The agent takes it away, once it runs.
        tried = folder / "lib/kubermesh" / paths.started_own.name
        if tried.exists() or not boot_entry.next_time(disk_copy.esp_of(target)):
            return
        tried.touch()
    say(paths, target, "has this machine's own system: starting that one")
    run(["systemctl", "--no-block", "reboot"])
    time.sleep(RESTART_S)


def boot_first(target: Drive) -> None:
    """Have the firmware boot from the disk; the machine runs from it, whether it can or not."""
    try:
        boot_entry.put_first(disk_copy.esp_of(target))
    except (UserError, OSError) as error:
        print(f"{target.path}: the firmware has no entry for it: {reason(error)}", flush=True)


def claim(paths: Paths, var: str, key: str) -> None:
    """Write whom this machine asks, and its key if it asked already, to the disk's `/var`: all at once, when the rest is there.

    From then on the disk is this machine's own, also when it loses power before it is a node.
    """
    with mounted(paths, Path("/dev") / var, "rw") as folder:
        begun = folder / BEGUN
        state = begun / "lib/kubermesh"
        state.mkdir(mode=0o700, parents=True)
        write(state / "join.json", whom_to_ask(paths), 0o600)
        if key:
            write(state / "identity.key", key, 0o600)
        (begun / "lib").rename(folder / "lib")
        begun.rmdir()
        sync_folder(folder)


def whom_to_ask(paths: Paths) -> bytes:
    """Return which cluster this machine is for, as it was given: by the credentials, or by a neighbour."""
    folder = paths.credentials
    if folder and is_seed(paths):
        return msgspec.json.encode(identity.join_of(parse_bundle((folder / "kubermesh.seed").read_bytes())))
    given = folder / "kubermesh.join" if folder else None
    return (given if given and given.exists() else paths.state / "join.json").read_bytes()


def live_in_memory(paths: Paths, stick: Drive) -> str:
    """Move the root to memory, and return the device for a `/var` in memory; where that fails, the root stays on the stick."""
    say(paths, None, "loading the system into memory; leave the stick in")
    text = IN_MEMORY
    try:
        memory_root.load(paths, stick)
    except (UserError, OSError) as error:
        text += f"; leave the stick in, as the system cannot be loaded: {reason(error)}"
    say(paths, None, text, state="ram")
    return memory_disk.make_var()


def move_to(drive: Drive) -> None:
    """Have the root read from a drive that has it, and from no other."""
    words = verity.table()
    moved = table_on(drive, words)
    if moved != " ".join(words):
        verity.move(moved)


def table_on(drive: Drive, words: list[str]) -> str:
    """Return the root's table on another drive; UserError when its partitions are not there."""
    root, hashes = (disk_copy.partition(drive, uuid) for uuid in verity.root_uuids(words))
    return verity.elsewhere(words, root.device, hashes.device)


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
    network_boot.tell(paths, text)

"""What the firmware boots (efibootmgr(8)): the disk that a machine has installed itself to comes first, whatever it came from."""

import logging
import re
from pathlib import Path

from kmplan.run import run

log = logging.getLogger(__name__)

LABEL = "Kubermesh"
LOADER = r"\EFI\systemd\systemd-bootx64.efi"
# One that names nothing but the partition (UEFI, 3.1.2: a short-form device path). What firmware makes for a stick goes on after
# the way to its port, and the disk that is installed from that has the same partition.
ENTRY = re.compile(r"Boot([0-9A-F]{4})\*? [^\t\n]*\tHD\([0-9]+,GPT,([0-9a-f-]{36}),", re.IGNORECASE)


def put_first(esp: Path) -> None:
    """Have the firmware try this EFI system partition before all else; what cannot be is said in the journal."""
    number = ensure(esp)
    if number:
        order = [one for one in _order() if one != number]
        _call("--bootorder", ",".join([number, *order]))


def next_time(esp: Path) -> bool:
    """Have the firmware boot from this partition once, at the next start; tells whether it will."""
    number = ensure(esp)
    return bool(number) and _call("--bootnext", number) is not None


def ensure(esp: Path) -> str:
    """Return the number of the partition's entry, made first where there is none; empty when the firmware keeps none."""
    disk, place = _place_of(esp)
    uuid = run(
        ["blkid", "--probe", "--output", "value", "--match-tag", "PART_ENTRY_UUID", esp], check=False
    ).stdout.strip()
    if uuid and not (number := _find(uuid)):
        _call("--quiet", "--create", "--disk", str(disk), "--part", place, "--label", LABEL, "--loader", LOADER)
        number = _find(uuid)
    return number if uuid else ""


def _find(uuid: str) -> str:
    return next(
        (found[1] for found in ENTRY.finditer(_call("--verbose") or "") if found[2].lower() == uuid.lower()), ""
    )


def _order() -> list[str]:
    found = re.search(r"^BootOrder: ([0-9A-F,]+)$", _call("--verbose") or "", re.MULTILINE)
    return found[1].split(",") if found else []


def _place_of(partition: Path) -> tuple[Path, str]:
    """Return the disk that a partition is on, and its number there."""
    device = (Path("/sys/class/block") / partition.name).resolve()
    return Path("/dev") / device.parent.name, (device / "partition").read_text().strip()


def _call(*options: str) -> str | None:
    """Return what efibootmgr says; None when it fails."""
    done = run(["efibootmgr", *options], check=False)
    if done.returncode:
        log.warning("efibootmgr %s: %s", " ".join(options), (done.stdout + done.stderr).strip())
        return None
    return done.stdout

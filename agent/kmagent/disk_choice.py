"""Which disk a machine that boots from a stick takes for its own."""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from kmplan.cluster import DiskRule, Install
from kmplan.drives import SECTOR, Drive

# What systemd-repart asks for (/usr/lib/kubermesh/repart.d), and some room for /var.
SMALLEST_BYTES = 4_000_000_000

Holds = Literal["nothing", "ours", "theirs", "data", "broken"]


@dataclass(frozen=True)
class Found:
    """A disk, and what is on it: nothing, a node of this cluster, of another one, or other data; `what` has its name.

    `broken` is a Kubermesh that cannot be read: it may be this cluster's.
    """

    drive: Drive
    holds: Holds
    what: str = ""


def choose(found: Iterable[Found], wish: Install, *, force: bool = False) -> Found | None:
    """Return the disk to live on: one with a node of this cluster stays what it is, whatever the rules.

    Then those that hold nothing, then those that may be wiped; of several that the best rule fits, solid-state ones before
    hard disks, NVMe first, the largest first. None when no disk may be taken: also while one is there that may be this
    machine's own and cannot be read. With `force` a person said that it does not matter what is on them.
    """
    disks = list(found)

    def rank(one: Found) -> tuple[bool, bool, int, bool, bool, int, str]:
        drive = one.drive
        names = drive.wwn or drive.serial or str(drive.path)
        first = (one.holds != "ours", one.holds != "nothing", rule_of(drive, wish.disks))
        return (*first, drive.spins, drive.bus != "nvme", -drive.size, names)

    chosen = min((one for one in disks if not refusal(one, wish, force=force)), key=rank, default=None)
    unknown = any(one.holds == "broken" for one in disks) and not force
    return None if chosen and chosen.holds != "ours" and unknown else chosen


def refusal(one: Found, wish: Install, *, force: bool = False) -> str:
    """Return why a disk may not be taken, and what would allow it; empty when it may."""
    drive = one.drive
    if one.holds == "ours":
        return ""
    if drive.read_only:
        return "is read-only"
    if drive.sector != SECTOR:
        return f"has sectors of {drive.sector} bytes: only {SECTOR} are supported"
    if drive.size < SMALLEST_BYTES:
        return f"is smaller than {SMALLEST_BYTES / 1e9:g} GB"
    if rule_of(drive, wish.disks) == len(wish.disks) > 0:
        return "fits no rule of `install.disks`"
    if force:
        return ""
    if one.holds == "broken":
        return f"has a Kubermesh, and {one.what}; take it out, or erase it, to have another one taken"
    if one.holds == "theirs" and not wish.wipe_clusters:
        return f"has a node of cluster {one.what}; `install.wipe_clusters: true` in the cluster file lets it be wiped"
    if one.holds == "data" and not wish.wipe:
        return f"holds {one.what}; `install.wipe: true` in the cluster file lets it be wiped"
    return ""


def rule_of(drive: Drive, rules: list[DiskRule]) -> int:
    """Return the place of the first rule that a disk fits, and how many there are when it fits none."""
    return next((place for place, rule in enumerate(rules) if fits(drive, rule)), len(rules))


def fits(drive: Drive, rule: DiskRule) -> bool:
    """Tell whether a disk is what a rule says."""
    size_gb = drive.size / 1e9
    return (
        rule.min_gb <= size_gb
        and (rule.max_gb == 0 or size_gb <= rule.max_gb)
        and rule.bus in ("", drive.bus)
        and fnmatchcase(drive.model, rule.model)
        and any(fnmatchcase(name, rule.id) for name in (drive.serial, drive.wwn))
    )


def describe(drive: Drive) -> str:
    """Return a disk in words."""
    return f"{drive.path} ({drive.model or drive.bus or 'unknown model'}, {drive.size / 1e9:.0f} GB)"

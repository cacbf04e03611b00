"""The package lock: exact versions and hashes of every Debian package of an image and of the tools that build it."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

from kmbuild import source
from kmbuild.archive import Apt, Package, find_archives
from kmbuild.config import Config
from kmplan import document
from kmplan.errors import UserError

FILE_NAME = "kubermesh.lock"


class Lock(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `kmbuild lock` writes. `requested` are the names that were asked for, by tree; `packages` what they came to."""

    version: Literal[1]
    suite: str
    epoch: int
    requested: dict[str, list[str]]
    packages: dict[str, list[Package]]


def package_list(name: str) -> list[str]:
    """Read a list of packages in elements/: one a line, `#` starts a comment."""
    lines = (source.folder("elements") / name).read_text(encoding="utf-8").splitlines()
    return [word for line in lines for word in line.partition("#")[0].split()]


def requested(config: Config) -> dict[str, list[str]]:
    """Names of the packages that the configuration asks for, by tree."""
    tree = {*package_list("kubermesh-debian/packages"), *config.packages, config.kernel.package}
    return {"tools": sorted(package_list("tools.packages")), "tree": sorted(tree)}


def make(config: Config, cache: Path) -> Lock:
    """Resolve today's versions. `epoch` (seconds since 1970) becomes the time stamp of everything in the image."""
    archives = find_archives(config)
    apt = Apt(cache, config.debian.suite, archives)
    apt.update()
    names = requested(config)
    packages = {tree: apt.resolve(wanted) for tree, wanted in names.items()}
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return Lock(1, config.debian.suite, int(midnight.timestamp()), names, packages)


def write(lock: Lock, path: Path) -> None:
    """Write a lock, one package a line, so that a diff of two locks can be read."""
    text = msgspec.json.format(msgspec.json.encode(lock), indent=1).decode()
    document.write(path, text + "\n")


def read(path: Path, config: Config) -> Lock:
    """Read a lock and check that it is one for this configuration."""
    lock = document.read(path, Lock)
    if lock.suite != config.debian.suite:
        raise UserError(
            f"{path}: locks Debian {lock.suite}, the configuration says {config.debian.suite}", "run `kmbuild lock`"
        )
    for tree, names in requested(config).items():
        missing = sorted(set(names) - set(lock.requested.get(tree, [])))
        surplus = sorted(set(lock.requested.get(tree, [])) - set(names))
        if missing or surplus:
            what = f"lacks {', '.join(missing)}" if missing else f"has {', '.join(surplus)} that nobody asks for now"
            raise UserError(f"{path}: {what}", "run `kmbuild lock`")
    return lock

"""`kmbuild lock`: pin package versions."""

from pathlib import Path

import click

from kmbuild import archive
from kmbuild import config as configuration
from kmbuild import lock as locking
from kmbuild.cache import Cache
from kmbuild.lock import Lock
from kmbuild.options import config_option
from kmplan import document
from kmplan.errors import UserError


@click.command()
@config_option
@click.option(
    "--fetch/--no-fetch", default=True, help="Fetch the packages into the cache now, so that builds need no archive."
)
def lock(config_path: Path | None, fetch: bool) -> None:
    """Resolve today's package versions and write them to kubermesh.lock."""
    config, _ = configuration.load(config_path)
    cache = Cache(config.cache_path)
    path = Path(locking.FILE_NAME)
    old = previous(path)
    with cache.lock("apt", "another kmbuild resolves packages; waiting for it"):
        new = locking.make(config, cache.path)
    if fetch:
        for packages in new.packages.values():
            archive.fetch(cache.path / "debs", packages, archive.find_archives(config), click.echo)
    locking.write(new, path)
    for line in differences(old, new):
        click.echo(line)
    click.echo(f"{path}: {sum(map(len, new.packages.values()))} packages of Debian {new.suite}")


def previous(path: Path) -> Lock | None:
    """The lock that is there now, if it can be read."""
    try:
        return document.read(path, Lock)
    except UserError:
        return None


def differences(old: Lock | None, new: Lock) -> list[str]:
    """Say which packages came, went or changed."""
    if old is None:
        return []
    lines = []
    for tree, packages in new.packages.items():
        before = {package.name: package.version for package in old.packages.get(tree, [])}
        after = {package.name: package.version for package in packages}
        changed = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
        lines += [f"{tree}: {name} {before.get(name, 'absent')} -> {after.get(name, 'absent')}" for name in changed]
    return lines

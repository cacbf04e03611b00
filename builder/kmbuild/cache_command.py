"""`kmbuild cache`: look at the build cache and clean it."""

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import click

from kmbuild import config as configuration
from kmbuild.cache import Cache
from kmbuild.options import config_option, json_option, require_root
from kmplan.errors import UserError


@click.group()
def cache() -> None:
    """List and clean the build cache."""


@cache.command("list")
@config_option
@json_option
def list_entries(config_path: Path | None, as_json: bool) -> None:
    """List finished stages: when they were made, how long it took, and their size."""
    store = Cache(configuration.load(config_path)[0].cache_path)
    rows = [
        {
            "stage": entry.stage,
            "id": entry.id,
            "built": entry.built,
            "seconds": round(entry.seconds, 1),
            "bytes": entry.disk_bytes,
        }
        for entry in store.entries()
    ]
    if as_json:
        click.echo(json.dumps({"path": str(store.path), "stages": rows}, indent=1))
        return
    for row in rows:
        built = datetime.fromtimestamp(float(str(row["built"])), UTC).strftime("%Y-%m-%d %H:%M")
        click.echo(
            f"{row['stage']:24} {str(row['id'])[:12]}  {built}  {row['seconds']:>7} s  {int(str(row['bytes'])) >> 20:>6} MiB"
        )


@cache.command()
@config_option
def check(config_path: Path | None) -> None:
    """Read every finished stage and remove those whose bytes have changed."""
    store = Cache(configuration.load(config_path)[0].cache_path)
    bad = [entry for entry in store.entries() if store.find(entry.stage, entry.id) is None or store.damaged(entry)]
    for entry in bad:
        shutil.rmtree(store.place(entry.stage, entry.id), ignore_errors=True)
        click.echo(f"removed {entry.stage}/{entry.id[:12]}: damaged")
    click.echo(f"{len(store.entries())} stages are whole")


@cache.command()
@config_option
@click.option("--all", "everything", is_flag=True, help="Also packages, Go modules and extracted roots.")
@click.option("--stage", help="Only this stage.")
def clean(config_path: Path | None, everything: bool, stage: str | None) -> None:
    """Remove finished stages. Packages and Go modules stay unless --all is given."""
    require_root("kmbuild cache clean")
    store = Cache(configuration.load(config_path)[0].cache_path)
    store.sweep()
    entries = [entry for entry in store.entries() if stage in (None, entry.stage)]
    if stage and not entries:
        raise UserError(f"--stage {stage}: nothing of that name in the cache", "see `kmbuild cache list`")
    for entry in entries:
        store.remove(entry)
    for name in ("debs", "go", "apt", "roots", "logs") if everything else ():
        shutil.rmtree(store.path / name, ignore_errors=True)
    click.echo(f"{store.path}: removed {len(entries)} stages" + (", packages and modules" if everything else ""))

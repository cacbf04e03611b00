"""`kmbuild image`: build the image."""

import json
import os
import platform
import shutil
import sys
import time
from pathlib import Path

import click
from rich.console import Console

from kmbuild import config as configuration
from kmbuild import lock as locking
from kmbuild import source
from kmbuild.artefacts import file_names, publish, read_manifest
from kmbuild.build import run_stages
from kmbuild.cache import Cache
from kmbuild.config import Config
from kmbuild.options import config_option, json_option, require_root
from kmbuild.progress import Progress
from kmbuild.stage import Context
from kmbuild.stages import ALL
from kmplan.errors import UserError

HOST_TOOLS = ("apt-get", "bwrap", "dpkg-deb", "mmdebstrap", "setpriv", "unshare")


@click.command()
@config_option
@click.option(
    "--until", type=click.Choice([stage.name for stage in ALL]), default="disk", help="Stop after this stage."
)
@click.option("-v", "--verbose", is_flag=True, help="Say why a stage is made: which of its inputs changed.")
@json_option
def image(config_path: Path | None, until: str, verbose: bool, as_json: bool) -> None:
    """Build the image: one disk image for stick, disk and virtual machine.

    What is in the cache is not made again. Without a lock, today's package versions are resolved and written to
    kubermesh.lock first. Needs root.
    """
    require_root("kmbuild image")
    start = time.monotonic()
    os.umask(0o022)  # modes of files that a stage makes reach the image
    config, place = configuration.load(config_path)
    check_host(config.cache_path)
    console = Console(stderr=as_json)
    cache = Cache(config.cache_path)
    cache.sweep()
    with Progress(console, verbose=verbose) as progress:
        package_lock = read_or_make_lock(config, cache, progress)
        context = Context(config, package_lock, cache, say=progress.say)
        entry = run_stages(ALL, until, context, progress)
        if progress.seconds:
            evict(cache, config, progress)
    if until != "disk":
        click.echo(str(entry))
        return
    names = file_names(config.image_version)
    publish(entry, config.output_path, names, verify="disk" not in progress.seconds)
    seconds = time.monotonic() - start
    if as_json:
        result = {
            "output": str(config.output_path),
            "seconds": round(seconds, 1),
            "stages": progress.seconds,
            "files": names,
        }
        click.echo(json.dumps({**result, "roothash": read_manifest(config.output_path).roothash}, indent=1))
        return
    raw = config.output_path / names["raw"]
    console.print(
        f"{raw}: {raw.stat().st_blocks * 512 >> 20} MiB on disk, from {place}, in {seconds:.1f} s", soft_wrap=True
    )


def check_host(cache_path: Path) -> None:
    """Refuse in one line what cannot work: another processor, a space in a path, a missing tool."""
    if platform.machine() != "x86_64":
        raise UserError(
            f"this machine is {platform.machine()}; images are built on and for x86_64", "use another machine"
        )
    refuse_spaces(source.folder("elements"), cache_path, Path(sys.executable))
    missing = [tool for tool in HOST_TOOLS if shutil.which(tool) is None]
    if missing:
        raise UserError(f"missing on this machine: {', '.join(missing)}", "run `make setup`")


def refuse_spaces(*paths: Path) -> None:
    """Refuse paths that diskimage-builder splits at their spaces (its scripts do not quote TMP_DIR and ELEMENTS_PATH)."""
    for path in paths:
        if len(str(path).split()) != 1:
            raise UserError(f"{path}: diskimage-builder cannot work in a path with a space", "use a folder without one")


def read_or_make_lock(config: Config, cache: Cache, progress: Progress) -> locking.Lock:
    """Read kubermesh.lock beside the caller; without one, resolve today's versions and write it."""
    path = Path(locking.FILE_NAME)
    if not path.exists():
        progress.note(f"no {path}: resolving today's package versions")
        with cache.lock("apt"):
            locking.write(locking.make(config, cache.path), path)
    return locking.read(path, config)


def evict(cache: Cache, config: Config, progress: Progress) -> None:
    """Keep the cache within its limit."""
    for entry in cache.evict(int(config.cache.size_limit_gib * (1 << 30))):
        progress.note(f"cache: removed {entry.stage}/{entry.id[:12]}, not used for longest")

"""`kmbuild flash`: the image and a cluster's credentials onto a stick or disk."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from kmbuild import bmap, drives, esp, stick
from kmbuild.artefacts import read_manifest
from kmbuild.bmap import BlockMap, Range
from kmbuild.locate import locate_image
from kmbuild.options import json_option
from kmbuild.table import table
from kmcluster.image import Image
from kmplan import seed
from kmplan.cluster import read_cluster
from kmplan.drives import Drive
from kmplan.errors import UserError

SEED = 1


@click.command()
@click.argument("image", type=click.Path(path_type=Path))
@click.argument("device", type=click.Path(path_type=Path), required=False)
@click.option("--cluster", "directory", type=click.Path(path_type=Path), required=True, help="Cluster directory.")
@click.option(
    "--seed", "is_seed", is_flag=True, help="The machine that begins the cluster: gives it all keys. One stick only."
)
@click.option(
    "--force", "serial", default="", metavar="SERIAL", help="Take a drive that is not removable: its serial number."
)
@click.option("--dry-run", is_flag=True, help="Check everything, say what would be done, and write nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def flash(
    image: Path, device: Path | None, directory: Path, is_seed: bool, serial: str, dry_run: bool, yes: bool, as_json: bool
) -> None:  # fmt: skip
    """Write IMAGE (the .raw or its folder) to DEVICE, verify it, and give it a cluster's credentials.

    Without DEVICE it lists removable drives and asks. A regular file works as a device. The partition table comes last: a
    stick that is not finished does not boot. What is on the device is lost.
    """
    found = locate_image(image)
    block_map = map_of(found)
    credentials = make_credentials(directory, is_seed=is_seed)
    offset = esp.find(found.raw)
    drive = drives.find(device) if device else ask(drives.removable())
    refuse_itself(found.raw, drive.path)
    drives.check(drive, block_map.size, serial)
    plan = describe(drive, block_map, list(credentials))
    if dry_run:
        click.echo(json.dumps(plan) if as_json else f"{drive.path}: would be written: {sentence(plan)}")
        return
    confirm(drive, yes=yes)
    try:
        with progress(quiet=as_json) as report:
            result = stick.write(
                found.raw,
                block_map,
                drive.path,
                lambda target: esp.put(found.tools, target, offset, credentials),
                report,
            )
    except KeyboardInterrupt:
        raise UserError(f"{drive.path}: interrupted, nothing on it boots now", "flash it again") from None
    plan |= {"write_s": round(result.write_s, 2), "verify_s": round(result.verify_s, 2)}
    done = f"{drive.path}: written in {result.write_s:.1f} s, verified in {result.verify_s:.1f} s: {sentence(plan)}"
    click.echo(json.dumps(plan) if as_json else f"{done}. You may pull it out.")


def map_of(image: Image) -> BlockMap:
    """The map beside an image; without one all of it is written, with the checksum in its manifest."""
    if (place := bmap.beside(image.raw)).exists():
        return bmap.read(place)
    whole = read_manifest(image.manifest.parent).artefacts["raw"]
    return BlockMap(whole.size, [Range(0, whole.size, whole.sha256)])


def make_credentials(directory: Path, *, is_seed: bool) -> dict[str, bytes]:
    """What the machine is given of a cluster, by the names of the credentials."""
    if is_seed:
        name = f"{read_cluster(directory).name}-{SEED}"
        return {"kubermesh.seed": seed.make_bundle(directory, SEED, name)}
    return {"kubermesh.join": seed.make_join(directory)}


def refuse_itself(image: Path, device: Path) -> None:
    """UserError when the image is what would be overwritten."""
    if device.exists() and device.samefile(image):
        raise UserError(f"{device}: is the image itself", "name another file, or a device")


def ask(found: list[Drive]) -> Drive:
    """Show removable drives and ask which one; UserError when there is none, or nobody to ask."""
    if not found:
        raise UserError("no removable drive", "plug a stick in, or name a device")
    rows = [("", "DEVICE", "SIZE", "MODEL", "SERIAL", "HOLDS")]
    for number, drive in enumerate(found, 1):
        rows.append((str(number), str(drive.path), size_of(drive), drive.model, drive.serial, ", ".join(drive.content)))
    click.echo(table(rows), err=True)
    if not sys.stdin.isatty():
        raise UserError("which drive?", "name it: kmbuild flash IMAGE DEVICE")
    number = click.prompt("Which one", type=click.IntRange(1, len(found)), err=True)
    return found[number - 1]


def confirm(drive: Drive, *, yes: bool) -> None:
    """Ask before a drive is overwritten, and see that it is still the same one; nobody is asked for a file."""
    if yes or drive.is_file:
        return
    holds = ", ".join(drive.content) or "nothing that is known"
    if not sys.stdin.isatty():
        raise UserError(f"{drive.path}: holds {holds}, which would be lost", "--yes does not ask")
    click.confirm(f"{drive.path}, {drive.model} {size_of(drive)}, holds {holds}. Overwrite it?", abort=True, err=True)
    if drives.find(drive.path) != drive:
        raise UserError(f"{drive.path}: is not what it was when you were asked", "begin again")


def size_of(drive: Drive) -> str:
    """A drive's size for people, as its label says it."""
    return f"{drive.size / 1e9:.1f} GB"


def describe(drive: Drive, block_map: BlockMap, credentials: list[str]) -> dict[str, object]:
    """What is done, as data."""
    return {
        "device": str(drive.path), "model": drive.model, "serial": drive.serial, "device_bytes": drive.size,
        "image_bytes": block_map.size, "written_bytes": block_map.mapped, "credentials": credentials,
    }  # fmt: skip


def sentence(plan: dict[str, object]) -> str:
    """What is done, in words."""
    mapped, size = (int(str(plan[name])) >> 20 for name in ("written_bytes", "image_bytes"))
    given = ", ".join(map(str, plan["credentials"]))  # type: ignore[call-overload]
    return f"{mapped} MiB of {size} MiB, and {given}"


@contextmanager
def progress(*, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar with speed and time left on a terminal, a line for each step elsewhere."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:10}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as bars:
        tasks: dict[str, object] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
                if not quiet and not console.is_terminal:
                    console.print(f"{what} {total >> 20} MiB")
            bars.update(tasks[what], completed=done)  # type: ignore[arg-type]

        yield report

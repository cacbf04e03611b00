"""The built image as the bench sees it, and the checks that turn a damaged one into one clear line."""

import json
from pathlib import Path
from typing import Any

import msgspec

from kmplan.errors import UserError

SECTOR = 512
ARCHITECTURE = "x86_64"


class Image(msgspec.Struct, frozen=True):
    """The files of one build that machines are made of.

    `tools` is the root of a Debian tree with QEMU, OVMF and fsck.erofs; `kubectl` the multi-call Kubernetes binary.
    """

    raw: Path
    erofs: Path
    manifest: Path
    tools: Path
    kubectl: Path


def read_manifest(image: Image) -> dict[str, Any]:
    """Read manifest.json; raises UserError when it is missing or damaged."""
    try:
        manifest = json.loads(image.manifest.read_bytes())
    except OSError as error:
        raise UserError(f"{image.manifest}: {error.strerror}", "`make image` builds an image") from error
    except ValueError as error:
        raise UserError(f"{image.manifest}: not JSON: {error}", "`make image` builds it anew") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("artefacts"), dict) or "roothash" not in manifest:
        raise UserError(f"{image.manifest}: not the manifest of an image")
    return manifest


def check_image(image: Image) -> dict[str, Any]:
    """Check what can be checked without reading the whole image; returns the manifest.

    Raises UserError for a wrong architecture, a missing or truncated file, or a disk without backup partition table.
    """
    manifest = read_manifest(image)
    architecture = manifest.get("architecture", ARCHITECTURE)
    if architecture != ARCHITECTURE:
        raise UserError(f"{image.raw}: is for {architecture}", f"this bench runs {ARCHITECTURE} only")
    for kind, path in (("raw", image.raw), ("erofs", image.erofs)):
        check_size(path, manifest["artefacts"].get(kind, {}).get("size"))
    check_backup_table(image.raw)
    return manifest


def check_size(path: Path, expected: int | None) -> None:
    """Compare a file's size with the manifest's."""
    if not path.is_file():
        raise UserError(f"{path}: no such file", "`make image` builds it")
    size = path.stat().st_size
    if expected is not None and size != expected:
        state = "truncated" if size < expected else "too long"
        raise UserError(f"{path}: {state}: {size} bytes, the manifest says {expected}", "copy or build it again")


def check_backup_table(raw: Path) -> None:
    """The backup GPT header is a disk's last sector (UEFI 2.10, 5.3.2): it is missing if the end is."""
    with raw.open("rb") as file:
        file.seek(max(0, raw.stat().st_size - SECTOR))
        if file.read(8) != b"EFI PART":
            raise UserError(f"{raw}: truncated: no backup partition table at its end", "copy or build it again")

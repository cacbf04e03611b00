"""What a build hands out: the names of the files, their manifest, and how the bench finds them again."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import msgspec

from kmbuild.source import data_ranges, file_digest
from kmplan import document
from kmplan.errors import UserError

MANIFEST = "manifest.json"


class Artefact(msgspec.Struct, frozen=True):
    """One file: name, size in bytes, SHA-256 in hex."""

    name: str
    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about an image that a program may want to know.

    `artefacts` has the keys raw, uki, erofs, verity, bmap and sbom; `stages` maps stages to content ids.
    """

    version: str
    architecture: str
    roothash: str
    epoch: int
    kernel: str
    artefacts: dict[str, Artefact]
    stages: dict[str, str]
    versions: dict[str, str]


def file_names(version: str) -> dict[str, str]:
    """File names of an image's artefacts by kind."""
    base = f"kubermesh-{version}"
    return {
        "raw": f"{base}.raw",
        "uki": f"{base}.efi",
        "erofs": f"{base}.root.erofs",
        "verity": f"{base}.verity",
        "bmap": f"{base}.raw.bmap",
        "sbom": "sbom.cdx.json",
        "manifest": MANIFEST,
        "sums": "SHA256SUMS",
    }


def as_json(manifest: Manifest) -> bytes:
    """Write a manifest down."""
    return msgspec.json.format(msgspec.json.encode(manifest)) + b"\n"


def publish(entry: Path, output: Path, names: Mapping[str, str], *, verify: bool) -> None:
    """Copy a finished image out of the cache; what is there already with the same size and time is left alone.

    SHA256SUMS goes first and comes last: where it is, the rest is whole. With `verify` the copies are hashed: an image that
    has just been made was hashed then.
    """
    changed = [name for name in names.values() if not is_same(entry / name, output / name)]
    sums = names["sums"]
    digests = sums_of(entry / sums) if verify and changed else {}
    try:
        output.mkdir(parents=True, exist_ok=True)
        if changed:
            (output / sums).unlink(missing_ok=True)
        for name in [name for name in changed if name != sums] + ([sums] if changed else []):
            replace_file(entry / name, output / name, digests.get(name))
    except OSError as error:
        raise UserError(f"{output}: {error.strerror}", "set output in kubermesh.yaml to a folder with room") from error


def sums_of(path: Path) -> dict[str, str]:
    """Parse a SHA256SUMS file: name -> hash."""
    return {name: digest for digest, _, name in (line.partition("  ") for line in path.read_text().splitlines())}


def replace_file(source: Path, target: Path, digest: str | None) -> None:
    """Copy a file with its times under a temporary name, which is gone in the end whatever happens.

    Raises UserError when the copy has not the SHA-256 that it should have.
    """
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        copy_sparse(source, temporary)
        if digest is not None and file_digest(temporary) != digest:
            raise UserError(f"{source.name}: damaged in the cache", "run `kmbuild cache check`, then build again")
        shutil.copystat(source, temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def is_same(source: Path, target: Path) -> bool:
    """Tell whether a file was copied before, by size and time of change."""
    try:
        left, right = source.stat(), target.stat()
    except FileNotFoundError:
        return False
    return (left.st_size, left.st_mtime_ns) == (right.st_size, right.st_mtime_ns)


def copy_sparse(source: Path, target: Path) -> None:
    """Copy only the parts of a file that hold data, so that holes stay holes."""
    with source.open("rb") as file, target.open("wb") as out:
        size = os.fstat(file.fileno()).st_size
        out.truncate(size)
        for start, end in data_ranges(file.fileno(), size):
            os.lseek(out.fileno(), start, os.SEEK_SET)
            os.lseek(file.fileno(), start, os.SEEK_SET)
            remaining = end - start
            while remaining > 0:
                copied = os.sendfile(out.fileno(), file.fileno(), None, min(remaining, 1 << 30))
                if copied == 0:
                    raise OSError(5, "short read", str(source))
                remaining -= copied
        out.flush()
        os.fsync(out.fileno())


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a built image."""
    path = folder / MANIFEST
    if not path.exists():
        raise UserError(f"{folder}: no image here", "build one with `make image`")
    return document.read(path, Manifest)

"""Container images as OCI layout archives: deterministic, one uncompressed layer (image-spec v1.1, image-layout.md)."""

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

LAYER = "application/vnd.oci.image.layer.v1.tar"
CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
EPOCH = "1970-01-01T00:00:00Z"


@dataclass(frozen=True)
class OciImage:
    """A container image: its name and what is in its root.

    `files` maps paths inside, without a leading slash, to the host files to copy; several paths of one host file become
    hard links. `symlinks` maps paths to targets, `folders` are made empty with mode 0755 (`tmp` gets 1777).
    """

    name: str
    files: Mapping[str, Path]
    symlinks: Mapping[str, str] = field(default_factory=dict)
    folders: Sequence[str] = ("dev", "etc", "proc", "sys", "tmp", "var", "run")
    entrypoint: Sequence[str] = ()


def write_archive(images: Sequence[OciImage], target: Path) -> None:
    """Write an OCI layout with all `images` as one tar; each is annotated with its name, as containerd's import wants."""
    blobs: dict[str, bytes] = {}
    manifests = [_add_image(image, blobs) for image in images]
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests}
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:
        _add_bytes(archive, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        _add_bytes(archive, "index.json", _json(index))
        for digest in sorted(blobs):
            _add_bytes(archive, f"blobs/sha256/{digest}", blobs[digest])


def _add_image(image: OciImage, blobs: dict[str, bytes]) -> dict[str, object]:
    layer = _layer(image)
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]}
    run = {"Entrypoint": list(image.entrypoint)} if image.entrypoint else {}
    config = _json({"created": EPOCH, "architecture": "amd64", "os": "linux", "config": run, "rootfs": rootfs})
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": _put(blobs, config, CONFIG),
        "layers": [_put(blobs, layer, LAYER)],
    }
    descriptor = _put(blobs, _json(manifest), MANIFEST)
    return {**descriptor, "annotations": {"io.containerd.image.name": image.name}}


def _put(blobs: dict[str, bytes], data: bytes, media_type: str) -> dict[str, object]:
    digest = hashlib.sha256(data).hexdigest()
    blobs[digest] = data
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def _layer(image: OciImage) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for folder in sorted({*image.folders, *_parents([*image.files, *image.symlinks])}):
            tar.addfile(_member(folder, tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755))
        for path, link in sorted(image.symlinks.items()):
            member = _member(path, tarfile.SYMTYPE, 0o777)
            member.linkname = link
            tar.addfile(member)
        written: dict[Path, str] = {}
        for path, source in sorted(image.files.items()):
            _add_file(tar, path, source, written)
    return out.getvalue()


def _add_file(tar: tarfile.TarFile, path: str, source: Path, written: dict[Path, str]) -> None:
    if source in written:
        member = _member(path, tarfile.LNKTYPE, 0o755)
        member.linkname = written[source]
        tar.addfile(member)
        return
    member = _member(path, tarfile.REGTYPE, 0o755)
    member.size = source.stat().st_size
    with source.open("rb") as file:
        tar.addfile(member, file)
    written[source] = path


def _parents(paths: Sequence[str]) -> set[str]:
    return {str(parent) for path in paths for parent in Path(path).parents if str(parent) != "."}


def _member(path: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(path)
    member.type = kind
    member.mode = mode
    return member


def _add_bytes(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = _member(name, tarfile.REGTYPE, 0o644)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()

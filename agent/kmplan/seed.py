"""What a machine is given of a cluster directory: all of it to the seed, the way to recognise the cluster to any other."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from kmplan.addresses import MAX_NODE
from kmplan.cluster import NAME_PATTERN, ClusterFile, Install, read_cluster
from kmplan.errors import UserError
from kmplan.secret_files import SECRET_FILES

# A cluster's name, a dash and a number.
NODE_PATTERN = r"^[a-z]([-a-z0-9]{0,44}[a-z0-9])?$"


class SeedNode(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Which node the bundle is for."""

    number: Annotated[int, Meta(ge=1, le=MAX_NODE)]
    name: Annotated[str, Meta(pattern=NODE_PATTERN)]


class SeedBundle(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A cluster's file, keys and authorities, and the node they are given to."""

    version: Literal[1]
    cluster: ClusterFile
    node: SeedNode
    files: dict[str, str]

    def __post_init__(self) -> None:
        """Refuse a bundle that lacks a file."""
        missing = sorted(set(SECRET_FILES) - set(self.files))
        if missing:
            raise ValueError(f"files: {', '.join(missing)} missing")


class JoinBundle(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The credential `kubermesh.join`: nothing secret, but what a machine trusts when it asks to be admitted.

    `number` is the node number it would like to have; it gets another one when that is taken. `install` is the cluster
    file's: where the machine lives is decided before it is admitted.
    """

    version: Literal[1] = 1
    name: Annotated[str, Meta(pattern=NAME_PATTERN)]
    authority: Annotated[str, Meta(description="Certificate of the cluster's node authority, PEM.")]
    number: Annotated[int, Meta(ge=0, le=MAX_NODE)] = 0
    install: Install = Install()


def make_join(directory: Path, number: int = 0) -> bytes:
    """Return what a blank machine is given (JSON): the cluster's name, its node authority's certificate, a number to ask for.

    Raises UserError in one line when the directory lacks something.
    """
    cluster = read_cluster(directory)
    if not 0 <= number <= MAX_NODE:
        raise UserError(f"node number {number} is not in 1…{MAX_NODE}")
    authority = _read(directory / "pki/node-ca.crt")
    return msgspec.json.encode(
        JoinBundle(name=cluster.name, authority=authority, number=number, install=cluster.install)
    )


def parse_join(data: bytes) -> JoinBundle:
    """Parse what `make_join` made; UserError in one line when it is not that."""
    try:
        return msgspec.json.decode(data, type=JoinBundle)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"credential kubermesh.join: {error}") from error


def make_bundle(directory: Path, number: int, name: str) -> bytes:
    """Return the bundle (JSON) that makes a machine node `number` of the cluster in `directory`.

    Raises UserError in one line when the directory lacks something.
    """
    cluster = read_cluster(directory)
    files = {path: _read(directory / path) for path in SECRET_FILES}
    node = msgspec.convert({"number": number, "name": name}, SeedNode)
    return msgspec.json.encode(SeedBundle(version=1, cluster=cluster, node=node, files=files))


def parse_bundle(data: bytes) -> SeedBundle:
    """Parse a bundle; UserError in one line when it is not one."""
    try:
        return msgspec.json.decode(data, type=SeedBundle)
    except msgspec.DecodeError as error:
        raise UserError(f"credential kubermesh.seed: {error}") from error


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{path}: cannot be read: {reason}", "restore the cluster directory from your backup"
        ) from error

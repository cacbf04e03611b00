"""The seed bundle: what the first node gets of a cluster directory, as the credential `kubermesh.seed`."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from kmplan.addresses import MAX_NODE
from kmplan.cluster import NAME_PATTERN, ClusterFile, read_cluster
from kmplan.errors import UserError

AUTHORITIES = ("cluster-ca", "front-proxy-ca", "etcd-ca", "node-ca")

# Everything a control-plane node keeps. The admin's and the break-glass certificates stay with the user.
SECRET_FILES = (
    *(f"pki/{name}.{kind}" for name in AUTHORITIES for kind in ("crt", "key")),
    "pki/service-account.key",
    "pki/service-account.pub",
    "encryption.key",
    "babel.key",
)


class SeedNode(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Which node the bundle is for."""

    number: Annotated[int, Meta(ge=1, le=MAX_NODE)]
    name: Annotated[str, Meta(pattern=NAME_PATTERN)]


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

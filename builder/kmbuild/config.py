"""The build's configuration: one YAML file, checked as it is read."""

import os
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml
from msgspec import Meta, Struct

from kmplan import document
from kmplan.errors import UserError

FILE_NAME = "kubermesh.yaml"

Suite = Annotated[str, Meta(pattern="^[a-z][a-z0-9-]*$", description="A Debian release by its code name.")]
Url = Annotated[str, Meta(pattern="^(https?|file|copy)://?[^ ]+$", description="An apt archive.")]
PackageName = Annotated[str, Meta(pattern="^[a-z0-9][a-z0-9+.-]+$", description="A Debian package.")]
KernelArgument = Annotated[str, Meta(pattern="^[!-~]+$", description="One word of the kernel command line.")]
Version = Annotated[str, Meta(pattern=r"^[0-9]+\.[0-9]+\.[0-9]+$", description="A released version, without `v`.")]
ImageVersion = Annotated[str, Meta(pattern=r"^[0-9][0-9A-Za-z.~]*$", description="Version of the image.")]
Component = Literal["kubernetes", "etcd", "coredns", "containerd", "cni", "go"]


class Debian(Struct, forbid_unknown_fields=True, frozen=True):
    """Where Debian packages come from."""

    suite: Suite = "trixie"
    mirror: Annotated[Url | None, Meta(description="Debian archive. Unset: the host's own apt sources.")] = None
    security_mirror: Annotated[
        Url | None,
        Meta(description="Security archive. Unset: the host's, else `mirror` with debian-security at its end."),
    ] = None


class Kernel(Struct, forbid_unknown_fields=True, frozen=True):
    """Which kernel, and what it is told."""

    flavour: Annotated[
        Literal["generic", "cloud"], Meta(description="generic: real machines. cloud: virtio only, smaller.")
    ] = "generic"
    arguments: Annotated[tuple[KernelArgument, ...], Meta(description="Added to the kernel command line.")] = ()

    @property
    def package(self) -> str:
        """Debian's meta package of this kernel."""
        return "linux-image-amd64" if self.flavour == "generic" else "linux-image-cloud-amd64"


class Cache(Struct, forbid_unknown_fields=True, frozen=True):
    """Where finished stages are kept, and how many."""

    path: Annotated[str | None, Meta(description="Folder. Unset: $XDG_CACHE_HOME/kubermesh.")] = None
    size_limit_gib: Annotated[
        Annotated[float, Meta(gt=0, le=1_000_000)], Meta(description="Beyond it, what was not used for longest goes.")
    ] = 30.0


class Config(Struct, forbid_unknown_fields=True, frozen=True):
    """One image, described."""

    version: Annotated[Literal[1], Meta(description="Version of this file's format.")]
    debian: Debian = Debian()
    packages: Annotated[tuple[PackageName, ...], Meta(description="Debian packages to add to the root tree.")] = ()
    kernel: Kernel = Kernel()
    components: Annotated[
        dict[Component, Version],
        Meta(description="Versions of kubernetes, etcd, coredns, containerd, cni, go; others are as shipped."),
    ] = {}
    compression: Annotated[
        Literal["fast", "small"], Meta(description="fast: zstd. small: LZMA, slower to build, about 10 % smaller.")
    ] = "fast"
    image_version: ImageVersion = "0.1.0"
    output: Annotated[str, Meta(description="Folder for the image, relative to where kmbuild is called.")] = "out"
    cache: Cache = Cache()

    @property
    def cache_path(self) -> Path:
        """The folder of the build cache."""
        if self.cache.path:
            return Path(self.cache.path).expanduser().absolute()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "kubermesh"

    @property
    def output_path(self) -> Path:
        """The folder that the image is written to."""
        return Path(self.output).expanduser().absolute()

    @property
    def versions(self) -> dict[str, str]:
        """Versions of all components: versions.yaml, then what the configuration says."""
        return {**yaml.safe_load(shipped("versions.yaml")), **self.components}


def shipped(name: str) -> str:
    """Text of a file that lies beside this module."""
    return resources.files("kmbuild").joinpath(name).read_text(encoding="utf-8")


def load(path: Path | None) -> tuple[Config, str]:
    """Read `path`, else ./kubermesh.yaml, else the shipped default; returns the configuration and where it is from.

    Raises UserError in one line: file, place in it, what was expected.
    """
    if path is None and Path(FILE_NAME).exists():
        path = Path(FILE_NAME)
    if path is None:
        return document.parse(shipped("default.yaml"), Config, "default.yaml"), "the shipped default.yaml"
    config = document.read(path, Config)
    if not path.is_file():
        raise UserError(f"{path}: not a file")
    return config, str(path)


def as_yaml(config: Config) -> str:
    """Write a configuration out with all its keys."""
    return yaml.safe_dump(msgspec.to_builtins(config), sort_keys=False)


def schema() -> dict[str, Any]:
    """Return the JSON Schema of the configuration file."""
    return document.schema(Config)

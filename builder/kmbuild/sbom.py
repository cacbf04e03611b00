"""The bill of materials: every Debian package and Go module of an image, as CycloneDX 1.6 JSON."""

import re
import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from kmbuild.archive import Package

MODULE_LINE = re.compile(r"^\t(?:mod|dep|=>)\t(\S+)\t(v\S+)", re.MULTILINE)


def debian_component(package: Package, suite: str) -> Component:
    """One Debian package (purl type `deb`)."""
    purl = PackageURL("deb", "debian", package.name, package.version, {"arch": "amd64", "distro": suite})
    return Component(
        name=package.name, version=package.version, type=ComponentType.LIBRARY, purl=purl, bom_ref=purl.to_string()
    )


def go_component(path: str, version: str) -> Component:
    """One Go module (purl type `golang`)."""
    namespace, _, name = path.rpartition("/")
    purl = PackageURL("golang", namespace, name, version)
    return Component(name=path, version=version, type=ComponentType.LIBRARY, purl=purl, bom_ref=purl.to_string())


def parse_modules(listing: str) -> set[tuple[str, str]]:
    """Parse `go version -m` output: (module path, version) of what was linked in; a replacement counts, not what it replaced."""
    return {(path, version) for path, version in MODULE_LINE.findall(listing) if version != "v0.0.0"}


def parse_status(status: str) -> set[str]:
    """Parse dpkg's status file (deb822(5)): names of the packages in it."""
    return set(re.findall(r"^Package: (\S+)$", status, re.MULTILINE))


def write(
    image: tuple[str, str],
    packages: Iterable[Package],
    suite: str,
    modules: Iterable[tuple[str, str]],
    components: Mapping[str, str],
    epoch: int,
) -> str:
    """Return the document as text: the same image gives the same bytes.

    `image` is (name, version); `components` maps upstream programs to their versions.
    """
    name, version = image
    parts = [debian_component(package, suite) for package in packages]
    parts += [go_component(path, module_version) for path, module_version in modules]
    parts += [
        Component(name=part, version=number, type=ComponentType.APPLICATION, bom_ref=f"component:{part}")
        for part, number in components.items()
    ]
    bom = Bom(
        components=parts,
        serial_number=uuid.uuid5(uuid.NAMESPACE_URL, repr(sorted(part.bom_ref.value or "" for part in parts))),
    )
    bom.metadata.component = Component(
        name=name, version=version, type=ComponentType.OPERATING_SYSTEM, bom_ref=f"image:{name}"
    )
    bom.register_dependency(bom.metadata.component, parts)
    bom.metadata.timestamp = datetime.fromtimestamp(epoch, UTC)
    return JsonV1Dot6(bom).output_as_string(indent=1)

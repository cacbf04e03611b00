"""The image's papers are true: sums, manifest, bill of materials, and the root hash in the boot image."""

import json
import os
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from kmbuild import bmap
from kmbuild import lock as locking
from kmbuild.config import Config
from kmbuild.lock import Lock
from kmbuild.source import file_digest
from kmbuild.stages import ALL

MIB = 1 << 20


@pytest.fixture(scope="session")
def lock() -> Lock:
    return locking.read(Path(__file__).parents[2] / "kubermesh.lock", Config(version=1))


@pytest.fixture(scope="session")
def bill(image: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((image / "sbom.cdx.json").read_text())
    return document


def pe_section(path: Path, name: str) -> bytes:
    """Content of a section of a PE file (Microsoft PE format, section table)."""
    data = path.read_bytes()
    (header,) = struct.unpack_from("<I", data, 0x3C)
    assert data[header : header + 4] == b"PE\0\0"
    count, optional = struct.unpack_from("<H", data, header + 6)[0], struct.unpack_from("<H", data, header + 20)[0]
    for start in range(header + 24 + optional, header + 24 + optional + 40 * count, 40):
        size, _, raw_size, offset = struct.unpack_from("<4I", data, start + 8)
        if data[start : start + 8].rstrip(b"\0").decode() == name:
            return data[offset : offset + min(size, raw_size)]
    raise AssertionError(f"{path}: no section {name}")


@pytest.fixture(scope="session")
def command_line(image: Path, manifest: dict[str, Any]) -> list[str]:
    """The words of the kernel's command line."""
    return pe_section(image / manifest["artefacts"]["uki"]["name"], ".cmdline").rstrip(b"\0\n").decode().split()


def test_the_lock_names_each_file_once_and_all_that_was_asked_for(lock: Lock) -> None:
    for tree, packages in lock.packages.items():
        names = [package.name for package in packages]
        assert names == sorted(set(names)) and set(lock.requested[tree]) <= set(names)
        assert all(len(package.sha256) == 64 and package.size > 0 for package in packages)
        assert all(os.path.normpath(package.filename) == package.filename for package in packages)


def test_the_sums_verify(image: Path) -> None:
    done = subprocess.run(
        ["sha256sum", "--strict", "--check", "SHA256SUMS"], cwd=image, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 7


def test_the_manifest_has_the_true_size_and_hash_of_every_artefact(image: Path, manifest: dict[str, Any]) -> None:
    for kind in ("raw", "uki", "erofs", "verity", "bmap", "sbom"):
        artefact = manifest["artefacts"][kind]
        assert (image / artefact["name"]).stat().st_size == artefact["size"], kind
        assert file_digest(image / artefact["name"]) == artefact["sha256"], kind


def test_the_block_map_has_all_that_is_not_zero(image: Path, manifest: dict[str, Any]) -> None:
    block_map = bmap.read(image / manifest["artefacts"]["bmap"]["name"])
    raw = image / manifest["artefacts"]["raw"]["name"]
    assert block_map.size == raw.stat().st_size
    assert block_map.mapped < block_map.size / 4
    assert bmap.make(raw) == block_map
    with raw.open("rb") as file:
        position = 0
        for start, end in [*((one.start, one.end) for one in block_map.ranges), (block_map.size, block_map.size)]:
            file.seek(position)
            while position < start:
                data = file.read(min(1 << 24, start - position))
                assert not data.strip(b"\0"), f"data at {position} and not in the map"
                position += len(data)
            position = end


def test_the_manifest_names_every_stage_and_version(manifest: dict[str, Any], lock: Lock) -> None:
    assert list(manifest["stages"]) == [stage.name for stage in ALL]
    assert manifest["versions"] == Config(version=1).versions
    assert manifest["epoch"] == lock.epoch
    assert manifest["architecture"] == "x86_64"


def test_the_boot_image_carries_the_root_hash_of_the_manifest(
    command_line: list[str], manifest: dict[str, Any]
) -> None:
    assert [word for word in command_line if word.startswith("roothash=")] == [f"roothash={manifest['roothash']}"]


def test_a_failing_boot_ends_in_a_reboot_and_not_in_a_shell(command_line: list[str]) -> None:
    assert {"rd.shell=0", "rd.emergency=reboot", "panic=10", "ro", "rootfstype=erofs"} <= set(command_line)


def test_the_boot_image_says_which_kernel_and_version_it_is(image: Path, manifest: dict[str, Any]) -> None:
    uki = image / manifest["artefacts"]["uki"]["name"]
    assert pe_section(uki, ".uname").rstrip(b"\0\n").decode() == manifest["kernel"]
    assert f"VERSION_ID={manifest['version']}" in pe_section(uki, ".osrel").decode()


def test_the_disk_image_carries_the_boot_image_with_three_tries(image: Path, manifest: dict[str, Any]) -> None:
    with (image / manifest["artefacts"]["raw"]["name"]).open("rb") as file:
        head = file.read(2 * MIB + (64 << 20))
    name = f"kubermesh_{manifest['version']}+3.efi"
    assert name.encode("utf-16-le")[:10] in head  # VFAT splits a long name: its first five letters are together


def test_the_root_file_system_with_all_containers_is_at_most_250_mb(image: Path, manifest: dict[str, Any]) -> None:
    assert (image / manifest["artefacts"]["erofs"]["name"]).stat().st_size <= 250_000_000


def test_a_machine_boots_from_the_network_with_at_most_60_mb(image: Path, manifest: dict[str, Any]) -> None:
    assert (image / manifest["artefacts"]["uki"]["name"]).stat().st_size <= 60_000_000


def test_the_disk_image_is_sparse(image: Path, manifest: dict[str, Any]) -> None:
    status = (image / manifest["artefacts"]["raw"]["name"]).stat()
    assert status.st_blocks * 512 < 350 * MIB < status.st_size


def test_the_bill_of_materials_is_valid(image: Path) -> None:
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str((image / "sbom.cdx.json").read_text()) is None


def test_the_bill_lists_exactly_the_debian_packages_in_the_image(bill: dict[str, Any], lock: Lock, root: Path) -> None:
    status = (root / "usr/lib/sysimage/dpkg/status").read_text()
    installed = {line.removeprefix("Package: ") for line in status.splitlines() if line.startswith("Package: ")}
    assert "systemd" in installed
    assert not installed & {"apt", "dpkg", "perl-base"}
    listed = {(part["name"], part["version"]) for part in bill["components"] if "pkg:deb/" in part.get("purl", "")}
    assert listed == {(package.name, package.version) for package in lock.packages["tree"] if package.name in installed}


def test_the_bill_lists_the_main_modules_of_every_program(bill: dict[str, Any], manifest: dict[str, Any]) -> None:
    listed = {(part["name"], part["version"]) for part in bill["components"] if "pkg:golang" in part.get("purl", "")}
    versions = manifest["versions"]
    assert {
        ("k8s.io/kubernetes", f"v{versions['kubernetes']}"),
        ("go.etcd.io/etcd/server/v3", f"v{versions['etcd']}"),
        ("github.com/coredns/coredns", f"v{versions['coredns']}"),
        ("github.com/containernetworking/plugins", f"v{versions['cni']}"),
    } <= listed

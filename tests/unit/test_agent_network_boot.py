"""A machine whose system came from a neighbour: what its disk gets, and what the firmware boots then."""

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kmagent import boot_entry, boot_image, disk_copy, home_disk, network_boot
from kmagent.disk_copy import Parts
from kmagent.paths import Paths
from kmbuild import source
from kmplan import boot_images
from kmplan.drives import Partition
from kmplan.errors import UserError

HASH = "ab" * 32
IMAGE = b"MZ kernel, initrd, root=/dev/mapper/root roothash=" + HASH.encode() + b" quiet"


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    for name in ("run", "state"):
        (tmp_path / name).mkdir()
    (tmp_path / "versions.json").write_text('{"image": "0.2.0"}')
    return Paths(run=tmp_path / "run", state=tmp_path / "state", versions=tmp_path / "versions.json")


@pytest.fixture
def top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine's root with the loader, and a boot image that came from a neighbour."""
    root = tmp_path / "top"
    for name, data in (
        ("usr/lib/systemd/boot/efi/systemd-bootx64.efi", b"loader"),
        ("run/kubermesh-boot/boot.efi", IMAGE),
        (boot_images.DIGEST, boot_images.digest(write(tmp_path / "image", IMAGE), HASH).encode() + b"\n"),
    ):
        write(root / name, data)
    monkeypatch.setattr(boot_image, "in_container", lambda: False)
    return root


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_the_digest_of_a_boot_image_is_the_same_whatever_the_root_hash_is(tmp_path: Path) -> None:
    other = "cd" * 32
    two = write(tmp_path / "two", IMAGE.replace(HASH.encode(), other.encode()))
    digest = boot_images.digest(write(tmp_path / "one", IMAGE), HASH)
    assert boot_images.digest(two, other) == digest != boot_images.digest(two, HASH)
    assert boot_images.digest(write(tmp_path / "three", IMAGE + b"!"), HASH) != digest


def test_the_initrd_looks_for_the_digest_where_the_build_puts_it() -> None:
    assert f'digestFile = "{boot_images.DIGEST}"' in (source.folder("components") / "fetch/store.go").read_text()


def test_a_disk_gets_a_loader_and_the_boot_image_without_a_counter(paths: Paths, top: Path) -> None:
    folder = network_boot.fill_esp(paths, HASH, top)
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found["EFI/Linux/kubermesh_0.2.0.efi"] == IMAGE
    assert found["EFI/BOOT/BOOTX64.EFI"] == found["EFI/systemd/systemd-bootx64.efi"] == b"loader"
    assert found["loader/loader.conf"].startswith(b"timeout 0\n")


def test_a_boot_image_that_is_not_this_systems_is_not_installed(paths: Paths, top: Path) -> None:
    """It says the right root hash, and has another kernel: a neighbour made it."""
    write(top / "run/kubermesh-boot/boot.efi", IMAGE.replace(b"kernel", b"virus!"))
    with pytest.raises(UserError, match=r"^no boot image of the system that runs in "):
        network_boot.fill_esp(paths, HASH, top)


def test_the_partitions_are_filled_from_memory_and_from_files(
    paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "definitions").mkdir()
    monkeypatch.setattr(home_disk, "DEFINITIONS", tmp_path / "definitions")
    root, hashes = (Partition(path=Path(f"/dev/zram{number}"), uuid=f"u{number}") for number in (1, 0))
    folder = disk_copy.define(paths, Parts(root, hashes, files=Path("/run/kubermesh/esp")))
    drop_ins = {path.parent.name: path.read_text() for path in folder.glob("*.conf.d/*.conf")}
    assert drop_ins == {
        "10-esp.conf.d": "[Partition]\nFormat=vfat\nCopyFiles=/run/kubermesh/esp:/\n",
        "20-root-a.conf.d": "[Partition]\nCopyBlocks=/dev/zram1\nUUID=u1\n",
        "21-root-a-verity.conf.d": "[Partition]\nCopyBlocks=/dev/zram0\nUUID=u0\n",
    }


ESP = "5dd58d29-6f1c-4f3c-9a9d-7d1f8f0f4c11"
# As efibootmgr 18 shows OVMF's entries.
LISTING = """\
BootCurrent: 0003
Timeout: 0 seconds
BootOrder: 0001,0003,0000
Boot0000* UiApp\tFvVol(7cb8bdc9-f8eb-4f34-aaea-3ee4af6516a1)/FvFile(462caa21-7614-4503-836e-8ab6f4662331)
Boot0001* UEFI PXEv4 (MAC:5254006C0200)\tPciRoot(0x0)/Pci(0x4,0x0)/MAC(5254006c0200,1)/IPv4(0.0.0.0,0,0)
Boot0003* UEFI HTTPv4 (MAC:5254006C0200)\tPciRoot(0x0)/Pci(0x4,0x0)/MAC(5254006c0200,1)/IPv4(0.0.0.0,0,0)/Uri()
"""
OURS = f"Boot0004* Kubermesh\tHD(1,GPT,{ESP},0x800,0x100000)/File(\\EFI\\systemd\\systemd-bootx64.efi)\n"


class Firmware:
    """efibootmgr and blkid; `calls` are what the first was told to do."""

    def __init__(self, listing: str) -> None:
        self.listing = listing
        self.calls: list[str] = []

    def run(self, argv: Sequence[Any], **_: Any) -> subprocess.CompletedProcess[str]:
        words = list(map(str, argv))
        if words[0] == "blkid":
            return subprocess.CompletedProcess(words, 0, ESP + "\n", "")
        if words[1] != "--verbose":
            self.calls.append(" ".join(words[1:]))
        if "--create" in words:
            self.listing += OURS
        return subprocess.CompletedProcess(words, 0, self.listing, "")


@pytest.fixture
def firmware(monkeypatch: pytest.MonkeyPatch) -> Firmware:
    made = Firmware(LISTING)
    monkeypatch.setattr(boot_entry, "run", made.run)
    monkeypatch.setattr(boot_entry, "_place_of", lambda _: (Path("/dev/vda"), "1"))
    return made


def test_the_disk_comes_first_and_has_one_entry(firmware: Firmware) -> None:
    boot_entry.put_first(Path("/dev/vda1"))
    made, ordered = firmware.calls
    assert made.startswith("--quiet --create --disk /dev/vda --part 1 --label Kubermesh --loader \\EFI\\systemd\\")
    assert ordered == "--bootorder 0004,0001,0003,0000"
    firmware.calls.clear()
    boot_entry.put_first(Path("/dev/vda1"))
    assert firmware.calls == ["--bootorder 0004,0001,0003,0000"]


def test_the_entry_of_the_stick_is_not_taken_for_the_disks(firmware: Firmware) -> None:
    """As AMI's firmware makes it: the disk has the stick's partitions, their UUIDs as well."""
    path = f"PciRoot(0x0)/Pci(0x14,0x0)/USB(7,0)/HD(1,GPT,{ESP},0x800,0x100000)..BO"
    firmware.listing += f"Boot0005* UEFI: SanDisk, Partition 1\t{path}\n"
    boot_entry.put_first(Path("/dev/vda1"))
    assert "--create" in firmware.calls[0] and firmware.calls[1] == "--bootorder 0004,0001,0003,0000"


def test_a_disk_is_booted_once(firmware: Firmware) -> None:
    firmware.listing += OURS
    assert boot_entry.next_time(Path("/dev/vda1"))
    assert firmware.calls == ["--bootnext 0004"]


def test_firmware_that_keeps_nothing_is_left_alone(firmware: Firmware, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(argv: Sequence[Any], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(
            [*map(str, argv)], 2, ESP if argv[0] == "blkid" else "", "EFI variables are not supported"
        )

    monkeypatch.setattr(boot_entry, "run", fails)
    boot_entry.put_first(Path("/dev/vda1"))
    assert not boot_entry.next_time(Path("/dev/vda1"))

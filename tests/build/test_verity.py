"""A flipped bit anywhere in the root partition of the disk image is caught by verity."""

import json
import os
import random
import struct
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest
from builds import Project

from kmbuild import sandbox
from kmbuild.source import data_ranges
from kmplan.run import run

SECTOR, BLOCK = 512, 4096
ROOT = uuid.UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709")  # Discoverable Partitions Specification, x86-64
ROOT_VERITY = uuid.UUID("2c7357ed-ebd2-46d9-aec1-23d437ec2bf5")


@dataclass(frozen=True)
class Sealed:
    """Root and hash partition cut out of a disk image, and what it takes to verify them; `used` is the root's data in bytes."""

    data: Path
    hashes: Path
    roothash: str
    tools: Path
    used: int

    def verify(self) -> tuple[int, str]:
        argv = ["veritysetup", "verify", f"/build/{self.data.name}", f"/build/{self.hashes.name}", self.roothash]
        done = run(sandbox.in_tree(self.tools, argv, binds={self.data.parent: "/build"}), check=False)
        return done.returncode, done.stdout + done.stderr


def find_partition(disk: Path, kind: uuid.UUID) -> tuple[int, int]:
    """Offset and size in bytes of the first partition of a type (UEFI specification 5.3.3)."""
    with disk.open("rb") as file:
        file.seek(2 * SECTOR)
        table = file.read(128 * 128)
    for start in range(0, len(table), 128):
        if table[start : start + 16] == kind.bytes_le:
            first, last = struct.unpack_from("<QQ", table, start + 32)
            return first * SECTOR, (last - first + 1) * SECTOR
    raise AssertionError(f"no partition of type {kind}")


def cut(disk: Path, kind: uuid.UUID, target: Path) -> None:
    """Copy a partition out of a disk image, holes as holes."""
    offset, size = find_partition(disk, kind)
    with target.open("wb") as file, disk.open("rb") as source:
        file.truncate(size)
        for start, end in data_ranges(source.fileno(), offset + size):
            begin, stop = max(start, offset), min(end, offset + size)
            if begin < stop:
                source.seek(begin)
                file.seek(begin - offset)
                file.write(source.read(stop - begin))


@pytest.fixture(scope="module")
def sealed(built: Project, normal_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Sealed:
    manifest = json.loads((built.out / "manifest.json").read_text())
    disk = built.out / manifest["artefacts"]["raw"]["name"]
    folder = tmp_path_factory.mktemp("sealed")
    cut(disk, ROOT, folder / "root")
    cut(disk, ROOT_VERITY, folder / "hashes")
    tools = normal_cache / "stages/tools" / manifest["stages"]["tools"] / "root"
    used = manifest["artefacts"]["erofs"]["size"]
    return Sealed(folder / "root", folder / "hashes", manifest["roothash"], tools, used)


def flip_bit(path: Path, offset: int, bit: int) -> None:
    with path.open("r+b") as file:
        value = os.pread(file.fileno(), 1, offset)[0]
        os.pwrite(file.fileno(), bytes([value ^ 1 << bit]), offset)


def expect_caught(sealed: Sealed, path: Path, offset: int, bit: int) -> None:
    flip_bit(path, offset, bit)
    code, output = sealed.verify()
    flip_bit(path, offset, bit)
    assert code != 0, f"bit {bit} of byte {offset} of {path.name} was flipped and nobody noticed"
    assert "Verification of" in output or "Verification failed" in output, output


def test_the_image_as_built_verifies(sealed: Sealed) -> None:
    assert sealed.verify() == (0, "")


def test_the_root_partition_holds_the_root_file_system(sealed: Sealed, built: Project) -> None:
    erofs = next(built.out.glob("*.root.erofs"))
    with sealed.data.open("rb") as left, erofs.open("rb") as right:
        while chunk := right.read(4 << 20):
            assert left.read(len(chunk)) == chunk


@pytest.mark.parametrize("place", ["first block", "last data", "after the data", "last block", "random 1", "random 2"])
def test_a_flipped_bit_in_the_root_is_caught(sealed: Sealed, place: str) -> None:
    chance = random.Random(f"{sealed.roothash} {place}")  # noqa: S311 - the same image gives the same offsets
    size = sealed.data.stat().st_size
    offsets = {
        "first block": 0,
        "last data": sealed.used - 1,
        "after the data": chance.randrange(sealed.used, size),
        "last block": chance.randrange(size - BLOCK, size),
    }
    offset = offsets.get(place, chance.randrange(sealed.used))
    expect_caught(sealed, sealed.data, offset, chance.randrange(8))


def test_a_flipped_bit_in_the_hashes_is_caught(sealed: Sealed) -> None:
    expect_caught(sealed, sealed.hashes, BLOCK + 17, 3)


def test_another_root_hash_does_not_verify(sealed: Sealed) -> None:
    wrong = Sealed(sealed.data, sealed.hashes, sealed.roothash[::-1], sealed.tools, sealed.used)
    assert wrong.verify()[0] != 0

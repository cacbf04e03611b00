"""Block maps: what of an image has to be written, in bmaptool's format."""

import hashlib
import os
from pathlib import Path

import pytest

from kmbuild import bmap
from kmbuild.bmap import BLOCK, BlockMap, Range
from kmplan.errors import UserError


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Data at the begin, in the middle and at the end, which is no whole block; holes between."""
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.truncate(64 * BLOCK + 512)
        for offset, data in ((0, b"a" * 100), (16 * BLOCK, b"b" * 3 * BLOCK), (64 * BLOCK, b"c" * 512)):
            os.pwrite(file.fileno(), data, offset)
    return path


def test_a_map_has_what_is_in_the_image_and_no_holes(image: Path) -> None:
    made = bmap.make(image)
    data = image.read_bytes()
    assert made.size == len(data) and made.mapped < len(data) / 2
    assert [hashlib.sha256(data[one.start : one.end]).hexdigest() for one in made.ranges] == [
        one.sha256 for one in made.ranges
    ]
    outside = bytearray(data)
    for one in made.ranges:
        assert one.start % BLOCK == 0
        outside[one.start : one.end] = bytes(one.size)
    assert not any(outside)


def test_a_map_is_read_as_it_was_written(image: Path, tmp_path: Path) -> None:
    made = bmap.make(image)
    path = tmp_path / "disk.bmap"
    path.write_text(bmap.to_xml(made))
    assert bmap.read(path) == made


def test_parts_that_share_a_block_are_one() -> None:
    parts = [(10, 20), (BLOCK - 1, BLOCK + 1), (3 * BLOCK, 3 * BLOCK + 1), (9 * BLOCK, 9 * BLOCK + 5)]
    assert list(bmap.whole_blocks(iter(parts), 9 * BLOCK + 5)) == [
        (0, 2 * BLOCK),
        (3 * BLOCK, 4 * BLOCK),
        (9 * BLOCK, 9 * BLOCK + 5),
    ]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (" 0-", " 1-", "damaged"),
        ('version="2.0"', 'version="1.4"', "version 1.4"),
        (" sha256 ", " sha1 ", "with sha1"),
        ("</bmap>", "", "no block map"),
        ("ImageSize", "Size", "no block map"),
    ],
)
def test_what_is_no_good_map_is_refused(image: Path, tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / "disk.bmap"
    path.write_text(bmap.to_xml(bmap.make(image)).replace(old, new))
    with pytest.raises(UserError, match=said):
        bmap.read(path)


def test_a_single_block_may_be_written_without_a_dash(tmp_path: Path) -> None:
    text = bmap.to_xml(BlockMap(2 * BLOCK, [Range(0, BLOCK, "ab" * 32)]))
    checksum = text.split("<BmapFileChecksum> ")[1][:64]
    text = text.replace("0-0", "0").replace(checksum, "0" * 64)
    path = tmp_path / "disk.bmap"
    path.write_text(text.replace("0" * 64, hashlib.sha256(text.encode()).hexdigest(), 1))
    assert bmap.read(path).ranges == [Range(0, BLOCK, "ab" * 32)]

"""Block maps: which parts of a disk image have to be written, with a checksum each, as XML of bmaptool's format 2.0.

bmaptool's own description is in its `bmaptool/BmapCreate.py` and `BmapCopy.py` (https://github.com/yoctoproject/bmaptool).
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import msgspec

from kmbuild.source import data_ranges
from kmplan.errors import UserError

BLOCK = 4096
CHUNK = 4 << 20
VERSION = "2.0"
UNSIGNED = "0" * 64
TEMPLATE = """\
<?xml version="1.0" ?>
<!-- Which blocks of the disk image have to be written: bmaptool copy FILE DEVICE, or kmbuild flash. -->
<bmap version="{version}">
    <ImageSize> {size} </ImageSize>
    <BlockSize> {block} </BlockSize>
    <BlocksCount> {blocks} </BlocksCount>
    <MappedBlocksCount> {mapped} </MappedBlocksCount>
    <ChecksumType> sha256 </ChecksumType>
    <BmapFileChecksum> {checksum} </BmapFileChecksum>
    <BlockMap>
{ranges}
    </BlockMap>
</bmap>
"""


class Range(msgspec.Struct, frozen=True):
    """A part that holds data: its begin and end in bytes, and the SHA-256 (hex) of what is in it."""

    start: int
    end: int
    sha256: str

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start


class BlockMap(msgspec.Struct, frozen=True):
    """The map of an image of `size` bytes; parts that are not in `ranges` may hold anything."""

    size: int
    ranges: list[Range]

    @property
    def mapped(self) -> int:
        """Bytes that have to be written."""
        return sum(one.size for one in self.ranges)


def make(image: Path) -> BlockMap:
    """Map an image by the holes of its file."""
    with image.open("rb", buffering=0) as file:
        size = image.stat().st_size
        found = []
        for start, end in whole_blocks(data_ranges(file.fileno(), size), size):
            file.seek(start)
            digest = hashlib.sha256()
            for offset in range(start, end, CHUNK):
                digest.update(file.read(min(CHUNK, end - offset)))
            found.append(Range(start, end, digest.hexdigest()))
    return BlockMap(size, found)


def whole_blocks(ranges: Iterator[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    """Widen parts to whole blocks, and join those that meet then; the last block may be cut by the image's end."""
    begin = end = 0
    for start, stop in ranges:
        first, last = start // BLOCK * BLOCK, min(size, -(-stop // BLOCK) * BLOCK)
        if first > end:
            if end > begin:
                yield begin, end
            begin = first
        end = last
    if end > begin:
        yield begin, end


def to_xml(block_map: BlockMap) -> str:
    """Write a map down; its own checksum is that of the text with zeros in its place."""
    lines = [
        f'        <Range chksum="{one.sha256}"> {one.start // BLOCK}-{(one.end - 1) // BLOCK} </Range>'
        for one in block_map.ranges
    ]
    text = TEMPLATE.format(
        version=VERSION, size=block_map.size, block=BLOCK, blocks=-(-block_map.size // BLOCK),
        mapped=sum(-(-one.size // BLOCK) for one in block_map.ranges), checksum=UNSIGNED, ranges="\n".join(lines),
    )  # fmt: skip
    return text.replace(UNSIGNED, hashlib.sha256(text.encode()).hexdigest(), 1)


def beside(image: Path) -> Path:
    """Where the map of an image is."""
    return image.with_name(f"{image.name}.bmap")


def read(path: Path) -> BlockMap:
    """Read a map; UserError when it is damaged, or of another kind."""
    try:
        text = path.read_bytes().decode()
        root = ElementTree.fromstring(text)  # noqa: S314 - checked against its own checksum below, and without entities
        words = {child.tag: (child.text or "").strip() for child in root}
        size, block = int(words["ImageSize"]), int(words["BlockSize"])
        ranges = [
            Range(int(first) * block, min(size, (int(last or first) + 1) * block), one.get("chksum", ""))
            for one in root.iterfind("BlockMap/Range")
            for first, _, last in [(one.text or "").strip().partition("-")]
        ]
        kind, checksum = words["ChecksumType"], words["BmapFileChecksum"]
    except (OSError, ValueError, KeyError, ElementTree.ParseError) as error:
        raise UserError(f"{path}: no block map: {error}", "build the image again") from error
    if root.get("version") != VERSION or kind != "sha256":
        raise UserError(
            f"{path}: a block map of version {root.get('version')} with {kind}", "it has to be 2.0 with sha256"
        )
    if hashlib.sha256(text.replace(checksum, UNSIGNED, 1).encode()).hexdigest() != checksum:
        raise UserError(f"{path}: the block map is damaged", "copy or build it again")
    return BlockMap(size, ranges)

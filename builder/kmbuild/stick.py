"""Writes a disk image onto a drive, what has to be written of it, and reads it back.

The partition table and its copy come last, when all else is there and right: whatever happens before leaves nothing that boots.
"""

import contextlib
import errno
import fcntl
import hashlib
import mmap
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from kmbuild import bmap, esp
from kmbuild.bmap import BlockMap, Range
from kmcluster.image import Image
from kmplan.errors import UserError

# All of the partition table, and of its copy at the end (UEFI 2.10, 5.3), and some room; partitions begin after it.
HEAD = 1 << 20
CHUNK = 4 << 20
FILE_BYTES = 8 << 30
BLKRRPART, BLKFLSBUF = 0x125F, 0x1261  # linux/fs.h

Report = Callable[[str, int, int], None]


class Ends:
    """The first and the last MiB of an image of `size` bytes, with a partition table each, until they are written.

    No partition that anything is added to reaches into them.
    """

    def __init__(self, size: int) -> None:
        self.tail_start = max(HEAD, (size - HEAD) // mmap.PAGESIZE * mmap.PAGESIZE)
        self.head, self.tail = bytearray(HEAD), bytearray(max(0, size - self.tail_start))

    def keep(self, offset: int, piece: memoryview) -> None:
        """Keep what a piece of the image has of them."""
        for start, kept in ((0, self.head), (self.tail_start, self.tail)):
            first, last = max(offset, start), min(offset + len(piece), start + len(kept))
            if first < last:
                kept[first - start : last - start] = piece[first - offset : last - offset]

    def between(self, one: Range) -> Range:
        """What is neither, of a part of the image."""
        start, end = (min(max(place, HEAD), self.tail_start) for place in (one.start, one.end))
        return Range(start, end, "")


@dataclass(frozen=True)
class Result:
    """Bytes that were written, and how long that and reading them back took, in seconds."""

    written: int
    write_s: float
    verify_s: float


def make_file(image: Image, path: Path, credentials: Mapping[str, bytes]) -> None:
    """Make a stick for a virtual machine: a file with holes, as large as sticks are."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        file.truncate(FILE_BYTES)
    offset = esp.find(image.raw)

    def finish(target: Path) -> None:
        esp.put(image.tools, target, offset, credentials)

    write(image.raw, bmap.read(bmap.beside(image.raw)), partial, finish, lambda *_: None)
    partial.rename(path)


def write(image: Path, block_map: BlockMap, target: Path, finish: Callable[[Path], None], report: Report) -> Result:
    """Write an image, verify it, have `finish` add to it, and make it bootable.

    `report` is told what is done now, and how many bytes of how many. Raises UserError in one line for an image that is not
    what its map says, and for a drive that is full, fails, vanishes or returns something else than was written.
    """
    if image.stat().st_size != block_map.size:
        raise UserError(
            f"{image}: {image.stat().st_size} bytes, its map says {block_map.size}", "copy or build it again"
        )
    start = time.monotonic()
    with opened(target) as device, image.open("rb", buffering=0) as source, failures(target), cleared(device):
        ends = copy(source.fileno(), device, target, image, block_map, report)
        os.fsync(device)
        written = time.monotonic()
        verify(device, target, ends, block_map.ranges, report)
        verified = time.monotonic()
        finish(target)
        for offset, data in ((ends.tail_start, ends.tail), (0, ends.head)):
            os.pwrite(device, data, offset)
            os.fsync(device)
            if read_back(device, offset, len(data)) != data:
                raise UserError(f"{target}: does not keep what is written to it", "it is broken: take another drive")
        settle(device)
    return Result(block_map.mapped, written - start, verified - written)


@contextlib.contextmanager
def opened(target: Path) -> Iterator[int]:
    """The drive for nobody else: the kernel refuses one that is mounted (O_EXCL on a block device, open(2))."""
    try:
        exclusive = os.O_EXCL if stat.S_ISBLK(target.stat().st_mode) else 0
        device = os.open(target, os.O_RDWR | os.O_CLOEXEC | exclusive)
    except OSError as error:
        hint = "unmount it first" if error.errno == errno.EBUSY else "is it the right one, and may you write to it?"
        raise UserError(f"{target}: {error.strerror}", hint) from error
    try:
        yield device
    finally:
        with contextlib.suppress(OSError):
            os.close(device)


@contextlib.contextmanager
def failures(target: Path) -> Iterator[None]:
    """Say in one line what a drive's error means."""
    meaning = {
        errno.ENOSPC: "it is full, or smaller than it says",
        errno.EIO: "it fails: take another drive",
        errno.ENODEV: "it was pulled out: begin again",
        errno.ENXIO: "it was pulled out: begin again",
    }
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{target}: {error.strerror}", meaning.get(error.errno or 0, "nothing on it boots now")
        ) from error


@contextlib.contextmanager
def cleared(device: int) -> Iterator[None]:
    """Take away what would boot, and whatever has come there since when this ends by an exception, such as Ctrl-C."""
    try:
        clear(device)
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            clear(device)
        raise


def clear(device: int) -> None:
    """Take away the partition table and its copy."""
    size = os.lseek(device, 0, os.SEEK_END)
    os.pwrite(device, bytes(min(HEAD, size)), 0)
    if size > HEAD:
        os.pwrite(device, bytes(HEAD), size - HEAD)
    os.fsync(device)


def copy(source: int, device: int, target: Path, image: Path, block_map: BlockMap, report: Report) -> Ends:
    """Copy all but the ends, which are returned; each piece is checked while it is written and the next one read."""
    ends, done = Ends(block_map.size), 0
    with direct(target, os.O_WRONLY) as writer, ThreadPoolExecutor(1) as checker:
        for one in block_map.ranges:
            digest = hashlib.sha256()
            for offset, piece in pieces(source, image, one):
                checked = checker.submit(digest.update, piece)
                ends.keep(offset, piece)
                middle = piece[max(0, HEAD - offset) : max(0, ends.tail_start - offset)]
                put(writer, device, middle, max(HEAD, offset))
                checked.result()
                done += len(piece)
                report("writing", done, block_map.mapped)
            if digest.hexdigest() != one.sha256:
                raise UserError(
                    f"{image}: altered or damaged between {one.start} and {one.end}", "copy or build it again"
                )
    return ends


def put(writer: int, device: int, piece: memoryview, offset: int) -> None:
    """Write a piece past the page cache; through it what is no whole page, and where the file system wants it so."""
    while piece:
        whole = len(piece) // mmap.PAGESIZE * mmap.PAGESIZE
        try:
            count = os.pwrite(writer, piece[:whole], offset) if whole else os.pwrite(device, piece, offset)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            count = os.pwrite(device, piece, offset)
        piece, offset = piece[count:], offset + count


def pieces(file: int, path: Path, one: Range) -> Iterator[tuple[int, memoryview]]:
    """Read a part piece by piece, with its offset: the next is read while one is used, which is of use until then.

    A file that ends too early gives less.
    """
    memory = memoryview(mmap.mmap(-1, 2 * CHUNK))
    buffers = [memory[:CHUNK], memory[CHUNK:]]
    with ThreadPoolExecutor(1) as reader:

        def read(offset: int) -> memoryview:
            buffer, length = buffers[(offset - one.start) // CHUNK % 2], min(CHUNK, one.end - offset)
            return buffer[
                : min(length, os.preadv(file, [buffer[: -(-length // mmap.PAGESIZE) * mmap.PAGESIZE]], offset))
            ]

        offsets = range(one.start, one.end, CHUNK)
        ahead = reader.submit(read, one.start)
        for offset in offsets:
            with failures(path):
                piece = ahead.result()
            if offset + CHUNK in offsets:
                ahead = reader.submit(read, offset + CHUNK)
            yield offset, piece


def verify(device: int, target: Path, ends: Ends, ranges: list[Range], report: Report) -> None:
    """Read back what was written, from the drive and not from memory; UserError where it is something else.

    The ends are not there yet, but count for the checksum of what they are parts of.
    """
    rest = [(one, ends.between(one)) for one in ranges]
    total, done = sum(part.size for _, part in rest), 0
    forget(device)
    with direct(target, os.O_RDONLY) as reader:
        for one, part in rest:
            digest = hashlib.sha256(ends.head[one.start : one.end])
            for offset, piece in pieces(reader, target, part):
                if len(piece) < min(CHUNK, part.end - offset):
                    raise UserError(f"{target}: ends before {part.end}", "it is smaller than it says")
                digest.update(piece)
                done += len(piece)
                report("verifying", done, total)
            digest.update(ends.tail[max(0, one.start - ends.tail_start) : max(0, one.end - ends.tail_start)])
            if digest.hexdigest() != one.sha256:
                raise UserError(
                    f"{target}: between {one.start} and {one.end} there is something else than was written",
                    "it is broken: take another drive",
                )


@contextlib.contextmanager
def direct(target: Path, mode: int) -> Iterator[int]:
    """Past the page cache, where the file system can (O_DIRECT, open(2)): buffers and offsets have to be whole pages."""
    try:
        file = os.open(target, mode | os.O_CLOEXEC | os.O_DIRECT)
    except OSError:
        file = os.open(target, mode | os.O_CLOEXEC)
    try:
        yield file
    finally:
        os.close(file)


def read_back(device: int, offset: int, length: int) -> bytes:
    """Read a piece from the drive."""
    forget(device)
    return os.pread(device, length, offset)


def forget(device: int) -> None:
    """Have the kernel forget what it has in memory of the drive."""
    os.posix_fadvise(device, 0, 0, os.POSIX_FADV_DONTNEED)
    if stat.S_ISBLK(os.fstat(device).st_mode):
        fcntl.ioctl(device, BLKFLSBUF)


def settle(device: int) -> None:
    """Have the kernel read the new partition table, so that the drive can be pulled out."""
    if stat.S_ISBLK(os.fstat(device).st_mode):
        with contextlib.suppress(OSError):
            fcntl.ioctl(device, BLKRRPART)

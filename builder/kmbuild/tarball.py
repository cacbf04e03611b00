"""Pieces of a tar that are joined by appending: each has no end mark, names in order, one time stamp, root as the owner."""

import io
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

END = bytes(2 * tarfile.BLOCKSIZE)


@contextmanager
def write_piece(target: Path) -> Iterator[tarfile.TarFile]:
    """Open a piece for writing; it is left without the two zero blocks that end a tar."""
    with target.open("wb") as file:
        yield tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 - not closed: that would end it


def open_piece(source: Path) -> tarfile.TarFile:
    """Open a piece for reading (a missing end mark is no error to tarfile)."""
    return tarfile.open(source, "r:")


def join(pieces: Sequence[Path], target: Path) -> None:
    """Append pieces to one tar, in order, and end it. A hard link's target must be in the same or an earlier piece."""
    with target.open("wb") as out:
        for piece in pieces:
            with piece.open("rb") as file:
                shutil.copyfileobj(file, out, 4 << 20)
        out.write(END)


def member(name: str, kind: bytes, mode: int, epoch: int) -> tarfile.TarInfo:
    """Make a member owned by root with a fixed time."""
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.mtime = kind, mode, epoch
    return info


def add_folder(tar: tarfile.TarFile, name: str, epoch: int, mode: int = 0o755) -> None:
    """Add a folder."""
    tar.addfile(member(name, tarfile.DIRTYPE, mode, epoch))


def add_file(tar: tarfile.TarFile, name: str, source: Path | bytes, epoch: int, mode: int = 0o644) -> None:
    """Add a regular file from the host or from memory."""
    info = member(name, tarfile.REGTYPE, mode, epoch)
    if isinstance(source, bytes):
        info.size = len(source)
        tar.addfile(info, io.BytesIO(source))
        return
    info.size = source.stat().st_size
    with source.open("rb") as file:
        tar.addfile(info, file)


def add_link(tar: tarfile.TarFile, name: str, target: str, epoch: int, *, hard: bool = False) -> None:
    """Add a symbolic link, or with `hard` another name of a file."""
    info = member(name, tarfile.LNKTYPE if hard else tarfile.SYMTYPE, 0o755 if hard else 0o777, epoch)
    info.linkname = target
    tar.addfile(info)

"""Files written so that a crash leaves the old or the new one."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def write(path: Path, data: bytes | str, mode: int = 0o644, owner: int | None = None) -> None:
    """Write a file as a whole or not at all: temporary name, fsync, rename, fsync of the folder.

    `owner` is the uid and gid to give it to before it gets its name.
    """
    if isinstance(data, str):
        data = data.encode()
    with whole(path) as file:
        file.write(data)
        if owner is not None:
            os.fchown(file.fileno(), owner, owner)
        os.fchmod(file.fileno(), mode)


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A file, readable by its owner only, that gets its name when all of it is on the disk; none when the block fails."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(descriptor)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make renames in a folder survive a power cut (fsync(2) of the folder itself)."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_if_changed(path: Path, data: bytes | str, mode: int = 0o644, owner: int | None = None) -> bool:
    """Write a file unless it already has this content, mode and owner; tells whether it was written."""
    if isinstance(data, str):
        data = data.encode()
    try:
        status = path.stat()
        same_owner = owner is None or (status.st_uid, status.st_gid) == (owner, owner)
        if path.read_bytes() == data and status.st_mode & 0o7777 == mode and same_owner:
            return False
    except FileNotFoundError:
        pass
    write(path, data, mode, owner)
    return True

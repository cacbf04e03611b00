"""Where the parts lie that go into an image: elements/, overlays/, components/, and the agent's own packages."""

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import kmagent
import kmplan
from kmplan.errors import UserError

IGNORED = {"__pycache__", ".mypy_cache", ".ruff_cache"}


def folder(name: str) -> Path:
    """Path of elements, overlays or components in the checkout that kmbuild runs from."""
    place = Path(__file__).resolve().parents[2] / name
    if not place.is_dir():
        raise UserError(f"{place}: not found", "kmbuild runs from a checkout: install it there with `make setup`")
    return place


def agent_packages() -> list[Path]:
    """Folders of the Python packages that a node runs."""
    return [Path(next(iter(package.__path__))) for package in (kmagent, kmplan)]


def files(root: Path) -> list[Path]:
    """All files and symlinks under a folder, sorted, without caches."""
    found: list[Path] = []
    for place, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in IGNORED)
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        found += [Path(place) / name for name in sorted(names + links) if not name.endswith(".pyc")]
    return sorted(found)


def digest(root: Path) -> str:
    """Hash of a folder: names, whether a file is executable, link targets and contents; no times, no owners."""
    total = hashlib.sha256()
    for path in files(root):
        status = path.lstat()
        is_link = stat.S_ISLNK(status.st_mode)
        kind = "link" if is_link else "program" if status.st_mode & 0o100 else "file"
        content = str(path.readlink()).encode() if is_link else path.read_bytes()
        total.update(f"{path.relative_to(root)}\0{kind}\0{hashlib.sha256(content).hexdigest()}\n".encode())
    return total.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hex. Holes of a sparse file are not read."""
    total, chunk = hashlib.sha256(), 4 << 20
    zeros = bytes(chunk)
    with path.open("rb", buffering=0) as file:
        size, position = os.fstat(file.fileno()).st_size, 0
        for start, end in data_ranges(file.fileno(), size):
            for offset in range(position, start, chunk):
                total.update(memoryview(zeros)[: min(chunk, start - offset)])
            file.seek(start)
            for offset in range(start, end, chunk):
                total.update(file.read(min(chunk, end - offset)))
            position = end
        for offset in range(position, size, chunk):
            total.update(memoryview(zeros)[: min(chunk, size - offset)])
    return total.hexdigest()


def data_ranges(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of the parts of a file that hold data (lseek(2) SEEK_DATA, SEEK_HOLE), in bytes."""
    position = 0
    while position < size:
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError:  # ENXIO: a hole up to the end
            return
        position = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, position

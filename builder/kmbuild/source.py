"""Where the parts lie that go into an image: elements/, overlays/, components/, and the agent's own packages."""

import hashlib
import os
import stat
from pathlib import Path

import kmagent
import kmplan
from kmplan.errors import UserError

IGNORED = {"__pycache__", ".mypy_cache", ".ruff_cache"}


def folder(name: str) -> Path:
    """Path of elements, overlays or components: in an installed wheel, else in the checkout."""
    here = Path(__file__).resolve().parent
    for place in (here / "share" / name, here.parent.parent / name):
        if place.is_dir():
            return place
    raise UserError(f"{name}/: not found beside kmbuild", "run kmbuild from a checkout or reinstall it")


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
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

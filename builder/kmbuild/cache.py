"""Finished stages, kept by content id.

`<cache>/stages/<stage>/<id>/` holds a stage's files and `entry.json` (inputs, file sizes and hashes). An entry appears by
one rename, so it is whole or absent; what an interrupted build left in `<cache>/tmp` goes with the next build.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from kmbuild.source import file_digest
from kmplan import document
from kmplan.errors import UserError

ENTRY = "entry.json"


class FileRecord(msgspec.Struct, frozen=True):
    """One file of an entry: size in bytes, SHA-256 in hex."""

    size: int
    sha256: str


class Entry(msgspec.Struct, frozen=True):
    """What is known of a finished stage; `built` in seconds since 1970, `seconds` the time that it took,
    `disk_bytes` what it takes on disk, holes not counted.
    """

    stage: str
    id: str
    inputs: dict[str, str]
    files: dict[str, FileRecord]
    built: float
    seconds: float
    disk_bytes: int


class Cache:
    """The build cache in one folder, shared by builds that run at the same time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stages = path / "stages"
        self.tmp = path / "tmp"
        self.logs = path / "logs"
        self.used: set[Path] = set()
        for folder in (self.stages, self.tmp, self.logs, path / "locks"):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(
                    f"{folder}: {error.strerror}", "set cache.path in kubermesh.yaml to a folder you can write"
                ) from error

    def place(self, stage: str, content_id: str) -> Path:
        """Folder of an entry, there or not."""
        return self.stages / stage / content_id

    def find(self, stage: str, content_id: str) -> Entry | None:
        """Look an entry up; one that is damaged (file missing or of another size) is removed and counts as absent."""
        folder = self.place(stage, content_id)
        try:
            entry = msgspec.json.decode((folder / ENTRY).read_bytes(), type=Entry)
        except FileNotFoundError:
            return None
        except (msgspec.MsgspecError, OSError):
            entry = None
        if entry is None or not all(self._has_size(folder / name, record) for name, record in entry.files.items()):
            shutil.rmtree(folder, ignore_errors=True)
            return None
        os.utime(folder / ENTRY)
        self.used.add(folder)
        return entry

    @staticmethod
    def _has_size(path: Path, record: FileRecord) -> bool:
        return path.is_file() and path.stat().st_size == record.size

    def damaged(self, entry: Entry) -> list[str]:
        """Names of an entry's files whose content is not what was written (reads them all)."""
        folder = self.place(entry.stage, entry.id)
        return [name for name, record in entry.files.items() if file_digest(folder / name) != record.sha256]

    def remove(self, entry: Entry) -> None:
        """Forget an entry."""
        shutil.rmtree(self.place(entry.stage, entry.id))

    def store(
        self, stage: str, content_id: str, inputs: dict[str, str], work: Path, start: float, hashes: Mapping[str, str]
    ) -> Entry:
        """Move a finished work folder into the cache. Regular files at its top are recorded, and checked later.

        `start` is the monotonic time at which the stage began; `hashes` are SHA-256 sums that are known already.
        """
        names = sorted(path.name for path in work.iterdir() if path.is_file())
        files = {
            name: FileRecord((work / name).stat().st_size, hashes.get(name) or file_digest(work / name))
            for name in names
        }
        entry = Entry(stage, content_id, inputs, files, time.time(), time.monotonic() - start, disk_usage(work))
        for name in names:
            with (work / name).open("rb") as file:
                os.fsync(file.fileno())
        document.write(work / ENTRY, msgspec.json.format(msgspec.json.encode(entry)))
        target = self.place(stage, content_id)
        target.parent.mkdir(parents=True, exist_ok=True)
        work.rename(target)
        self.used.add(target)
        return entry

    def newest(self, stage: str) -> Entry | None:
        """The entry of a stage that was used last: what a rebuild is compared with."""
        entries = [entry for entry in self.entries() if entry.stage == stage]
        return max(entries, key=lambda entry: (self.place(stage, entry.id) / ENTRY).stat().st_mtime, default=None)

    def entries(self) -> list[Entry]:
        """All readable entries."""
        found = []
        for path in sorted(self.stages.glob(f"*/*/{ENTRY}")):
            try:
                found.append(msgspec.json.decode(path.read_bytes(), type=Entry))
            except (msgspec.MsgspecError, OSError):
                continue
        return found

    @contextmanager
    def lock(self, name: str, waiting: str = "") -> Iterator[None]:
        """Hold a named lock; a second build waits here. The kernel frees it when the process ends, however it ends."""
        with (self.path / "locks" / name).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if waiting:
                    print(waiting, flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def workspace(self, name: str) -> Iterator[Path]:
        """Give an empty folder for a stage's work, gone at the end unless it was stored.

        Its name carries the process id under a lock, so that `sweep` can tell a dead build's folder from a live one.
        """
        folder = self.tmp / f"{name}.{os.getpid()}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o755)
        with (self.tmp / f"{folder.name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
                Path(file.name).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what builds that were killed left in the work folder."""
        for lock in self.tmp.glob("*.lock"):
            with lock.open("a") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                lock.unlink(missing_ok=True)

    def full_disk(self) -> Path | None:
        """The cache's folder when its file system is full to the last 16 MiB, else None."""
        status = os.statvfs(self.path)
        return self.path if status.f_bavail * status.f_frsize < 16 << 20 else None

    def evict(self, limit_bytes: int) -> list[Entry]:
        """Remove entries, the least recently used first, until the stages fit; never one that this build used."""
        entries = {self.place(entry.stage, entry.id): entry for entry in self.entries()}
        total = sum(entry.disk_bytes for entry in entries.values())
        removed = []
        for folder in sorted(entries, key=lambda folder: (folder / ENTRY).stat().st_mtime):
            if total <= limit_bytes:
                break
            if folder not in self.used:
                self.remove(entries[folder])
                removed.append(entries[folder])
                total -= entries[folder].disk_bytes
        return removed


def disk_usage(folder: Path) -> int:
    """Bytes on disk below a folder, holes not counted."""
    return sum((Path(place) / name).lstat().st_blocks * 512 for place, _, names in os.walk(folder) for name in names)

"""Carried into a machine: spoils bytes of one file below /var, as a dying disk does.

`corrupt.py [PATH]`; without a path etcd's newest write-ahead log, or else its database. Prints {"file", "size",
"offsets"}: where it was overwritten with `NOISE`. Only what has content is spoiled: a log is allocated in advance, and
the zeros at its end mean nothing.
"""

# ruff: noqa: PTH118, PTH123, PTH202, PTH207, PTH113
import glob
import json
import os
import sys

VAR = "/var"
ETCD = f"{VAR}/lib/kubermesh/etcd/member"
NOISE = bytes(range(0xA0, 0xE0))
CHUNK = 1 << 20


def choose() -> str:
    """The newest log of etcd's, or its database."""
    logs = sorted(glob.glob(f"{ETCD}/wal/*.wal"), key=os.path.getmtime)
    return logs[-1] if logs else f"{ETCD}/snap/db"


def check(path: str) -> str:
    """The file's true path; ends the script when it is none below /var."""
    real = os.path.realpath(os.path.join(VAR, path))
    if not real.startswith(f"{VAR}/"):
        sys.exit(f"{path}: not below {VAR}")
    if not os.path.isfile(real):
        sys.exit(f"{real}: no such file")
    return real


def content_size(path: str) -> int:
    """Size of a file without the zeros at its end."""
    end = os.path.getsize(path)
    with open(path, "rb") as file:
        while end > 0:
            start = max(0, end - CHUNK)
            file.seek(start)
            rest = file.read(end - start).rstrip(b"\0")
            if rest:
                return start + len(rest)
            end = start
    return 0


def spoil(path: str) -> list[int]:
    """Overwrite the file at a quarter, a half and three quarters of its content; returns the offsets."""
    size = content_size(path)
    if size == 0:
        sys.exit(f"{path}: has no content")
    offsets = sorted({size * quarter // 4 for quarter in (1, 2, 3)})
    with open(path, "r+b", buffering=0) as file:
        for offset in offsets:
            file.seek(offset)
            file.write(NOISE[: size - offset])
        os.fsync(file.fileno())
    return offsets


if __name__ == "__main__":
    try:
        path = check(sys.argv[1] if len(sys.argv) > 1 else choose())
        print(json.dumps({"file": path, "size": os.path.getsize(path), "offsets": spoil(path)}))
    except OSError as error:
        sys.exit(f"{error.filename or VAR}: {error.strerror}")

"""Carried into a machine: leaves no byte free on /var, or gives them back.

`fill.py fill|free`; prints {"bytes": size of the ballast}. The ballast is allocated but never written: a disk that is
a file with holes on the host takes nothing more of it.
"""

# ruff: noqa: PTH108
import errno
import json
import os
import sys

BALLAST = "/var/.kubermesh-bench-ballast"
SMALLEST = 4096


def fill() -> int:
    """Make the ballast as big as it can be, for good; returns its size in bytes."""
    descriptor = os.open(BALLAST, os.O_WRONLY | os.O_CREAT, 0o600)
    size, step = os.fstat(descriptor).st_size, 1 << 32
    while step >= SMALLEST:
        try:
            os.posix_fallocate(descriptor, size, step)
            size += step
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            # Of what did not fit a part may be there.
            os.ftruncate(descriptor, size)
            step //= 2
    os.fsync(descriptor)
    os.close(descriptor)
    sync_folder()
    return size


def free() -> int:
    """Remove the ballast for good."""
    if os.path.lexists(BALLAST):
        os.unlink(BALLAST)
    sync_folder()
    return 0


def sync_folder() -> None:
    """A power cut or an error of the disk right after this neither takes the ballast away nor brings it back."""
    folder = os.open("/var", os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


if __name__ == "__main__":
    try:
        print(json.dumps({"bytes": fill() if sys.argv[1] == "fill" else free()}))
    except OSError as error:
        sys.exit(f"/var: {error.strerror}")

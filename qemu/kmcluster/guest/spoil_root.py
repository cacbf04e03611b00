"""Carried into a virtual machine: spoils blocks of the root partition below dm-verity, as a dying disk does.

`spoil_root.py spoil` overwrites the beginning of a file that nothing on the machine needs, where it is on the partition, and
prints {"file", "offset"}. `check` reads that file past all caches: {"error": errno, 0 when it was read}. `repair` puts back
what was there.
"""

# ruff: noqa: PTH116, PTH118, PTH123, PTH202, PTH208
import array
import fcntl
import json
import os
import struct
import sys

# linux/fs.h and linux/fiemap.h: FS_IOC_FIEMAP is _IOWR('f', 11, struct fiemap); one extent of 56 bytes follows its 32.
FIEMAP, HEADER, EXTENT = 0xC020660B, "=QQLLLL", "=QQQQQLLLL"
BLOCK = 4096
NOISE = bytes(range(256)) * (BLOCK // 256)
KEPT = "/run/spoiled-root.json"
# A voter's etcd is what a worker has on its disk and never runs.
UNUSED, ENOUGH = "etcd", 1 << 20


def choose() -> str:
    """A large file that is not in use here."""
    for folder, _, names in os.walk("/usr"):
        path = os.path.join(folder, UNUSED)
        if UNUSED in names and os.path.getsize(path) > ENOUGH:
            return path
    sys.exit(f"no file {UNUSED} in /usr")


def place(path: str) -> int:
    """Where on its file system's device a file begins, in bytes."""
    request = array.array("B", struct.pack(HEADER, 0, os.path.getsize(path), 0, 0, 1, 0) + bytes(56))
    with open(path, "rb") as file:
        fcntl.ioctl(file, FIEMAP, request)
    if struct.unpack_from(HEADER, request)[3] < 1:
        sys.exit(f"{path}: is nowhere on the disk")
    physical: int = struct.unpack_from(EXTENT, request, struct.calcsize(HEADER))[1]
    return physical // BLOCK * BLOCK


def device() -> str:
    """The partition below the root's dm-verity: of data and hashes the larger one."""
    number = os.stat("/usr").st_dev
    slaves = f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/slaves"
    return "/dev/" + max(os.listdir(slaves), key=lambda name: size(f"{slaves}/{name}"))


def size(folder: str) -> int:
    """How large a device is, in sectors."""
    with open(f"{folder}/size") as file:
        return int(file.read())


def overwrite(path: str, offset: int, data: bytes) -> bytes:
    """Write to a device, past what is mounted; returns what was there."""
    with open(path, "r+b", buffering=0) as file:
        before = os.pread(file.fileno(), len(data), offset)
        os.pwrite(file.fileno(), data, offset)
        os.fsync(file.fileno())
    return before


def read(path: str) -> int:
    """Read a file from the disk; returns the error's number, 0 when there was none."""
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3")
    try:
        with open(path, "rb") as file:
            while file.read(BLOCK * 256):
                pass
    except OSError as error:
        return error.errno or -1
    return 0


def main(action: str) -> dict[str, object]:
    """Do it."""
    if action == "spoil":
        path, disk = choose(), device()
        offset = place(path)
        before = overwrite(disk, offset, NOISE)
        with open(KEPT, "w") as file:
            json.dump({"file": path, "device": disk, "offset": offset, "data": before.hex()}, file)
        return {"file": path, "offset": offset}
    with open(KEPT) as file:
        kept = json.load(file)
    if action == "repair":
        overwrite(kept["device"], kept["offset"], bytes.fromhex(kept["data"]))
    return {"file": kept["file"], "error": read(kept["file"])}


if __name__ == "__main__":
    try:
        print(json.dumps(main(sys.argv[1])))
    except OSError as error:
        sys.exit(f"{error.filename or 'the root partition'}: {error.strerror}")

"""Boot images: kernel, initrd and a command line with the root's hash, in one file (unified kernel image)."""

import hashlib
from pathlib import Path

# Where the root has the digest of the boot image that starts it.
DIGEST = "usr/lib/kubermesh/boot-image.sha256"
# The root's hash is not known yet when that digest is put into the root.
NO_HASH = "0" * 64


def digest(path: Path, roothash: str) -> str:
    """Return the SHA-256 (hex) of a boot image with nothing in the place of its root hash.

    So the root, which is sealed by that hash, can say which boot image is its own.
    """
    data = path.read_bytes()
    return hashlib.sha256(data.replace(f"roothash={roothash}".encode(), f"roothash={NO_HASH}".encode())).hexdigest()

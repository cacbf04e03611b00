"""Carried into a machine: changes one bit wherever a text is in a file, which stays readable, as memory does that forgets.

`alter.py PATH TEXT` flips the lowest bit of the text's last byte. Prints {"file", "offsets"}; to have none is an error.
"""

# ruff: noqa: PTH123
import json
import os
import sys


def places(data: bytes, text: bytes) -> list[int]:
    """Where a text is."""
    found, at = [], data.find(text)
    while at >= 0:
        found.append(at)
        at = data.find(text, at + len(text))
    return found


def alter(path: str, text: bytes) -> list[int]:
    """Change the file; returns the offsets of what was changed."""
    with open(path, "r+b", buffering=0) as file:
        found = places(file.read(), text)
        for at in found:
            file.seek(at + len(text) - 1)
            file.write(bytes([text[-1] ^ 1]))
        os.fsync(file.fileno())
    return found


if __name__ == "__main__":
    try:
        offsets = alter(sys.argv[1], sys.argv[2].encode())
    except OSError as error:
        sys.exit(f"{error.filename}: {error.strerror}")
    if not offsets:
        sys.exit(f"{sys.argv[1]}: without {sys.argv[2]}")
    print(json.dumps({"file": sys.argv[1], "offsets": offsets}))

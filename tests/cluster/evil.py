"""A neighbour that lies: says hello like a node, offers this very image, and sends something else.

Arguments: port, the image's folder, the file with the authority of the cluster that it claims to be of, its name, and what is
false: `data`, `hashes`, `flat` (the hashes of the hashes are those of a short root, which it does not send) or `nothing`; or it
offers another image, `newer`. That it may is signed with `identity.key` beside the authority, if that is there.
"""

import hashlib
import http.server
import json
import re
import socket
import struct
import sys
import threading
import time
from pathlib import Path

from kmagent import provide
from kmplan import pki

HELLO, GROUP, HTTP = 9441, "ff12::6b6d", 9445
# What is false comes after a good piece.
GOOD = 8 << 20
# dm-verity's superblock (Documentation/admin-guide/device-mapper/verity.rst): where the number of blocks is.
BLOCK, PER_BLOCK, BLOCKS = 4096, 128, 72
OTHER_ROOT = "cd" * 32


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as a node does, nearly."""

    def do_GET(self) -> None:
        """Answer one request."""
        artefacts = manifest["artefacts"]
        if self.path.startswith("/v1/offer?nonce="):
            root_bytes = BLOCK * flat_blocks() if spoil == "flat" else artefacts["erofs"]["size"]
            sizes = {"root_bytes": root_bytes, "hash_bytes": artefacts["verity"]["size"]}
            join = {"version": 1, "name": name, "authority": authority.read_text()}
            said = {"node": "evil\x1b[2J", "version": "9.9.9", "roothash": roothash(), "join": join}
            data, status = json.dumps({**said, **sizes, **proof(self.path.partition("=")[2], join)}).encode(), 200
        elif self.path == "/v1/root" and spoil == "flat":
            data, status = b"", 503
        else:
            kind = {"/v1/root": "erofs", "/v1/hashes": "verity", "/kubermesh.efi": "uki"}[self.path]
            data, status = bytearray((folder / artefacts[kind]["name"]).read_bytes()), 200
            if kind == "uki":
                data = boot()
            if kind == "verity" and spoil == "hashes":
                data[9000] ^= 1
            if kind == "verity" and spoil == "flat":
                struct.pack_into("<Q", data, BLOCKS, flat_blocks())
            if kind == "erofs" and spoil == "data":
                data[GOOD] ^= 1
            if found := re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
                data, status = data[int(found[1]) : int(found[2]) + 1], 206
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def roothash() -> str:
    """Return the root hash that is offered."""
    return OTHER_ROOT if spoil == "newer" else str(manifest["roothash"])


def boot() -> bytes:
    """Return the boot image that is offered."""
    data = (folder / manifest["artefacts"]["uki"]["name"]).read_bytes()
    return data.replace(manifest["roothash"].encode(), roothash().encode())


def flat_blocks() -> int:
    """Return how many blocks the lowest level of the hashes has."""
    verity = (folder / manifest["artefacts"]["verity"]["name"]).read_bytes()
    blocks: int = struct.unpack_from("<Q", verity, BLOCKS)[0]
    return -(-blocks // PER_BLOCK)


def proof(nonce: str, join: dict[str, object]) -> dict[str, str]:
    """Return what a node says of its system, signed."""
    key, certificate = authority.with_name("identity.key"), authority.with_name("identity.crt")
    if not key.exists():
        return {}
    digest = hashlib.sha256(boot()).hexdigest()
    joined = hashlib.sha256(json.dumps(join).encode()).hexdigest()
    said = {"version": "9.9.9", "roothash": roothash(), "boot_image": digest, "join": joined, "nonce": nonce}
    statement = provide.STATEMENT + json.dumps(said)
    signature = pki.sign_text(key.read_text(), statement)
    return {"statement": statement, "signature": signature, "certificate": certificate.read_text()}


class Server(http.server.ThreadingHTTPServer):
    """Listens at addresses of IPv6."""

    address_family = socket.AF_INET6


if __name__ == "__main__":
    port, folder, authority, name, spoil = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], sys.argv[5]
    manifest = json.loads((folder / "manifest.json").read_text())
    threading.Thread(target=Server(("::", HTTP), Handler).serve_forever, daemon=True).start()
    said = json.dumps({"cluster": name, "number": 9}).encode() + b"\n{}"
    peer = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    while True:
        peer.sendto(said, (GROUP, HELLO, 0, socket.if_nametoindex(port)))
        time.sleep(0.3)

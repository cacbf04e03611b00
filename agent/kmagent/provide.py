"""`python3 -m kmagent provide`: serves this node's own system to machines without one, by HTTP (RFC 9110) on all ports.

| request | what |
|---|---|
| GET, HEAD /kubermesh.efi | the boot image, for firmware |
| GET /boot.ipxe | how iPXE starts it |
| GET /v1/offer?nonce=… | which system it is, signed with the nonce, and whom to ask to be admitted (JSON) |
| GET /v1/root, /v1/hashes | the root file system and its dm-verity hashes, by ranges |
| POST /v1/progress | what the machine on this cable does now, in words |

All of it is public; nothing of it is secret. A process of its own, with a small share of the processors (its unit): the kernel
copies from the disk to the cable (sendfile(2)), at a limited rate while the node is busy.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import re
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from kmagent import boot_image, facts, home_disk, identity, notify
from kmagent.paths import Paths
from kmagent.pressure import Pace, Pressure
from kmagent.programs import run_async
from kmplan import pki
from kmplan.errors import UserError
from kmplan.files import write
from kmplan.run import run
from kmplan.seed import JoinBundle

log = logging.getLogger(__name__)

MAX_HEAD, MAX_BODY = 8 * 1024, 256
# To each of this node's own addresses: a port has three, and what is on its cable reaches no other.
MAX_CONNECTIONS, MAX_PER_ADDRESS = 256, 6
# How often at most it is asked which port has which address, and for how long that is believed.
LOOK_S, BELIEVE_S = 1.0, 10.0
PIECE = 1 << 20
# For how long a boot image that is nowhere is not looked for again.
MISSING_S = 60.0
STALL_S = 30.0
# What a busy node serves, to all together, in bytes per second: a root takes seven seconds.
BUSY, BUSY_RATE = 0.25, 32 << 20
RANGE = re.compile(r"bytes=(\d{1,15})-(\d{1,15})?\Z")
# How a statement about a system begins: the same key signs other things.
STATEMENT = "kubermesh system\n"
NONCE = re.compile(r"nonce=([0-9A-Za-z]{16,64})")
TEXT = re.compile(r"[\x20-\x7e]{1,80}\Z")
REASONS = {
    200: "OK", 204: "No Content", 206: "Partial Content", 400: "Bad Request", 404: "Not Found",
    416: "Range Not Satisfiable", 503: "Service Unavailable",
}  # fmt: skip
TOLD_S = 0.5


@dataclass(frozen=True)
class File:
    """What is sent: a file or device, and how many of its bytes."""

    path: Path
    size: int


def main() -> int:
    """Serve until the unit is stopped."""
    asyncio.run(_main(Paths()))
    return 0


async def _main(paths: Paths) -> None:
    made = Provider(paths)
    listening = await made.start()
    notify.send("READY=1")
    async with listening:
        await listening.serve_forever()


class Provider:
    """The server, and what it knows of who is at the other end of each port."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._all = 0
        self._open: dict[tuple[str, int], int] = {}
        self._ports = Ports()
        self._boot_image: tuple[str, int, Path] = ("", 0, Path())
        self._missing_until = 0.0
        # A boot image is read as a whole: by one at a time.
        self._finding, self._digesting = threading.Lock(), threading.Lock()
        self._digested = (self._boot_image, "")
        self._progress: dict[str, dict[str, object]] = {}
        self._told = 0.0
        self._pace = Pace(Pressure(), BUSY, BUSY_RATE)

    async def start(self, port: int = boot_image.PORT) -> asyncio.Server:
        """Start to listen, at all addresses of both families."""
        return await asyncio.start_server(self._accept, None, port, reuse_address=True, limit=MAX_HEAD)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        own = writer.get_extra_info("sockname")
        # A link-local address may be that of several ports.
        address = (own[0], own[3] if len(own) == 4 else 0)
        if self._open.get(address, 0) >= MAX_PER_ADDRESS or self._all >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        self._all += 1
        self._open[address] = self._open.get(address, 0) + 1
        try:
            # A transport that closes while something is sent is a RuntimeError.
            with contextlib.suppress(
                OSError, RuntimeError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError
            ):
                await self._answer(reader, writer, await self._ports.of(own))
        finally:
            self._all -= 1
            self._open[address] -= 1
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: str) -> None:
        head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), STALL_S)).decode("latin-1").split("\r\n")
        method, target, *_ = [*head[0].split(" "), "", ""]
        path, _, query = target.partition("?")
        fields = {key.strip().lower(): value.strip() for key, _, value in (line.partition(":") for line in head[1:])}
        try:
            if (method, path) == ("POST", "/v1/progress"):
                length = fields.get("content-length", "")
                count = int(length) if re.fullmatch(r"\d{1,3}", length) else 0
                body = await asyncio.wait_for(reader.readexactly(count), STALL_S)
                taken = len(body) <= MAX_BODY and TEXT.match(text := body.decode("ascii", "replace").strip())
                if taken:
                    self._tell(port, text)
                await self._send(writer, 204 if taken else 400)
            elif method in ("GET", "HEAD") and path == "/v1/offer":
                await self._send(writer, 200, await asyncio.to_thread(self._offer, query), "application/json", method)
            elif method in ("GET", "HEAD") and path == "/boot.ipxe":
                await self._send(writer, 200, await asyncio.to_thread(self._script), "text/plain", method)
            elif method in ("GET", "HEAD") and (file := await asyncio.to_thread(self._find, path)):
                await self._send_file(writer, file, port, path, method, fields.get("range", ""))
            else:
                await self._send(writer, 404, b"try GET /kubermesh.efi\n")
        except (UserError, ValueError, KeyError) as error:
            log.error("%s: %s", path, error)
            await self._send(writer, 503, b"this node cannot serve its system now\n")

    def _offer(self, query: str) -> bytes:
        system, asked = boot_image.running(), NONCE.fullmatch(query)
        return offer(self._paths, system, self._digest(system.roothash), asked[1] if asked else "")

    def _script(self) -> bytes:
        return boot_image.script(self._find_boot_image(boot_image.running().roothash).path)

    def _find(self, path: str) -> File | None:
        if path not in ("/kubermesh.efi", "/v1/root", "/v1/hashes"):
            return None
        system = boot_image.running()
        if path == "/v1/root":
            return File(system.root, system.root_bytes)
        if path == "/v1/hashes":
            return File(system.hashes, system.hash_bytes)
        return self._find_boot_image(system.roothash)

    def _find_boot_image(self, roothash: str) -> File:
        """Look through the boot images only when the one that was found before is another one now, or gone."""
        with self._finding:
            known, written, path = self._boot_image
            with contextlib.suppress(OSError):
                if known == roothash and path.stat().st_mtime_ns == written:
                    return File(path, path.stat().st_size)
            if time.monotonic() < self._missing_until:
                raise UserError("no boot image of the system that runs")
            try:
                path = boot_image.find(roothash)
            except UserError:
                # Everybody waits for this.
                self._missing_until = time.monotonic() + MISSING_S
                self._show_esp()
                path = boot_image.find(roothash)
            self._missing_until = 0.0
            self._boot_image = roothash, path.stat().st_mtime_ns, path
            return File(path, path.stat().st_size)

    def _digest(self, roothash: str) -> str:
        """Return the SHA-256 of the boot image, read once."""
        with self._digesting:
            path = self._find_boot_image(roothash).path
            if self._digested[0] != self._boot_image:
                with path.open("rb") as file:
                    self._digested = self._boot_image, hashlib.file_digest(file, "sha256").hexdigest()
            return self._digested[1]

    def _show_esp(self) -> None:
        """Mount the EFI system partition of the disk that the root is on, for this process alone, if there is one."""
        folder = self._paths.run / "boot-esp"
        folder.mkdir(mode=0o700, exist_ok=True)
        drive = home_disk.root_drive()
        if drive.startswith(home_disk.MEMORY) or folder.is_mount():
            return
        esp = home_disk.partition_of(drive, home_disk.ESP)
        run(["mount", "-t", "vfat", "-o", "ro,nodev,nosuid,noexec", f"/dev/{esp}", folder])

    async def _send(
        self,
        writer: asyncio.StreamWriter,
        status: int,
        body: bytes = b"",
        kind: str = "text/plain",
        method: str = "GET",
    ) -> None:
        writer.write(header(status, len(body), kind) + (body if method != "HEAD" else b""))
        await asyncio.wait_for(writer.drain(), STALL_S)

    async def _send_file(
        self, writer: asyncio.StreamWriter, file: File, port: str, path: str, method: str, wanted: str
    ) -> None:
        start, end = 0, file.size
        if wanted:
            found = RANGE.match(wanted)
            start = int(found[1]) if found else file.size
            end = min(file.size, int(found[2]) + 1) if found and found[2] else file.size
            if not start < end:
                writer.write(header(416, 0, "text/plain", f"Content-Range: bytes */{file.size}\r\n"))
                return
        more = f"Content-Range: bytes {start}-{end - 1}/{file.size}\r\n" if wanted else ""
        writer.write(header(206 if wanted else 200, end - start, "application/octet-stream", more))
        await asyncio.wait_for(writer.drain(), STALL_S)
        if method == "HEAD":
            return
        self._tell(port, "booting" if path == "/kubermesh.efi" else f"fetching, {100 * start // file.size} %")
        loop = asyncio.get_running_loop()
        with file.path.open("rb", buffering=0) as source:
            while start < end:
                count = min(PIECE, end - start)
                await asyncio.wait_for(loop.sendfile(writer.transport, source, start, count), STALL_S)
                start += count
                await asyncio.sleep(self._pace.wait_s(count, time.monotonic()))
                if path == "/v1/root":
                    self._tell(port, f"fetching, {100 * start // file.size} %", often=False)

    def _tell(self, port: str, text: str, *, often: bool = True) -> None:
        """Write down for the agent what happens on a port."""
        now = time.time()
        self._progress[port] = {"text": text, "at": round(now, 1)}
        if often or now - self._told > TOLD_S:
            self._told = now
            write(self._paths.provided, json.dumps(self._progress))


def offer(paths: Paths, system: boot_image.System, digest: str, nonce: str) -> bytes:
    """Return what is offered (JSON): the system's version and sizes, and what lets a machine ask to be admitted.

    `statement` says which system it is, `digest` being the SHA-256 of its boot image, what `join` is, and that it is so now:
    `nonce` is that of who asks. It is signed with this node's key, so that a machine believes that all of it is the cluster's.
    """
    cluster = identity.read_cluster(paths)
    authority = identity.read_secret(paths, "pki/node-ca.crt")
    join = msgspec.to_builtins(JoinBundle(name=cluster.name, authority=authority, install=cluster.install))
    version = json.loads(paths.versions.read_text())["image"]
    # As it is in the answer: whoever asks compares the bytes.
    joined = hashlib.sha256(json.dumps(join).encode()).hexdigest()
    said = {"version": version, "roothash": system.roothash, "boot_image": digest, "join": joined, "nonce": nonce}
    statement = STATEMENT + json.dumps(said)
    return json.dumps(
        {
            "node": facts.load(paths.facts).name,
            "version": version,
            "roothash": system.roothash,
            "root_bytes": system.root_bytes,
            "hash_bytes": system.hash_bytes,
            "join": join,
            "statement": statement,
            "signature": pki.sign_text(identity.read_secret(paths, "identity.key"), statement),
            "certificate": identity.read_secret(paths, "identity.crt"),
        }
    ).encode()


def header(status: int, length: int, kind: str, more: str = "") -> bytes:
    """Return the head of an answer."""
    return (
        f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n{more}"
        "Accept-Ranges: bytes\r\nConnection: close\r\n\r\n"
    ).encode()


class Ports:
    """Which port has which of this node's own addresses."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}
        self._looked = float("-inf")

    async def of(self, own: tuple[str, int] | tuple[str, int, int, int]) -> str:
        """Return the name of the port that an address of a socket is on; empty when there is none, or nobody could look yet."""
        if len(own) == 4 and own[3]:
            return socket.if_indextoname(own[3])
        address = own[0].removeprefix("::ffff:")
        if time.monotonic() - self._looked > (BELIEVE_S if address in self._known else LOOK_S):
            self._looked = time.monotonic()
            _, text = await run_async(["ip", "--json", "address", "show"], check=False)
            ports = [one for one in json.loads(text or "[]") if one.get("ifname")]
            self._known = {info["local"]: one["ifname"] for one in ports for info in one.get("addr_info", [])}
        return self._known.get(address, "")

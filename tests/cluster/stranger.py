"""A machine that does not belong: a network namespace plugged into a spare port of a node."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from machines import Node, wait_for

from kmcluster import process
from kmcluster.cable import parse_port
from kmcluster.nspawn_cables import HOLDER, middle
from kmcluster.state import Cluster
from kmplan.run import run, spawn

PORT = "stranger0"
HOLD = "import ctypes, time; ctypes.CDLL(None).unshare(0x40000000); time.sleep(100000)"


# Tries to connect to addresses and ports, all at once; shows those that it reached.
CONNECT = """
import asyncio, sys
async def one(target):
    try:
        async with asyncio.timeout(2):
            _, writer = await asyncio.open_connection(*target.split())
        writer.close()
        print(target)
    except OSError:
        pass
async def main():
    await asyncio.gather(*map(one, sys.argv[1:]))
asyncio.run(main())
"""
# Asks for a target from ever another address of its network: solicitations (RFC 4861, 4.3) and pings (RFC 4443, 4.1) by ICMPv6,
# or ARP (RFC 826).
ASK_FROM_MANY = r"""
import random, socket, struct, sys, time
port, kind, address, hardware, lasts = sys.argv[1:]
family, length = (socket.AF_INET, 2) if kind == "arp" else (socket.AF_INET6, 8)
target, hardware = socket.inet_pton(family, address), bytes.fromhex(hardware.replace(":", ""))
peer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
peer.bind((port, 0x86DD))
mac = peer.getsockname()[4]
def icmp(here):
    number = {"solicitation": 135, "ping": 128}[kind]
    body = struct.pack("!BBHI", number, 0, 0, 0) + (target + b"\x01\x01" + mac if number == 135 else b"")
    summed = here + target + struct.pack("!II", len(body), 58) + body
    total = sum(struct.unpack(f"!{len(summed) // 2}H", summed))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    body = body[:2] + struct.pack("!H", ~total & 0xFFFF) + body[4:]
    return b"\x86\xdd" + struct.pack("!IHBB", 6 << 28, len(body), 58, 255) + here + target + body
def arp(here):
    return b"\x08\x06" + struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + mac + here + bytes(6) + target
end = time.monotonic() + float(lasts)
while time.monotonic() < end:
    here = target[:length] + random.randbytes(len(target) - length)
    peer.send(hardware + mac + (arp if kind == "arp" else icmp)(here))
"""
# Says hello as a node of another cluster does, with that cluster's key.
HELLO = """
import socket, sys, time
from kmagent import hello
peer = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
for sequence in range(1, 10**6):
    said = hello.Hello("other", 9, "other-9", "eth0", 1500, 10**6, "aa" * 8, "", sequence, (1,), True)
    place = (hello.GROUP, hello.PORT, 0, socket.if_nametoindex(sys.argv[1]))
    peer.sendto(hello.encode(said, {1: "ab" * 32}), place)
    time.sleep(0.3)
"""


def join_request(cluster: str, csr: str) -> str:
    """What a machine sends that asks to be admitted."""
    return json.dumps({"version": 1, "cluster": cluster, "csr": csr, "uuid": "", "via": "", "ports": [], "disks": []})


class Stranger:
    """Runs commands in the namespace; `address` is its link-local address."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def argv(self, *words: str) -> list[str]:
        return ["nsenter", f"--target={self.pid}", "--net", "--", *words]

    def run(self, *words: str, check: bool = True, timeout_s: float = 60) -> str:
        done = run(self.argv(*words), check=check, timeout_s=timeout_s)
        return done.stdout + done.stderr

    def python(self, script: str, *arguments: str, timeout_s: float = 120) -> str:
        return self.run(sys.executable, "-c", script, *arguments, timeout_s=timeout_s).strip()

    @property
    def address(self) -> str:
        words = self.run("ip", "-6", "-o", "address", "show", "dev", PORT, "scope", "link").split()
        return words[3].partition("/")[0] if len(words) > 3 else ""


@contextmanager
def nobody() -> Iterator[Stranger]:
    """A network namespace with nothing plugged in."""
    holder = subprocess.Popen([sys.executable, "-c", HOLD])
    try:
        process.wait_own_network(process.identify(holder.pid), 10, Path("/dev/null"))
        stranger = Stranger(holder.pid)
        stranger.run("ip", "link", "set", "lo", "up")
        yield stranger
    finally:
        holder.kill()
        holder.wait()


@contextmanager
def greeting(stranger: Stranger, log: Path) -> Iterator[None]:
    """Have the stranger say hello, as one who has a system: nothing is offered to such a machine."""
    child = spawn(stranger.argv(sys.executable, "-c", HELLO, PORT), log=log)
    try:
        yield
    finally:
        child.kill()
        child.wait()


@contextmanager
def plugged_in(cluster: Cluster, *ports: str) -> Iterator[Stranger]:
    """Plug a stranger into free ports (`1:eth2`) of nspawn machines, and pull it out again; its own are stranger0, 1, …"""
    cables = cluster.processes[HOLDER].pid
    ends = {f"stranger{place}": middle(parse_port(port)) for place, port in enumerate(ports)}
    with nobody() as stranger:
        for name, end in ends.items():
            run(["nsenter", f"--target={cables}", "--net", "ip", "link", "set", end, "netns", str(stranger.pid)])
            stranger.run("ip", "link", "set", end, "name", name)
            stranger.run("sysctl", "-q", "-w", f"net.ipv6.conf.{name}.dad_transmits=0")
            stranger.run("ip", "link", "set", name, "up")
        wait_for("link-local address", lambda: stranger.address, 10)
        yield stranger
        for name, end in ends.items():
            stranger.run("ip", "link", "set", name, "down")
            stranger.run("ip", "link", "set", name, "name", end)
            stranger.run("ip", "link", "set", end, "netns", str(cables))


def ask_from_many(stranger: Stranger, node: Node, port: str, kind: str, beginning: str) -> None:
    """Ask a node (see `ASK_FROM_MANY`) at an address that begins so, and see that this takes little of its table of neighbours.

    All ports have one table for each family: entries of the mesh's neighbours would have to go.
    """

    def own() -> tuple[str, str] | None:
        shown = json.loads(node.output("ip", "-json", "address", "show", "dev", port))[0]
        found = [one["local"] for one in shown["addr_info"] if one["local"].startswith(beginning)]
        return (found[0], shown["address"]) if found else None

    def entries() -> int:
        family = "-4" if kind == "arp" else "-6"
        return len(node.output("ip", family, "neigh", "show", "dev", port).splitlines())

    to = wait_for("address", own, 60)
    before, lasts_s, begin = entries(), 4, time.monotonic()
    stranger.python(ASK_FROM_MANY, PORT, kind, *to, str(lasts_s))
    # 50 in a second, and 200 at first; it sends some thousand.
    assert 0 < entries() - before <= 200 + 50 * (time.monotonic() - begin + 1)

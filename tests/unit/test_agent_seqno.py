"""A newer sequence number when ways have changed: what babeld is asked, and when."""

import asyncio
import socket
import struct
from pathlib import Path

import pytest
from agent_fakes import FACTS

from kmagent import babel, mesh, seqno
from kmagent.paths import Paths
from kmagent.state import State

ID = bytes.fromhex("02aabbccddeeff01")
SEQNO_REQUEST = struct.Struct("!BBBBHBx8s16s")


def numbers(packet: bytes) -> list[int]:
    """The sequence numbers that a Babel packet requests of this node's address (RFC 8966, 4.2 and 4.6.11)."""
    magic, version, length = struct.unpack_from("!BBH", packet)
    assert (magic, version, length) == (42, 2, len(packet) - 4)
    assert len(packet) + 48 <= 1280, "more than every cable takes"
    found = []
    for kind, size, encoding, bits, number, hops, router, address in SEQNO_REQUEST.iter_unpack(packet[4:]):
        assert (kind, size, encoding, bits, router) == (10, SEQNO_REQUEST.size - 2, 2, 128, ID)
        assert hops > 0 and address == socket.inet_pton(socket.AF_INET6, FACTS.address)
        found.append(number)
    return found


@pytest.mark.parametrize("current", [0, 1, 50, 99, 100, 101, 32767, 32768, 65435, 65500, 65534, 65535])
def test_one_of_the_requests_is_newer_than_any_number_but_not_by_too_much(current: int) -> None:
    """A request that is ahead by up to a hundred counts, and takes the number one further; others do nothing."""
    now = current
    for packet in seqno.requests(ID, FACTS.address):
        for number in numbers(packet):
            if 0 < (number - now) % 65536 <= 100:
                now = (now + 1) % 65536
    assert 1 <= (now - current) % 65536 <= 2


def test_babeld_says_who_it_is_first() -> None:
    assert babel.parse_router_id(["BABEL 1.0", "version babeld-1.13.1", "my-id 02:aa:bb:cc:dd:ee:ff:01"]) == ID
    assert babel.parse_router_id(["BABEL 1.0"]) is None


def test_the_agent_is_not_shown_as_a_neighbour() -> None:
    line = "add neighbour 5 address fe80::1 if {} reach 0000 ureach 0000 rxcost 65535 txcost 65535 cost 65535"
    ports = ["eth0", seqno.BABELD_END]
    shown = babel.parse([*(line.format(port) for port in ports), *(f"add interface {port} up true" for port in ports)])
    assert [port for port, _ in shown.neighbours] == ["eth0"] and shown.interfaces == {"eth0"}


ROUTE = "add route 1 prefix fd12::9/128 from ::/0 installed {} id 02:aa metric {} refmetric 96 via {} if eth0"
FIRST, SAME = ROUTE.format("yes", 192, "fe80::1"), ROUTE.format("yes", 196, "fe80::1")
OTHER, LOST = ROUTE.format("yes", 192, "fe80::2"), ROUTE.format("no", 65535, "fe80::2")


def test_a_newer_number_is_taken_when_a_way_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that came, that leads elsewhere, or that went; not one that costs more now."""
    taken: list[tuple[bytes, str]] = []

    async def set_up() -> None:
        """The cable is there."""

    monkeypatch.setattr(seqno, "set_up", set_up)
    monkeypatch.setattr(seqno, "renew", lambda *arguments: taken.append(arguments))
    monkeypatch.setattr(seqno, "PAUSE_S", 0.0)
    monkeypatch.setattr(mesh, "_hello_socket", lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))

    async def scenario() -> list[int]:
        one = mesh.Mesh(State(), Paths(run=tmp_path), mesh.Self("one", 1, "one-1"), facts=FACTS)
        one._babel.router_id = ID
        renewing = asyncio.create_task(one._renew(FACTS))
        counts = []
        for line in (FIRST, SAME, OTHER, LOST):
            await one._on_answer(babel.parse([line]))
            for _ in range(10):
                await asyncio.sleep(0)
            counts.append(len(taken))
        renewing.cancel()
        return counts

    assert asyncio.run(scenario()) == [1, 1, 2, 3]
    assert set(taken) == {(ID, FACTS.address)}

"""What a node serves to machines without a system, and where it offers that."""

import asyncio
import hashlib
import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kmagent import boot_image, facts, identity, provide, provision
from kmagent.boot_image import System
from kmagent.paths import Paths
from kmagent.ports import Port
from kmagent.provide import MAX_PER_ADDRESS, Provider
from kmagent.provision import Provision
from kmagent.state import State
from kmplan import boot_images, pki
from kmplan.cluster import Install
from kmplan.errors import UserError

ROOT_HASH = "ab" * 32
ROOT, HASHES, BOOT = bytes(range(256)) * 48, b"h" * 8192, b"MZ" + b"." * 5000 + f" roothash={ROOT_HASH} ".encode()


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    (tmp_path / "run").mkdir()
    return Paths(run=tmp_path / "run", state=tmp_path / "state")


@pytest.fixture
def served(paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """A provider of a small system; asks it something, and gives status, headers and body."""
    for name, data in (("root", ROOT + b"not used"), ("hashes", HASHES), ("boot.efi", BOOT)):
        (tmp_path / name).write_bytes(data)
    system = System(ROOT_HASH, tmp_path / "root", len(ROOT), tmp_path / "hashes", len(HASHES))
    monkeypatch.setattr(boot_image, "running", lambda: system)
    monkeypatch.setattr(boot_image, "find", lambda _: tmp_path / "boot.efi")

    def ask(method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
        async def scenario() -> tuple[int, dict[str, str], bytes]:
            server = await Provider(paths).start(0)
            host, port = server.sockets[0].getsockname()[:2]

            def talk() -> tuple[int, dict[str, str], bytes]:
                connection = http.client.HTTPConnection({"::": "::1"}.get(host, "127.0.0.1"), port, timeout=10)
                connection.request(method, path, body, headers)
                answer = connection.getresponse()
                return answer.status, dict(answer.getheaders()), answer.read()

            async with server:
                return await asyncio.to_thread(talk)

        return asyncio.run(scenario())

    yield ask


def test_firmware_is_told_the_size_and_gets_the_boot_image(served: Callable[..., Any]) -> None:
    status, headers, body = served("HEAD", "/kubermesh.efi")
    assert (status, headers["Content-Length"], body) == (200, str(len(BOOT)), b"")
    assert served("GET", "/kubermesh.efi")[::2] == (200, BOOT)


@pytest.mark.parametrize(
    ("wanted", "status", "body", "said"),
    [
        ("bytes=0-4095", 206, ROOT[:4096], f"bytes 0-4095/{len(ROOT)}"),
        # What is missing of a transfer that stopped.
        ("bytes=8192-", 206, ROOT[8192:], f"bytes 8192-{len(ROOT) - 1}/{len(ROOT)}"),
        ("bytes=8192-99999999", 206, ROOT[8192:], f"bytes 8192-{len(ROOT) - 1}/{len(ROOT)}"),
        (f"bytes={len(ROOT)}-", 416, b"", f"bytes */{len(ROOT)}"),
        ("bytes=9-3", 416, b"", f"bytes */{len(ROOT)}"),
        ("bytes=-500", 416, b"", f"bytes */{len(ROOT)}"),
        ("furlongs=1-2", 416, b"", f"bytes */{len(ROOT)}"),
    ],
)
def test_the_root_is_read_by_ranges(
    served: Callable[..., Any], wanted: str, status: int, body: bytes, said: str
) -> None:
    got = served("GET", "/v1/root", Range=wanted)
    assert (got[0], got[2], got[1]["Content-Range"]) == (status, body, said)


def test_a_busy_node_is_asked_after_every_piece(served: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """How long it wants to wait is waited for before more is sent."""
    asked, waited = [], []

    class Pace:
        def __init__(self, *_: object) -> None:
            pass

        def wait_s(self, count: int, _: float) -> float:
            asked.append(count)
            return 0.01 * len(asked)

    async def sleep(seconds: float, sleep: Any = asyncio.sleep) -> None:
        waited.append(seconds)
        await sleep(0)

    monkeypatch.setattr(provide, "Pace", Pace)
    monkeypatch.setattr(provide, "PIECE", 4096)
    monkeypatch.setattr(provide.asyncio, "sleep", sleep)
    assert served("GET", "/v1/root")[2] == ROOT
    assert asked == [4096] * (len(ROOT) // 4096) and waited == [0.01, 0.02, 0.03]


async def asked(host: str, port: int) -> bytes:
    """The first line of an answer; nothing when there is none."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(b"GET /none HTTP/1.1\r\n\r\n")
        return (await asyncio.wait_for(reader.read(), 5)).partition(b"\r\n")[0]
    except ConnectionError:
        return b""
    finally:
        writer.close()


def test_one_cable_has_a_few_connections_and_no_more(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is at its other end cannot keep all others from booting: neither with many that last, nor by many that come."""
    looks: list[object] = []

    async def look(*words: object, **_: object) -> tuple[int, str]:
        looks.append(words)
        await asyncio.sleep(0.2)
        return 0, '[{"ifname": "eth0", "addr_info": [{"local": "127.0.0.1"}]}]'

    async def scenario() -> list[bytes]:
        provider = Provider(paths)
        server = await provider.start(0)
        port = next(one.getsockname()[1] for one in server.sockets if one.family == socket.AF_INET)
        async with server:
            talks = [await asyncio.open_connection("127.0.0.1", port) for _ in range(MAX_PER_ADDRESS)]
            async with asyncio.timeout(10):
                while sum(provider._open.values()) < MAX_PER_ADDRESS:
                    await asyncio.sleep(0.01)
            answers = [await asked("127.0.0.1", port) for _ in range(100)]
            other = await asked("127.0.0.2", port)
            talks[0][1].write(b"GET /none HTTP/1.1\r\n\r\n")
            known = await asyncio.wait_for(talks[0][0].read(), 5)
            for _, one in talks:
                one.close()
            return [b"".join(answers), other, known.partition(b"\r\n")[0]]

    monkeypatch.setattr(provide, "run_async", look)
    assert asyncio.run(scenario()) == [b"", b"HTTP/1.1 404 Not Found", b"HTTP/1.1 404 Not Found"]
    assert len(looks) <= 3


def test_no_more_of_a_device_is_served_than_is_used(served: Callable[..., Any]) -> None:
    assert served("GET", "/v1/root")[2] == ROOT
    assert served("GET", "/v1/hashes")[2] == HASHES


@pytest.mark.parametrize("path", ["/", "/v1/root/../../etc/passwd", "/etc/passwd", "/v1/state", "//kubermesh.efi"])
def test_nothing_else_is_served(served: Callable[..., Any], path: str) -> None:
    assert served("GET", path)[0] == 404
    assert served("PUT", "/v1/root", b"x")[0] == 404


def test_a_machine_says_what_it_does(served: Callable[..., Any], paths: Paths) -> None:
    assert served("POST", "/v1/progress", b"installing, 40 %")[0] == 204
    assert [one["text"] for one in json.loads(paths.provided.read_text()).values()] == ["installing, 40 %"]
    for bad in (b"", b"two\nlines", b"\x1b[2J", b"x" * 81, b"x" * 300):
        assert served("POST", "/v1/progress", bad)[0] == 400, bad
    assert "installing, 40 %" in paths.provided.read_text()


def test_what_cannot_be_served_is_said(served: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> Path:
        raise UserError("no boot image")

    monkeypatch.setattr(boot_image, "find", missing)
    assert served("GET", "/kubermesh.efi")[0] == 503


def test_the_boot_image_is_the_one_of_this_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boot_image, "in_container", lambda: False)
    folder = tmp_path / "efi/EFI/Linux"
    folder.mkdir(parents=True)
    (folder / "kubermesh_1.efi").write_bytes(b"MZ roothash=" + b"cd" * 32 + b"\0")
    (folder / "kubermesh_2+3.efi").write_bytes(BOOT)
    (folder / "kubermesh_2+2.efi").write_bytes(BOOT.replace(b"MZ", b"MX"))
    own = tmp_path / boot_images.DIGEST
    own.parent.mkdir(parents=True)
    own.write_text(f"{boot_images.digest(folder / 'kubermesh_2+3.efi', ROOT_HASH)}\n")
    assert boot_image.find(ROOT_HASH, tmp_path) == folder / "kubermesh_2+3.efi"
    # One copy cannot be read, nor can that folder: another one is served.
    broken = tmp_path / "run/kubermesh-boot"
    (broken / "kubermesh.efi").mkdir(parents=True)
    assert boot_image.find(ROOT_HASH, tmp_path) == folder / "kubermesh_2+3.efi"
    with pytest.raises(UserError, match="no boot image of the system that runs"):
        boot_image.find("ef" * 32, tmp_path)


def test_what_is_offered_is_signed_by_the_node(paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that was booted with another system believes nobody else (components/fetch/newer.go)."""
    authority = pki.create_authority("nodes")
    me = pki.issue(authority, pki.Subject("shop-1"), 1)
    (paths.state / "pki").mkdir(parents=True)
    (paths.state / "identity.key").write_text(me.key)
    (paths.state / "identity.crt").write_text(me.certificate)
    (paths.state / "pki/node-ca.crt").write_text(authority.certificate)
    versions = tmp_path / "versions.json"
    versions.write_text('{"image": "1.2"}')
    monkeypatch.setattr(facts, "load", lambda _: SimpleNamespace(name="shop-1"))
    monkeypatch.setattr(identity, "read_cluster", lambda _: SimpleNamespace(name="shop", install=Install()))
    system = System(ROOT_HASH, tmp_path / "root", 8192, tmp_path / "hashes", 4096)
    text = provide.offer(replace(paths, versions=versions), system, "ef" * 32, "0123456789abcdef")
    said = json.loads(text)
    assert (said["node"], said["version"], said["roothash"]) == ("shop-1", "1.2", ROOT_HASH)
    assert (said["join"]["name"], said["join"]["authority"]) == ("shop", authority.certificate)
    head, _, statement = said["statement"].partition("\n")
    assert head == "kubermesh system"
    assert json.loads(statement) == {
        "version": "1.2",
        "roothash": ROOT_HASH,
        "boot_image": "ef" * 32,
        # Of its bytes in the answer.
        "join": hashlib.sha256(text.partition(b'"join": ')[2].partition(b', "statement": ')[0]).hexdigest(),
        "nonce": "0123456789abcdef",
    }
    assert pki.verify_text(said["certificate"], said["statement"], said["signature"])


@pytest.mark.parametrize(
    ("blocks", "length"),
    [(1, 4096), (128, 8192), (129, 16384), (16384, 532480), (16385, 544768), (196608, 6348800)],
)
def test_the_length_of_the_hashes_follows_from_that_of_the_root(blocks: int, length: int) -> None:
    """The lengths are those of hash files that veritysetup(8) made."""
    assert boot_image.hash_bytes(blocks) == length


def test_every_port_of_every_node_has_addresses_of_its_own() -> None:
    places = [provision.place_of(number, index) for number in range(1, 60) for index in range(2, 12)]
    assert len({place.prefix for place in places}) == len(places)
    neighbours = [provision.place_of(number, index).address4 for number in (1, 2, 3) for index in range(2, 18)]
    assert len(set(neighbours)) == len(neighbours)
    first = provision.place_of(1, 2)
    assert (first.prefix, first.address) == ("fd6b:6d00:1:2::", "fd6b:6d00:1:2::1")
    assert (first.address4, first.first4, first.last4) == ("198.19.3.241", "198.19.3.242", "198.19.3.254")
    assert provision.place_of(32767, 65535).prefix == "fd6b:6d00:7fff:ffff::"


def port(name: str, index: int = 2, *, carrier: bool = True) -> Port:
    return Port(name, index, "52:54:00:00:00:01", carrier, 1500)


class Cables:
    """A node with three ports, and what was done with its units and addresses."""

    def __init__(self, paths: Paths, monkeypatch: pytest.MonkeyPatch, *, offers: bool = True) -> None:
        self.ports = {name: port(name, index) for index, name in enumerate(("eth0", "eth1", "eth2"), 2)}
        self.links: dict[str, Any] = {"eth0": SimpleNamespace(neighbour="a node")}
        self.gateways = frozenset[str]()
        self.offers: dict[str, str] = {}
        self.routers: dict[str, float] = {}
        self.news = asyncio.Event()
        self.done: list[str] = []
        self.asked: list[str] = []
        self.now = 100.0
        self.units_run = True
        me = SimpleNamespace(provision=offers, number=1, prefix="fd12::/48")
        state = State()
        monkeypatch.setattr(provision, "run_async", self.run)
        monkeypatch.setattr(provision.routers, "solicit", lambda asked: self.asked.append(asked.name))
        monkeypatch.setattr(provision, "time", SimpleNamespace(monotonic=lambda: self.now, time=time.time))
        self.made = Provision(state, paths, self, me, self.routers)  # type: ignore[arg-type]

    async def run(self, argv: list[str], **_: Any) -> tuple[int, str]:
        if argv[1] == "is-active":
            # Its status says whether one of them is.
            return 0, "active\nactive\n" if self.units_run else "activating\nactive\n"
        self.done.append(" ".join(argv))
        return 0, ""

    def wake(self) -> None:
        """Nobody waits."""

    async def lend(self, name: str) -> None:
        self.done.append(f"lend {name}")

    def take_back(self, name: str) -> None:
        self.done.append(f"take back {name}")

    def wanted(self, after_s: float = 0.0) -> list[str]:
        self.now += after_s
        return sorted(self.made._wanted(self.now))


@pytest.fixture
def cables(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> Cables:
    return Cables(paths, monkeypatch)


def test_a_system_is_offered_where_nobody_says_hello(cables: Cables) -> None:
    assert cables.wanted() == [] and cables.asked == ["eth1", "eth2"]
    assert cables.wanted(after_s=5.5) == ["eth1", "eth2"]
    # Whoever says hello has a system, a node of the cluster or not.
    cables.links["eth1"] = SimpleNamespace(neighbour="somebody")
    assert cables.wanted() == ["eth2"]
    cables.links["eth1"] = SimpleNamespace(neighbour=None)
    assert cables.wanted() == ["eth2"]
    assert cables.wanted(after_s=5.5) == ["eth1", "eth2"]
    assert cables.asked == ["eth1", "eth2", "eth1"]


def test_no_system_is_offered_to_the_world_outside(cables: Cables) -> None:
    cables.gateways = frozenset({"eth1"})
    cables.routers["eth2"] = cables.now + 100
    assert cables.wanted() == cables.wanted(after_s=10) == []
    # The router's word ends, and so it does when the cable is plugged in elsewhere.
    assert cables.wanted(after_s=100) == [] and cables.wanted(after_s=6) == ["eth2"]
    cables.routers["eth2"] = cables.now + 100
    cables.ports["eth2"] = port("eth2", 4, carrier=False)
    cables.made._forget_routers()
    assert cables.routers == {}


def test_no_system_is_offered_when_the_cluster_file_says_so(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    off = Cables(paths, monkeypatch, offers=False)
    assert off.wanted() == off.wanted(after_s=10) == []
    off.ports["eth2"] = port("eth2", 4, carrier=False)
    assert not off.made._is_free(off.now + 100)


def test_what_serves_the_image_is_there_before_anybody_asks(cables: Cables) -> None:
    """It is started when a port has been free for a while; all are taken here at first."""
    assert not cables.made._is_free(cables.now + 100)
    cables.ports["eth2"] = port("eth2", 4, carrier=False)
    assert not cables.made._is_free(cables.now + 129)
    assert cables.made._is_free(cables.now + 130)
    # Whoever ended it meanwhile has it back.
    assert not cables.made._is_free(cables.now + 131) and cables.made._is_free(cables.now + 160)


def test_what_cannot_be_offered_is_said(cables: Cables) -> None:
    """Another program, of a pod in the host's network perhaps, has the place of what would answer there."""

    async def scenario() -> list[str]:
        await cables.made._offer(cables.ports["eth1"])
        shown = []
        for runs in (True, False, False, True):
            cables.units_run, cables.now = runs, cables.now + provision.CHECK_S
            await cables.made._check()
            cables.made._look()
            shown.append(cables.offers["eth1"])
        return shown

    down = "cannot be offered anything: dnsmasq not running"
    assert asyncio.run(scenario()) == ["offered", "offered", down, "offered"]


def test_what_is_offered_is_taken_back(cables: Cables, paths: Paths) -> None:
    async def scenario() -> None:
        await cables.made._offer(cables.ports["eth1"])
        await cables.made._offer(cables.ports["eth1"])
        await cables.made._withdraw("eth1")

    asyncio.run(scenario())
    units = "kubermesh-dnsmasq@eth1.service kubermesh-radvd@eth1.service"
    assert [line for line in cables.done if line.startswith("systemctl")] == [
        f"systemctl restart {units}",
        # Nothing changed: who boots there is not disturbed.
        f"systemctl start {units}",
        f"systemctl stop {units}",
    ]
    # Neighbours are told of no way that leads to such an address.
    assert [line for line in cables.done if not line.startswith("systemctl")] == [
        *(
            "lend eth1",
            "ip address replace fd6b:6d00:1:3::1/64 dev eth1 nodad",
            "ip address replace 198.19.4.1/28 dev eth1",
        )
        * 2,
        *("ip -6 address flush dev eth1 to fd6b:6d00::/32", "ip -4 address flush dev eth1 to 198.19.0.0/16"),
        "take back eth1",
    ]
    assert list(paths.provision.iterdir()) == []


def test_what_an_agent_before_this_one_offered_stays(cables: Cables, paths: Paths) -> None:
    """Firmware that boots just now is not cut off; a node that has come meanwhile is not offered anything any more."""
    paths.provision.mkdir()
    for name in ("eth0", "eth1"):
        (paths.provision / f"{name}.dnsmasq").write_text("")

    async def scenario() -> None:
        running = asyncio.create_task(cables.made.run())
        await asyncio.sleep(0.05)
        running.cancel()

    asyncio.run(scenario())
    assert [path.name for path in paths.provision.iterdir()] == ["eth1.dnsmasq"]
    assert not [line for line in cables.done if "eth1" in line]

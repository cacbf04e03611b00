"""Who does not belong to the cluster gets nothing over a cable, and disturbs nothing."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from machines import kmbuild, wait_for
from rings import Ring
from stranger import CONNECT, PORT, Stranger, ask_from_many, greeting, join_request, plugged_in

from kmplan import pki
from kmplan.cluster import read_cluster
from kmplan.run import spawn

pytestmark = pytest.mark.turn(3)

RELAY, JOIN, NODE, HELLO, PROVIDE = 9442, 9443, 9444, 9441, 9445
# What a node gives itself on a port where it offers a system.
OFFERED = ("fd6b:6d00:", "198.19.")
# What listens on a node, not on its loopback alone. UDP: hellos, babeld (RFC 8966); for who is offered a system DHCP, TFTP, HTTP.
UDP, OFFERING = {HELLO, 6696}, {67, 69, 547, PROVIDE}
WORKER = {RELAY, NODE, 10250}
STANDBY = WORKER | {2379, 2380}
VOTER = STANDBY | {6443, JOIN}
# What is asked of each, as somebody would who looks for a secret. The others are for strangers: the relay leads to JOIN, and what
# PROVIDE serves is public (tests/unit/test_agent_provide.py).
ASKED = {
    2379: "/v3/kv/range",
    2380: "/members",
    6443: "/api/v1/secrets",
    10250: "/pods",
    JOIN: "/v1/registry",
    NODE: "/v1/state",
}

# Sends one HTTP request through TLS to anyone; shows status and body. Arguments: address, port, method, path, body.
REQUEST = """
import http.client, socket, ssl, sys
address, port, method, path, body = sys.argv[1:6]
context = ssl._create_unverified_context()
connection = http.client.HTTPSConnection("join", context=context)
connection.sock = context.wrap_socket(socket.create_connection((address, int(port)), 10), server_hostname="join.kubermesh")
connection.request(method, path, body)
answer = connection.getresponse()
print(answer.status, answer.read().decode(errors="replace"))
"""

# Tries every TCP port of an address; shows those that take a connection.
SCAN = """
import resource, select, socket, sys, time
STEP, WAIT_S = 8192, 3
resource.setrlimit(resource.RLIMIT_NOFILE, (2 * STEP, 2 * STEP))
place = socket.getaddrinfo(sys.argv[1], 1, type=socket.SOCK_STREAM)[0][4]
found = []
for start in range(1, 65536, STEP):
    tried, poll = {}, select.epoll()
    for port in range(start, min(start + STEP, 65536)):
        one = socket.socket(socket.AF_INET6)
        one.setblocking(False)
        one.connect_ex((place[0], port, *place[2:]))
        poll.register(one, select.EPOLLOUT)
        tried[one.fileno()] = one, port
    end = time.monotonic() + WAIT_S
    while tried and (left := end - time.monotonic()) > 0:
        for number, _ in poll.poll(left):
            one, port = tried.pop(number)
            if one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                found.append(port)
            one.close()
    for one, _ in tried.values():
        one.close()
print(*sorted(found))
"""

# A router's advertisement of a default route and a prefix (RFC 4861, 4.2), sent a few times.
ADVERTISE = """
import socket, struct, sys, time
index = socket.if_nametoindex(sys.argv[1])
prefix = socket.inet_pton(socket.AF_INET6, "2001:db8:bad::")
body = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 3600, 3600, 0) + prefix
peer = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
peer.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
for _ in range(5):
    peer.sendto(body, ("ff02::1", 0, 0, index))
    time.sleep(0.2)
"""

# Says hello as fast as it goes, by ever another name. Arguments: port, how long (s).
STORM = """
import socket, sys, time
from kmagent import hello
peer = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
place = (hello.GROUP, hello.PORT, 0, socket.if_nametoindex(sys.argv[1]))
said = [hello.Hello("other", 9, f"storm-{one}", "eth0", 1500, 10**6, "aa" * 8, "", one, (1,), True) for one in range(500)]
packets = [hello.encode(one, {1: "ab" * 32}) for one in said]
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    for packet in packets:
        peer.sendto(packet, place)
"""
# Solicits a node as fast as it goes, by ever another address (RFC 4861, 4.3). Arguments: port, the node's address, how long (s).
# Longer than a neighbour is believed that is not heard.
STORM_S = 20


@pytest.fixture(scope="module")
def stranger(ring: Ring) -> Iterator[Stranger]:
    with plugged_in(ring.first.cluster, "1:eth2") as one:
        # Not as a plain computer: that is given an address, and a way to the API.
        one.run("sysctl", "-q", "-w", f"net.ipv6.conf.{PORT}.accept_ra=0")
        wait_for("carrier", lambda: port_of(ring, "eth2")["carrier"], 20)
        yield one


def port_of(ring: Ring, name: str) -> dict[str, Any]:
    return next(port for port in ring[1].status()["ports"] if port["name"] == name)


def there(ring: Ring) -> str:
    """Address of the node's port, as the stranger has to write it."""
    return f"{ring[1].link_local('eth2')}%{PORT}"


def test_a_stranger_is_seen_and_not_trusted(ring: Ring, stranger: Stranger) -> None:
    assert port_of(ring, "eth2")["neighbour"] is None
    trusted = ring[1].output("nft", "list", "set", "inet", "kubermesh", "trusted")
    assert "eth0" in trusted
    assert "eth2" not in trusted


def test_only_the_relay_and_the_image_server_listen_for_a_stranger(ring: Ring, stranger: Stranger) -> None:
    wait_for("offer", lambda: port_of(ring, "eth2")["offer"], 30)
    assert stranger.python(SCAN, there(ring), timeout_s=300) == f"{RELAY} {PROVIDE}"


def test_a_stranger_reaches_no_address_of_the_cluster(ring: Ring, stranger: Stranger) -> None:
    plan = read_cluster(ring.first.cluster.directory).plan
    gateway = ring[1].link_local("eth2")
    stranger.run("ip", "-6", "address", "replace", f"{plan.node(99)}/128", "dev", "lo", "nodad")
    stranger.run("ip", "-6", "route", "replace", str(plan.prefix), "via", gateway, "dev", PORT)
    pod = ring.pods()[2].address6
    targets = [f"{target} {port}" for target in (plan.node(1), plan.node(3), plan.api) for port in (2379, 6443, 10250)]
    assert stranger.python(CONNECT, *targets, f"{plan.join} {JOIN}", f"{pod} 8080", timeout_s=120) == ""
    stranger.run("ip", "-6", "address", "del", f"{plan.node(99)}/128", "dev", "lo")


def test_a_foreign_babeld_injects_nothing(ring: Ring, stranger: Stranger, tmp_path: Path) -> None:
    plan = read_cluster(ring.first.cluster.directory).plan
    root = Path(f"/proc/{ring.first.machine.processes['init'].pid}/root")
    stranger.run("ip", "-6", "address", "replace", f"{plan.node(77)}/128", "dev", "lo", "nodad")
    config = tmp_path / "babeld.conf"
    lines = ["skip-kernel-setup true", "default hello-interval 0.2 update-interval 1", f"interface {PORT}"]
    lines += [f"redistribute local ip {plan.prefix}", "redistribute ip ::/0 eq 0", "redistribute ip 0.0.0.0/0 eq 0"]
    config.write_text("\n".join([*lines, ""]))
    loader, libraries = root / "usr/lib64/ld-linux-x86-64.so.2", root / "usr/lib/x86_64-linux-gnu"
    words = [str(loader), "--library-path", str(libraries), str(root / "usr/sbin/babeld")]
    with greeting(stranger, tmp_path / "hello.log"):
        # babeld does not speak where strangers are given addresses.
        wait_for("babeld on the port", lambda: "eth2" in (ring[1].babel().interfaces or ()), 30)
        before = routes(ring)
        child = spawn(stranger.argv(*words, "-c", str(config), "-S", "", "-I", ""), log=tmp_path / "babeld.log")
        try:
            wait_for("hellos of the foreign babeld", lambda: heard_babel(ring), 20)
            assert child.poll() is None, (tmp_path / "babeld.log").read_text()
            assert str(plan.node(77)) not in str(routes(ring))
            assert routes(ring) == before
        finally:
            child.kill()
            child.wait()


def heard_babel(ring: Ring) -> bool:
    """Whether more frames come in at the port than the seven of a greeting: babeld says hello five times a second."""
    count = "/sys/class/net/eth2/statistics/rx_packets"
    first = int(ring[1].output("cat", count))
    return int(ring[1].output("sh", "-c", f"sleep 2; cat {count}")) - first > 12


def test_a_router_advertisement_changes_nothing(ring: Ring, stranger: Stranger) -> None:
    wait_for("offer", lambda: port_of(ring, "eth2")["offer"], 60)
    before = addresses_and_routes(ring)
    stranger.python(ADVERTISE, PORT)
    after = addresses_and_routes(ring)
    assert after == before
    assert "2001:db8" not in str(after)
    # Somebody else gives addresses there.
    wait_for("end of the offer", lambda: port_of(ring, "eth2")["offer"] is None, 20)


def routes(ring: Ring) -> list[str]:
    """A node's routes of both families."""
    shown = [ring[1].output("ip", family, "route").splitlines() for family in ("-6", "-4")]
    return sorted(line for lines in shown for line in lines)


def addresses_and_routes(ring: Ring) -> list[str]:
    """What a node has, but for what it offers itself on a stranger's port."""
    addresses = ring[1].output("ip", "-o", "address", "show", "scope", "global").splitlines()
    return [line for line in [*routes(ring), *addresses] if not any(offered in line for offered in OFFERED)]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/v1/registry", "", 403),
        ("POST", "/v1/enrol", "{}", 403),
        ("GET", "/", "", 404),
        ("POST", "/v1/join", "x" * 20_000, 413),
        ("POST", "/v1/join", "no JSON", 400),
        ("POST", "/v1/join", "[" * 9000, 400),
        ("POST", "/v1/join", join_request("ring", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n"), 400),
        ("POST", "/v1/join", join_request("another", "x"), 403),
    ],
)
def test_a_forged_request_gets_nothing(
    ring: Ring, stranger: Stranger, method: str, path: str, body: str, status: int
) -> None:
    answer = stranger.python(REQUEST, there(ring), str(RELAY), method, path, body)
    assert answer.startswith(f"{status} "), answer
    assert "BEGIN" not in answer


def test_a_replayed_request_gives_no_secret(ring: Ring, stranger: Stranger) -> None:
    """The ring admits all; whoever repeats another's request gets what only that one's key can read."""
    csr = pki.create_request((ring.first.cluster.directory / "pki/service-account.key").read_text(), "replayed")
    answer = stranger.python(REQUEST, there(ring), str(RELAY), "POST", "/v1/join", join_request("ring", csr))
    given = json.loads(answer.partition(" ")[2])
    keys = [(ring.first.cluster.directory / name).read_text().strip() for name in ("babel.key", "encryption.key")]
    assert given["state"] == "admitted"
    assert not [key for key in keys if key in answer]
    assert "PRIVATE KEY" not in answer
    wait_for("its object", lambda: f"ring-{given['number']}" in ring.kubectl("get", "meshnodes"), 30, 1)
    removed = kmbuild("nodes", "remove", str(given["number"]), "--yes", "--cluster", ring.first.cluster.directory)
    assert removed.returncode == 0, removed.stderr


def test_the_mesh_key_is_replaced_after_a_removal_and_no_packet_is_lost(ring: Ring) -> None:
    wait_for("mesh key of the second generation", lambda: (2,) in mesh_keys(ring) or (1, 2) in mesh_keys(ring), 60)
    with ThreadPoolExecutor(2) as pool:
        words = ("ping", "-n", "-q", "-i", "0.05", "-w", "40")
        pinging = [pool.submit(ring[1].output, *words, ring[number].address) for number in (3, 4)]
        shown = [one.result() for one in pinging]
    assert [" 0% packet loss" in one for one in shown] == [True, True], shown
    wait_for("end of the old mesh key", lambda: mesh_keys(ring) == {(2,)}, 120, 2)
    wait_for("whole ring", ring.is_whole, 60, 1)


def mesh_keys(ring: Ring) -> set[tuple[int, ...]]:
    """Generations of the mesh key that nodes have; one entry when all agree."""
    files = [json.loads(node.output("cat", "/var/lib/kubermesh/mesh-keys.json")) for node in ring.nodes.values()]
    return {tuple(sorted(map(int, keys))) for keys in files}


def test_a_storm_of_greetings_drowns_no_neighbour(ring: Ring, stranger: Stranger) -> None:
    stranger.python(STORM, PORT, str(STORM_S))
    neighbours = [port_of(ring, name)["neighbour"] for name in ("eth0", "eth1")]
    assert all(one and one["authenticated"] and one["since_s"] > STORM_S for one in neighbours), neighbours
    told = [event["name"] for event in ring[1].status()["events"] if "storm-" in event["name"]]
    assert len(told) <= 1, told
    wait_for("end of the stranger's greeting", lambda: port_of(ring, "eth2")["neighbour"] is None, 30, 1)


def test_a_storm_of_solicitations_fills_no_table(ring: Ring, stranger: Stranger) -> None:
    ask_from_many(stranger, ring[1], "eth2", "solicitation", "fe80:")


def test_no_secret_is_readable_without_a_certificate(ring: Ring) -> None:
    """Every port that listens on any node, asked by another node's own address without a certificate."""
    voters, standbys = ring.voters(), ring.with_role("standby")
    assert {number: listening(ring, number, "tcp") - OFFERING for number in ring.nodes} == {
        number: VOTER if number in voters else STANDBY if number in standbys else WORKER for number in ring.nodes
    }
    assert {number: listening(ring, number, "udp") - OFFERING for number in ring.nodes} == dict.fromkeys(
        ring.nodes, UDP
    )
    voter, worker = min(voters), min(ring.nodes.keys() - voters - standbys)
    for number, port in [(voter, port) for port in sorted(VOTER & ASKED.keys())] + [(worker, NODE), (worker, 10250)]:
        other = next(one for one in ring.nodes if one != number)
        result = ring[other].run("python3", "-c", REQUEST, ring[number].address, str(port), "GET", ASKED[port], "")
        # The node API ends the connection without an answer: who has sent a request already may hear of that alone.
        said = result.stderr.upper()
        refused = result.code != 0 and ("CERTIFICATE_REQUIRED" in said or (port == NODE and not result.stdout))
        assert refused or result.stdout[:3] in ("401", "403"), (number, port, result)


def listening(ring: Ring, number: int, protocol: str) -> set[int]:
    """Ports on which a node listens, by any address but those of its loopback."""
    places = [line.split()[3] for line in ring[number].output("ss", "-Hln", f"--{protocol}").splitlines()]
    return {int(place.rpartition(":")[2]) for place in places if not place.startswith(("127.", "[::1]"))}


def test_nothing_was_trusted_meanwhile(ring: Ring, stranger: Stranger) -> None:
    assert port_of(ring, "eth2")["neighbour"] is None
    assert "eth2" not in ring[1].output("nft", "list", "set", "inet", "kubermesh", "trusted")

"""Five nodes in a ring of cables: everything reaches everything, and any cable or node may go."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from machines import DUMP, Node, wait_for
from rings import Ring

from kmagent import babel, network, seqno
from kmcluster import cabling, steady
from kmcluster.cable import parse_port
from kmcluster.nspawn_cables import HOLDER, middle
from kmplan.cluster import read_cluster
from kmplan.run import run

MAIN_PID = ("systemctl", "show", "--property=MainPID", "--value")
SERVICE = "http://{}.default.svc.cluster.local/"

# Answers one connection with the address it came from.
ECHO = """
import socket, sys
server = socket.create_server((sys.argv[1], 7777), family=socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET)
server.settimeout(30)
peer, address = server.accept()
peer.sendall(address[0].encode())
peer.close()
"""
ASK = """
import socket, sys, time
for _ in range(50):
    try:
        peer = socket.create_connection((sys.argv[1], 7777), 2)
        break
    except OSError:
        time.sleep(0.2)
print(peer.recv(100).decode())
"""
# Asks a name server for an AAAA record (RFC 1035, 4.1); shows the answer's status and number of records.
RESOLVE = """
import socket, sys
labels = b"".join(bytes([len(part)]) + part.encode() for part in sys.argv[2].split("."))
peer = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
peer.settimeout(3)
peer.sendto(bytes.fromhex("000101000001000000000000") + labels + bytes.fromhex("00001c0001"), (sys.argv[1], 53))
answer = peer.recv(512)
print(answer[3] & 15, answer[7])
"""

# A neighbour of babeld's, on the agent's cable to it, that announces a prefix: Hello, IHU, Router-Id, Update (RFC 8966, 4.6).
ANNOUNCE = """
import socket, struct, sys, time
prefix = socket.inet_pton(socket.AF_INET6, sys.argv[1])
made = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
place = ("ff02::1:6", 6696, 0, socket.if_nametoindex(sys.argv[2]))
for number in range(30):
    body = struct.pack("!BBHHH", 4, 6, 0, number, 20) + struct.pack("!BBBBHH", 5, 6, 0, 0, 0, 300)
    body += struct.pack("!BBH8s", 6, 10, 0, b"stranger") + struct.pack("!BBBBBBHHH16s", 8, 26, 2, 0, 128, 0, 200, 1, 0, prefix)
    made.sendto(struct.pack("!BBH", 42, 2, len(body)) + body, place)
    time.sleep(0.1)
"""

# The sequence numbers that a router (its id) is heard to have on a port within three seconds: Router-Id and Update TLVs.
NUMBERS = """
import socket, sys, time
port, router = sys.argv[1], bytes.fromhex(sys.argv[2])
heard = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x86DD))
heard.bind((port, 0x86DD))
heard.settimeout(0.5)
found, end = set(), time.monotonic() + 3
while time.monotonic() < end:
    try:
        packet = heard.recv(2000)[48:]
    except TimeoutError:
        continue
    place, now = 4, b""
    while packet[:2] == bytes([42, 2]) and place < 4 + int.from_bytes(packet[2:4]):
        kind, size = packet[place], packet[place + 1] if packet[place] else -1
        body = packet[place + 2 : place + 2 + size]
        now = body[2:10] if kind == 6 else now
        if kind == 8 and now == router:
            found.add(int.from_bytes(body[6:8]))
        place += 2 + size
print(*sorted(found))
"""
RENEW = "import sys; from kmagent import seqno; seqno.renew(bytes.fromhex(sys.argv[1]), sys.argv[2])"


def test_three_of_five_nodes_vote_and_one_is_kept_warm(ring: Ring) -> None:
    roles = {number: node.status()["role"] for number, node in ring.nodes.items()}
    assert sorted(roles.values()) == ["standby", "voter", "voter", "voter", "worker"]
    assert roles[1] == "voter"


def good_links(node: Node) -> set[int]:
    """The neighbours that a node is joined to by a cable which loses nothing and answers soon."""
    seen = [port["neighbour"] for port in node.status()["ports"] if port["neighbour"]]
    return {one["number"] for one in seen if one["authenticated"] and one["cost"] == babel.WIRED}


def test_every_node_knows_its_neighbours(ring: Ring) -> None:
    for number, node in ring.nodes.items():
        around = {(number - 2) % 5 + 1, number % 5 + 1}
        wait_for(f"good links of {number}", lambda of=node, to=around: good_links(of) == to, 20, 1)


def test_pods_reach_pods_two_hops_away_over_both_families(ring: Ring) -> None:
    for number, other in ((1, 3), (2, 4), (3, 5), (4, 1)):
        wait_for(f"page of {other} at {number}", lambda a=number, b=other: ring.reaches(a, b), 30, 1)


def test_services_and_names_work_on_every_node(ring: Ring) -> None:
    names = {node.machine.name for node in ring.nodes.values()}
    for number in ring.nodes:
        for service in ("any6", "any4"):
            url = SERVICE.format(service)
            wait_for(f"page of {service} at {number}", lambda n=number, u=url: ring.fetch(n, u) in names, 30, 1)


def test_what_a_node_sends_comes_from_its_own_address(ring: Ring) -> None:
    addresses = {number: node.status()["node"]["addresses"] for number, node in ring.nodes.items()}
    for family in (0, 1):
        target = addresses[3][family]
        ring[3].output("sh", "-c", f"python3 -c '{ECHO}' {target} >/dev/null 2>&1 &")
        assert ring[1].python(ASK, target) == addresses[1][family]


def test_traceroute_shows_the_hops(ring: Ring) -> None:
    # Either way around is a good one: which of them it is may change while this looks.
    ways = (ring[2].status()["node"]["addresses"], ring[5].status()["node"]["addresses"])
    for address, *hops in zip(ring[3].status()["node"]["addresses"], *ways, strict=True):
        # ping ends with 1 when nothing but an error came back.
        shown = ring[1].run("ping", "-n", "-c", "1", "-t", "1", address).stdout
        assert any(f"From {hop} " in shown for hop in hops), shown


def test_a_pulled_cable_is_gone_around(ring: Ring) -> None:
    port = ring.next_hop(1, 2)
    ring.cable(1, 2, "cut")
    wait_for("other way", lambda: ring.next_hop(1, 2) != port and ring.reaches(1, 2), 20)
    wait_for("lost neighbour", lambda: not ring[1].neighbour(port) and not ring[2].neighbour("eth0"), 20)
    assert len(ring.ready()) == 5
    ring.heal([(1, 2)])
    wait_for("direct way", lambda: ring.next_hop(1, 2) == port, 20)


def test_a_cable_may_be_moved_to_another_port(ring: Ring) -> None:
    cabling.move("ring", "2:eth1", "2:eth2")
    wait_for("neighbour on the new port", lambda: ring[2].neighbour("eth2") == ring[3].machine.name, 20)
    wait_for("way over the new port", lambda: ring.next_hop(2, 3) == "eth2" and ring.reaches(2, 3), 20)
    cabling.move("ring", "2:eth2", "2:eth1")
    wait_for("neighbour on the old port", lambda: ring[2].neighbour("eth1") == ring[3].machine.name, 20)


def test_who_was_taken_for_a_stranger_is_reached_over_both_families(ring: Ring) -> None:
    """Nobody says hello for a while: the port is given IPv4 addresses for strangers, of which no neighbour may hear."""
    ring[2].output("systemctl", "stop", "kmagent")
    assert ring[2].status()["state"] == "stopped"
    wait_for(
        "offer", lambda: [port for port in ring[1].status()["ports"] if port["name"] == "eth0" and port["offer"]], 60
    )
    wait_for("addresses", lambda: "198.19." in ring[1].output("ip", "address", "show", "dev", "eth0"), 10)
    assert ring[1].babel().interfaces == {"eth1", "eth2"}
    # One that knows no way there yet takes the first that it hears of.
    ring[2].output("systemctl", "restart", "kubermesh-babeld")
    ring[2].output("systemctl", "start", "kmagent")
    wait_for("neighbour", lambda: ring[1].neighbour("eth0") == ring[2].machine.name, 30)
    wait_for("direct way", lambda: ring.next_hop(2, 1) == "eth0", 15)
    wait_for("page", lambda: ring.reaches(1, 2), 10, 1)
    assert "198.19." not in ring[2].output("ip", "-4", "route")
    wait_for("whole ring", ring.is_whole, 60, 1)


def test_babeld_takes_a_newer_number_when_the_agent_requests_one(ring: Ring) -> None:
    said = ring[2].python(DUMP)
    router = next(line.split()[1] for line in said.splitlines() if line.startswith("my-id")).replace(":", "")

    def numbers() -> set[int]:
        return set(map(int, ring[1].python(NUMBERS, "eth0", router).split()))

    def takes_one() -> bool:
        """One number, or two, are taken: more when ways change meanwhile, which is no fault."""
        before = wait_for("one number, as nothing changes", lambda: len(found := numbers()) == 1 and found, 60)
        ring[2].python(RENEW, router, ring[2].address)
        after = wait_for("a newer one", lambda: len(found := numbers()) == 1 and found, 20)
        assert 1 <= (max(after) - max(before)) % 65536 <= 2
        return True

    wait_for("one newer number, or two", takes_one, 60)


def test_no_process_of_a_node_announces_anything(ring: Ring) -> None:
    """The agent's cable to babeld has no key, and is there for all that is in the host's network."""
    prefix = f"{ring[2].address.rpartition('::')[0]}::dead"
    ring[2].python(ANNOUNCE, prefix, seqno.AGENT_END)
    for number in (1, 2, 3):
        assert f"{prefix}/128" not in {route.prefix for route in ring[number].babel().routes}


def test_only_root_says_anything_on_the_agents_cable_to_babeld(ring: Ring) -> None:
    """Whoever asks for a thousand newer numbers takes a node's ways from the others."""
    asked = ring[2].run("setpriv", "--reuid=65534", "python3", "-c", ANNOUNCE, "2001:db8::", seqno.AGENT_END)
    assert asked.code != 0 and "Operation not permitted" in asked.stderr


def test_a_way_that_leads_nowhere_is_told(ring: Ring) -> None:
    """As of a steady state that is none: `kmbuild verify` ends with that question."""
    cluster, address = ring.first.cluster, ring[1].status()["node"]["addresses"][1]
    wait_for("steady ring", lambda: steady.complaints(cluster) == [], 60, 1)
    ring[2].output("ip", "route", "add", "unreachable", address)
    try:
        assert f"{ring[2].machine.name} does not reach {address}" in steady.complaints(cluster)
    finally:
        ring[2].output("ip", "route", "del", "unreachable", address)


def test_a_port_may_go_and_come_while_the_node_runs(ring: Ring) -> None:
    cluster = ring[4].cluster
    names = lambda: {port["name"] for port in ring[4].status()["ports"]}  # noqa: E731
    assert "eth2" in names()
    holder = cluster.processes[HOLDER].pid
    run(["nsenter", f"--target={holder}", "--net", "ip", "link", "del", middle(parse_port("4:eth2"))])
    wait_for("port that is gone", lambda: "eth2" not in names(), 20)
    # Power on of a machine that is on puts missing ports in.
    ring[4].power("on")
    wait_for("port that is back", lambda: "eth2" in names(), 20)
    assert "UP" in ring[4].output("ip", "-br", "link", "show", "dev", "eth2").split("<")[1]


def test_large_packets_fit_through_every_link(ring: Ring) -> None:
    # After a cable was away, babeld waits a little before it takes the shorter way again.
    wait_for("shortest ways", lambda: ring.next_hop(2, 4) == ring.next_hop(3, 4) == "eth1", 60)
    pods = ring.pods()
    for source, target in ((3, 4), (4, 3), (2, 4)):
        for host in (f"[{pods[target].address6}]", pods[target].address4):
            wait_for(
                f"page of {host}", lambda n=source, h=host: len(ring.fetch(n, f"http://{h}:8080/large")) >= 200_000, 30
            )
    # One hop before the narrow link: node 3 says how large a packet may be.
    for address, hop in zip(ring[4].status()["node"]["addresses"], ring[3].status()["node"]["addresses"], strict=True):
        wait_for("word of the narrow link", lambda a=address, h=hop: is_told_size(ring[2], a, h), 60, 1)


def is_told_size(node: Node, address: str, hop: str) -> bool:
    """Whether a hop says that a packet of 1448 bytes to an address is too large; each family has routes of its own.

    A node that was told before, as TCP between nodes may have been, sends no such packet for ten minutes: it shall forget.
    """
    node.output("ip", "-6" if ":" in address else "-4", "route", "flush", "cache")
    shown = node.run("ping", "-n", "-c", "1", "-M", "do", "-s", "1420", address).stdout
    assert f"From {hop}" in shown, shown
    assert "mtu=1400" in shown or "mtu = 1400" in shown, shown
    return True


def test_ends_of_a_cable_that_take_packets_of_different_sizes_are_told(ring: Ring) -> None:
    ring[5].output("ip", "link", "set", "eth1", "mtu", "1420")
    told = "mtu 1500 on eth1, and 1420 at the other end"
    try:
        wait_for("event", lambda: told in [event["name"] for event in ring[1].status()["events"]], 20)
    finally:
        ring[5].output("ip", "link", "set", "eth1", "mtu", "1500")


def test_a_node_cut_off_still_reaches_what_is_local(ring: Ring) -> None:
    (lonely, *_) = set(ring.nodes) - ring.voters()
    left, right = (lonely - 2) % 5 + 1, lonely % 5 + 1
    pod, node = ring.pods()[lonely], ring[lonely]
    ring.cable(left, lonely, "cut")
    ring.cable(lonely, right, "cut")
    ask = "import socket,sys; print(socket.create_connection((sys.argv[1], 8080), 3).getpeername()[0])"
    wait_for("local pod", lambda: node.python(ask, pod.address6) == pod.address6, 20)
    dns = str(read_cluster(node.cluster.directory).plan.dns)
    wait_for("local name service", lambda: node.python(RESOLVE, dns, "any6.default.svc.cluster.local") == "0 1", 30, 1)
    ring.heal([(left, lonely), (lonely, right)])


def test_the_smaller_side_of_a_partition_gives_up_the_api_and_comes_back(ring: Ring) -> None:
    voters = sorted(ring.voters() - {1})
    # Cut out one voter that is not the seed, by both its cables.
    lonely = voters[0]
    left, right = (lonely - 2) % 5 + 1, lonely % 5 + 1
    ring.cable(left, lonely, "cut")
    ring.cable(lonely, right, "cut")
    wait_for("withdrawn API", lambda: not ring[lonely].status()["conditions"]["announced"], 60)
    wait_for(
        "written object", lambda: ring.kubectl("create", "configmap", "partition", "--from-literal=kept=yes"), 60, 1
    )
    ring.heal([(left, lonely), (lonely, right)])
    assert ring.kubectl("get", "configmap", "partition", "-o", "jsonpath={.data.kept}") == "yes"
    wait_for("announced API", lambda: ring[lonely].status()["conditions"]["announced"], 60)


def test_a_second_fault_right_after_the_first_is_gone_around_too(ring: Ring) -> None:
    """A node that had no cable for a moment has to be looked for the long way soon after; no detour lasts for as long as this."""
    both = [(2, 3), (3, 4)]
    for a, b in both:
        ring.cable(a, b, "cut")
    wait_for("nobody's way there", lambda: not ring[1].has_way_to(ring[3]), 20)
    for a, b in both:
        ring.cable(a, b, "plug")
    wait_for("way there", lambda: ring[1].has_way_to(ring[3]), 20)
    for a, b in ((1, 2), (2, 3)):
        ring.cable(a, b, "cut")
    wait_for("other way", lambda: ring[1].has_way_to(ring[3]), 10)
    time.sleep(network.DETOUR_S)
    for _ in range(10):
        assert ring.reaches(1, 3)
        time.sleep(0.3)
    ring.heal([(1, 2), (2, 3)])


def test_a_node_that_dies_is_gone_around_and_comes_back(ring: Ring) -> None:
    through = 2 if ring.next_hop(1, 3) == "eth0" else 5
    ring[through].power("cut")
    wait_for("other way", lambda: ring.reaches(1, 3), 30)
    ring[through].power("on")
    wait_for("whole ring", ring.is_whole, 120, 1)


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_traffic_does_not_notice_that_an_agent_is_killed(ring: Ring, number: int) -> None:
    """Twice in a row, so that it is killed once more while it sets itself up."""
    left, right = ring[(number - 2) % 5 + 1], ring[number % 5 + 1]
    with ThreadPoolExecutor(1) as pool:
        pinging = pool.submit(left.output, "ping", "-n", "-q", "-i", "0.05", "-c", "200", right.address)
        for _ in range(2):
            pid = wait_for(
                "agent", lambda: ring[number].output(*MAIN_PID, "kmagent.service").strip().removeprefix("0"), 20
            )
            ring[number].run("kill", "-9", pid)
            wait_for("new agent", lambda old=pid: ring[number].output(*MAIN_PID, "kmagent.service").strip() != old, 20)
        shown = pinging.result()
    assert " 0% packet loss" in shown, shown
    wait_for("whole ring", ring.is_whole, 60, 1)


def test_no_unit_failed(ring: Ring) -> None:
    for node in ring.nodes.values():
        assert node.output("systemctl", "--failed", "--no-legend", "--plain") == "", node.machine.name

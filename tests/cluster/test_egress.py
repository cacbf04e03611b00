"""Ways out of the cluster: two gateways, and a third port where a router is heard."""

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from firmware import DHCP4
from machines import IMAGE, Node, boot, wait_for
from stranger import CONNECT, PORT, Stranger, plugged_in
from test_strangers import ADVERTISE

from kmagent import boot_image
from kmbuild.cluster import make_directory
from kmbuild.locate import locate_image
from kmplan.run import spawn

pytestmark = pytest.mark.turn(3)

WORLD6, WORLD4 = "2001:db8:ffff::1", "198.51.100.1"

# Answers every connection with a name, and the address it came from. Arguments: name.
SERVE = """
import socket, sys
server = socket.create_server(("::", 7), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64)
while True:
    peer, address = server.accept()
    peer.sendall(f"{sys.argv[1]} {address[0].removeprefix('::ffff:')}".encode())
    peer.close()
"""
ASK = "import socket, sys; print(socket.create_connection((sys.argv[1], 7), 3).recv(100).decode())"

GATEWAYS = [
    {
        "node": f"out-{number}",
        "port": "eth2",
        "addresses": [f"192.0.2.{16 * number + 2}/28", f"2001:db8:{number}::2/64"],
        "routers": [f"192.0.2.{16 * number + 1}", f"2001:db8:{number}::1"],
    }
    for number in (1, 3)
]
# One port more, which takes what the network out there offers.
DYNAMIC = {"node": "out-3", "port": "eth1"}
LEASES = """
interface {port}
start 203.0.113.10
end 203.0.113.20
lease_file {folder}/leases
pidfile {folder}/udhcpd.pid
option subnet 255.255.255.0
option router 203.0.113.1
option lease 600
"""


@pytest.fixture(scope="module")
def out(bench_home: Path, busybox: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Node]]:
    """Three nodes in a line whose ends have a way out."""
    directory = tmp_path_factory.mktemp("clusters") / "out"
    make_directory(directory, "out", egress={"gateways": [*GATEWAYS, DYNAMIC], "discover": True})
    topology = Path(__file__).parent / "line.yaml"
    booted = boot("nspawn", busybox, topology, "out", "--cluster", str(directory))
    next(booted)
    yield {number: Node("out", number) for number in (1, 2, 3)}
    next(booted, None)


@pytest.fixture(scope="module")
def world(out: dict[int, Node], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Stranger]]:
    """Two routers, each with the whole world behind it."""
    log = tmp_path_factory.mktemp("world") / "log"
    with ExitStack() as stack:
        routers, servers = {}, []
        for number in (1, 3):
            router = stack.enter_context(plugged_in(out[1].cluster, f"{number}:eth2"))
            for address in (f"192.0.2.{16 * number + 1}/28", f"2001:db8:{number}::1/64"):
                router.run("ip", "address", "add", address, "dev", PORT, *(["nodad"] if ":" in address else []))
            for address in (WORLD6, WORLD4):
                router.run("ip", "address", "add", address, "dev", "lo")
            servers.append(spawn(router.argv(sys.executable, "-c", SERVE, f"router{number}"), log=log))
            routers[number] = router
        yield routers
        for server in servers:
            server.kill()
            server.wait()


def ask(node: Node, address: str) -> str:
    return node.python(ASK, address)


@pytest.mark.parametrize("address", [WORLD6, WORLD4])
def test_every_node_reaches_the_world_through_the_nearest_gateway(
    out: dict[int, Node], world: dict[int, Stranger], address: str
) -> None:
    outside = {1: ["2001:db8:1::2", "192.0.2.18"], 3: ["2001:db8:3::2", "192.0.2.50"]}
    nearest = {1: "router1", 2: "router", 3: "router3"}
    for number, node in out.items():
        wait_for(f"world at {node.machine.name}", lambda n=number: ask(out[n], address).startswith(nearest[n]), 60, 1)
        shown = ask(node, address)
        router = 3 if "router3" in shown else 1
        # Masqueraded: the world sees the gateway.
        assert shown.split()[1] in outside[router], shown


def test_the_other_gateway_takes_over(out: dict[int, Node], world: dict[int, Stranger]) -> None:
    assert ask(out[1], WORLD6).startswith("router1")
    world[1].run("ip", "link", "set", PORT, "down")
    wait_for("world through the other gateway", lambda: ask(out[1], WORLD6).startswith("router3"), 60, 1)
    wait_for("world through the other gateway", lambda: ask(out[1], WORLD4).startswith("router3"), 60, 1)
    world[1].run("ip", "link", "set", PORT, "up")
    world[1].run("ip", "address", "replace", "2001:db8:1::1/64", "dev", PORT, "nodad")
    wait_for("world through the own gateway", lambda: ask(out[1], WORLD6).startswith("router1"), 60, 1)


def test_pods_reach_the_world(out: dict[int, Node], world: dict[int, Stranger]) -> None:
    arguments = ["--image=kubermesh.local/busybox:1", "--restart=Never", "--image-pull-policy=Never", "--command", "--"]
    out[1].kubectl("run", "out", *arguments, "sh", "-c", f"sleep 3 | nc {WORLD4} 7; echo; sleep 3 | nc {WORLD6} 7")
    shown = wait_for("answers in the pod's log", lambda: answers(out[1]), 60, 1)
    assert shown.count("router") == 2


def answers(node: Node) -> str:
    shown = node.kubectl("logs", "out")
    return shown if shown.count("router") == 2 else ""


def test_the_world_reaches_nothing_inside(out: dict[int, Node], world: dict[int, Stranger]) -> None:
    ports = (22, 2379, 2380, 6443, 9440, 9442, 9443, boot_image.PORT, 10250)
    world[1].run("ip", "-6", "route", "replace", "fd00::/8", "via", "2001:db8:1::2")
    addresses = ("2001:db8:1::2", "192.0.2.18", out[1].address, out[2].address)
    assert world[1].python(CONNECT, *(f"{address} {port}" for address in addresses for port in ports)) == ""


def test_a_way_out_is_no_cable_to_boot_from(out: dict[int, Node], world: dict[int, Stranger]) -> None:
    """Nobody out there is offered a system, whatever firmware asks for it."""
    shown = {port["name"]: port for port in out[1].status()["ports"]}["eth2"]
    assert (shown["kind"], shown["carrier"], shown["offer"]) == ("gateway", True, None)
    for client, architecture in (("HTTPClient", 16), ("PXEClient", 7)):
        vendor = f"{client}:Arch:{architecture:05}:UNDI:003001"
        assert json.loads(world[1].python(DHCP4, PORT, vendor, str(architecture), "")) is None
    assert "kubermesh-dnsmasq@eth2" not in out[1].output(
        "systemctl", "list-units", "--plain", "--no-legend", "kubermesh-*"
    )


def test_a_router_that_is_heard_makes_a_gateway(out: dict[int, Node], world: dict[int, Stranger]) -> None:
    with plugged_in(out[1].cluster, "2:eth2") as router:
        router.run("ip", "address", "add", WORLD6, "dev", "lo")
        log = Path(out[1].cluster.folder) / "heard.log"
        server = spawn(router.argv(sys.executable, "-c", SERVE, "heard"), log=log)
        router.run("ip", "-6", "route", "add", "2001:db8:bad::/64", "dev", PORT)
        advertiser = spawn(
            router.argv("sh", "-c", f"while :; do {sys.executable} -c '{ADVERTISE}' {PORT}; done"), log=log
        )
        try:
            wait_for("world through the router that is heard", lambda: ask(out[2], WORLD6).startswith("heard"), 90, 1)
            advertiser.kill()
            out[2].output("systemctl", "restart", "kmagent")
            wait_for("the new agent", lambda: out[2].status()["node"]["name"], 60, 1)
            assert ask(out[2], WORLD6).startswith("heard")
            router.run("ip", "-6", "address", "flush", "dev", PORT)
            wait_for("world through another router", lambda: ask(out[2], WORLD6).startswith("router"), 60, 1)
        finally:
            for child in (advertiser, server):
                child.kill()
                child.wait()


def test_a_gateway_port_takes_an_address_that_is_leased_to_it(
    out: dict[int, Node], world: dict[int, Stranger], tmp_path: Path
) -> None:
    (tmp_path / "udhcpd.conf").write_text(LEASES.format(port=PORT, folder=tmp_path))
    (tmp_path / "leases").touch()
    busybox = str(locate_image(IMAGE).tools / "usr/bin/busybox")
    with plugged_in(out[1].cluster, "3:eth1") as router:
        router.run("ip", "address", "add", "203.0.113.1/24", "dev", PORT)
        router.run("ip", "address", "add", WORLD4, "dev", "lo")
        commands = ([sys.executable, "-c", SERVE, "leased"], [busybox, "udhcpd", "-f", str(tmp_path / "udhcpd.conf")])
        children = [spawn(router.argv(*argv), log=tmp_path / "log") for argv in commands]
        try:
            world[3].run("ip", "link", "set", PORT, "down")
            shown = wait_for("world through the leased address", lambda: leased(out[3]), 60, 1)
            assert shown.startswith("leased 203.0.113.1")
        finally:
            for child in children:
                child.kill()
                child.wait()


def leased(node: Node) -> str:
    shown = ask(node, WORLD4)
    assert shown.startswith("leased"), shown
    return shown

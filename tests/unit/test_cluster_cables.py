"""Cables: what may be asked of them, and what the drivers are told to do."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from msgspec.structs import replace
from test_cluster_state import make_cluster

from kmbuild.cluster import cluster as command
from kmcluster import cabling, nspawn_cables, process, qemu_cables, relays, state
from kmcluster.cable import Cable, Port
from kmcluster.qemu_argv import port_arguments
from kmcluster.state import Cluster, Machine
from kmcluster.topology import Boot, Node, Role
from kmplan.errors import UserError

CABLE = Cable(number=1, a=Port(1, 0), b=Port(2, 1))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def cabled() -> Cluster:
    """Two nodes with two cables (1:eth0-2:eth1, 2:eth0-1:eth1), and node 3 on node 1; all off."""
    cluster = make_cluster("lab")
    cluster.machines = [
        Machine(name=f"lab-{number}", number=number, node=Node(role=Role.SEED if number == 1 else Role.BLANK), ports=4)
        for number in (1, 2, 3)
    ]
    cluster.cables = [
        CABLE,
        Cable(number=2, a=Port(2, 0), b=Port(1, 1)),
        Cable(number=3, a=Port(3, 0), b=Port(1, 2), mtu=1400),
    ]
    with state.locked("lab", make=True):
        cluster.save()
    return cluster


def refused(*arguments: str) -> str:
    result = CliRunner().invoke(command, arguments)
    assert isinstance(result.exception, UserError), result
    assert "\n" not in str(result.exception)
    return str(result.exception)


@pytest.mark.parametrize(
    ("action", "loss", "delay", "expected", "word"),
    [
        ("cut", None, None, (True, (0, 0), 0), "cut"),
        ("plug", None, None, (False, (0, 0), 0), "plugged"),
        ("lossy", None, None, (False, (30, 30), 0), "lossy"),
        ("lossy", 5.0, 2.0, (False, (5, 5), 2), "lossy"),
        ("slow", None, None, (False, (0, 0), 15), "slow"),
        ("slow", 1.0, 40.0, (False, (1, 1), 40), "lossy"),
        ("one-way", None, None, (False, (100, 0), 0), "one-way"),
        ("one-way", 30, None, (False, (100, 30), 0), "one-way"),
    ],
)
def test_an_action_replaces_the_whole_condition(
    action: str, loss: float | None, delay: float | None, expected: tuple[object, ...], word: str
) -> None:
    worn = Cable(number=1, a=Port(1, 0), b=Port(2, 1), loss_percent=(7.0, 8.0), delay_ms=9.0)
    made = cabling.treat(worn, action, loss, delay)
    assert (made.cut, made.loss_percent, made.delay_ms) == expected
    assert made.state == word


def test_one_way_is_the_way_it_was_asked_for(cabled: Cluster) -> None:
    assert cabling.change("lab", "1", "3", "one-way", None, None).loss_percent == (0, 100)
    assert cabling.change("lab", "3", "1", "one-way", None, None).loss_percent == (100, 0)


def test_what_was_done_stays_in_the_state_file(cabled: Cluster) -> None:
    assert CliRunner().invoke(command, ["cable", "lab-3", "1", "lossy", "--loss", "12.5"]).exit_code == 0
    (cable,) = [cable for cable in state.load("lab").cables if cable.number == 3]
    assert (cable.loss_percent, cable.mtu) == ((12.5, 12.5), 1400)


def test_status_lists_the_cables(cabled: Cluster) -> None:
    cabling.change("lab", "1:eth0", "2:eth1", "cut", None, None)
    shown = CliRunner().invoke(command, ["status"]).stdout.splitlines()
    assert [line.split()[:3] for line in shown[-3:]] == [
        ["lab-1:eth0", "lab-2:eth1", "cut"],
        ["lab-2:eth0", "lab-1:eth1", "plugged"],
        ["lab-3:eth0", "lab-1:eth2", "plugged"],
    ]


def test_several_cables_between_two_nodes_want_ports(cabled: Cluster) -> None:
    expected = "several cables between 1 and 2; there are: 1:eth0 2:eth1, 2:eth0 1:eth1"
    assert refused("cable", "1", "2", "cut") == expected
    assert cabling.change("lab", "1:eth1", "2", "cut", None, None).number == 2
    assert cabling.change("lab", "lab-2:eth1", "lab-1", "cut", None, None).number == 1


def test_no_such_cable_lists_those_there_are(cabled: Cluster) -> None:
    listed = "there are: 1:eth0 2:eth1, 2:eth0 1:eth1, 3:eth0 1:eth2"
    assert refused("cable", "2", "3", "cut") == f"no cable between 2 and 3 in cluster lab; {listed}"
    assert refused("cable", "1", "9", "cut") == "9: no such node in cluster lab; nodes: lab-1, lab-2, lab-3"
    assert refused("cable", "1:wan", "2", "cut").startswith("1:wan: not a port; ")


def test_a_cut_cable_has_no_loss(cabled: Cluster) -> None:
    expected = "cut takes neither loss nor delay; give them with lossy, slow or one-way"
    assert refused("cable", "1", "3", "cut", "--loss", "3") == expected


def test_a_plug_can_be_put_into_another_port(cabled: Cluster) -> None:
    assert CliRunner().invoke(command, ["recable", "1:eth2", "2:eth3"]).stdout == "3:eth0 - 2:eth3  plugged\n"
    assert state.load("lab").cables[2].b == Port(2, 3)


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("1:eth3", "2:eth3", "no cable in 1:eth3 of cluster lab; there are: 1:eth0 2:eth1, "),
        ("1:eth2", "2:eth0", "cluster lab: cables[2].b: 2:eth0 is taken by cables[1].a; a port takes one cable"),
        ("1:eth2", "2:eth4", "cluster lab: cables[2].b: 2:eth4: node 2 has 4 port(s), counted from eth0"),
        ("1:eth2", "3:eth1", "cluster lab: cables[2]: both ends are on node 3"),
        ("1", "3:eth1", "1: not a port; write a node and its port, such as 1:eth0"),
    ],
)
def test_a_plug_goes_into_free_ports_only(cabled: Cluster, source: str, target: str, expected: str) -> None:
    assert refused("recable", source, target).startswith(expected)
    assert state.load("lab").cables == cabled.cables


def test_nspawn_ports() -> None:
    assert nspawn_cables.port_batch(Port(12, 3), 1400, 77) == (
        "link add name 12-eth3 mtu 1400 type veth peer name eth3 mtu 1400 address 52:54:00:6c:0c:03 netns 77\n"
    )
    assert nspawn_cables.carrier_batch([(Port(1, 0), True), (Port(1, 1), False)]) == (
        "link set dev 1-eth0 up\nlink set dev 1-eth1 down\n"
    )


CHAIN = 'type filter hook ingress device "{}" priority 0; policy drop;'


def ruleset(cable: Cable) -> list[str]:
    return nspawn_cables.rules(cable, True).splitlines()


def test_nspawn_rules_of_a_good_cable_carry_both_ways() -> None:
    assert ruleset(CABLE) == [
        "table netdev cable1",
        "delete table netdev cable1",
        "table netdev cable1 {",
        f'  chain ab {{ {CHAIN.format("1-eth0")} fwd to "2-eth1"; }}',
        f'  chain ba {{ {CHAIN.format("2-eth1")} fwd to "1-eth0"; }}',
        "}",
    ]


def test_nspawn_rules_lose_each_way_what_they_are_told() -> None:
    lossy = ruleset(Cable(number=1, a=Port(1, 0), b=Port(2, 1), loss_percent=(12.5, 100.0)))
    assert lossy[3:5] == [
        f'  chain ab {{ {CHAIN.format("1-eth0")} numgen random mod 10000 < 1250 drop; fwd to "2-eth1"; }}',
        f"  chain ba {{ {CHAIN.format('2-eth1')} }}",
    ]


def test_nspawn_rules_leave_a_slow_cable_to_the_relay() -> None:
    slow = nspawn_cables.rules(Cable(number=1, a=Port(1, 0), b=Port(2, 1), delay_ms=15), True)
    assert "fwd" not in slow
    assert "numgen" not in slow


def test_nothing_is_left_of_a_dead_cable() -> None:
    assert nspawn_cables.rules(CABLE, False) == "table netdev cable1\ndelete table netdev cable1\n"


def test_a_port_has_carrier_when_the_other_machine_is_there(cabled: Cluster) -> None:
    cabled.cables[1] = cabling.treat(cabled.cables[1], "cut", None, None)
    there = {"1-eth0", "1-eth1", "1-eth2", "1-eth3", "2-eth0", "2-eth1"}
    up = {port for port, carrier in nspawn_cables.carriers(cabled, there) if carrier}
    assert up == {Port(1, 0), Port(2, 1)}


def test_ports_of_a_machine_that_switched_itself_off_are_dead(cabled: Cluster) -> None:
    """Those of one that is on its way are not: it has no process 1 yet."""
    running = process.identify(os.getpid())
    cabled.machines[0].processes = {"forward": running, "init": running}
    cabled.machines[1].processes = {"forward": running, "init": replace(running, started=1)}
    cabled.machines[2].processes = {"forward": running}
    assert nspawn_cables.left_behind(cabled) == {f"2-eth{number}" for number in range(4)}


def test_qemu_ports() -> None:
    assert port_arguments(Port(2, 1), 1400, Boot.DISK) == [
        "-netdev",
        "dgram,id=eth1,local.type=unix,local.path=eth1.sock,remote.type=unix,remote.path=eth1.cable",
        "-device",
        "virtio-net-pci,netdev=eth1,mac=52:54:00:6c:02:01,host_mtu=1400,romfile=",
    ]
    assert port_arguments(Port(2, 1), 1400, Boot.HTTP)[-1].endswith(",bootindex=3")


def test_qemu_ports_have_carrier_when_both_machines_are_on(cabled: Cluster) -> None:
    me = process.identify(os.getpid())
    cabled.machines[0].processes["qemu"] = cabled.machines[1].processes["qemu"] = me
    cabled.cables[0] = cabling.treat(cabled.cables[0], "cut", None, None)
    assert qemu_cables.live_ports(cabled) == {Port(2, 0), Port(1, 1)}


@pytest.fixture
def relayed(cabled: Cluster, tmp_path: Path) -> Iterator[tuple[Cluster, list[socket.socket]]]:
    """Sockets of two QEMU ports."""
    machines = cabled.folder / "machines"
    # Sockets have short paths only.
    here = Path.cwd()
    ends = []
    for port in (CABLE.a, CABLE.b):
        folder = machines / f"lab-{port.node}"
        folder.mkdir(parents=True)
        os.chdir(folder)
        ends.append(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        ends[-1].bind(f"{port.name}.sock")
        ends[-1].settimeout(5)
    os.chdir(machines)
    yield cabled, ends
    os.chdir(here)
    for role in list(cabled.processes):
        cabled.end_process(role)
    for end in ends:
        end.close()


def keep(cluster: Cluster, cable: Cable | None) -> None:
    argv = relays.relay_argv("unix", "lab-1/eth0", "lab-2/eth1", cable) if cable else None
    relays.keep_relay(cluster, CABLE, argv, str(cluster.folder / "machines"))


def send(end: socket.socket, path: str, frame: bytes) -> None:
    deadline = time.monotonic() + 5
    while True:
        try:
            end.sendto(frame, path)
            return
        except OSError:
            assert time.monotonic() < deadline, "no relay listens"
            time.sleep(0.01)


def test_a_relay_carries_both_ways_and_holds_what_is_not_taken_at_once(
    relayed: tuple[Cluster, list[socket.socket]],
) -> None:
    cluster, (a, b) = relayed
    keep(cluster, CABLE)
    for number in range(40):
        send(a, "lab-1/eth0.cable", bytes([number]) * 1500)
    assert [b.recv(9000)[0] for _ in range(40)] == list(range(40))
    send(b, "lab-2/eth1.cable", b"back")
    assert a.recv(9000) == b"back"


def test_a_relay_delays_and_loses(relayed: tuple[Cluster, list[socket.socket]]) -> None:
    cluster, (a, b) = relayed
    keep(cluster, Cable(number=1, a=CABLE.a, b=CABLE.b, delay_ms=200, loss_percent=(0, 100)))
    send(b, "lab-2/eth1.cable", b"lost")
    start = time.monotonic()
    send(a, "lab-1/eth0.cable", b"late")
    assert b.recv(9000) == b"late"
    assert time.monotonic() - start >= 0.2
    a.settimeout(0.1)
    with pytest.raises(TimeoutError):
        a.recv(9000)


def test_a_relay_is_only_replaced_by_another_one(relayed: tuple[Cluster, list[socket.socket]]) -> None:
    cluster, (a, b) = relayed
    keep(cluster, CABLE)
    send(a, "lab-1/eth0.cable", b"up")
    assert b.recv(9000) == b"up"
    first = cluster.processes["relay1"]
    keep(cluster, CABLE)
    assert cluster.processes["relay1"] == first
    keep(cluster, Cable(number=1, a=CABLE.a, b=CABLE.b, delay_ms=1))
    assert cluster.processes["relay1"] != first
    assert not process.is_running(first)
    keep(cluster, None)
    assert cluster.processes == {}


@pytest.mark.skipif(
    os.geteuid() != 0 or not (shutil.which("nft") and shutil.which("ip")), reason="needs root, nft and ip"
)
def test_ip_and_nft_take_every_text(tmp_path: Path) -> None:
    """In a namespace of its own: with both machines' ports in it."""
    cables = [
        CABLE,
        Cable(number=2, a=Port(2, 0), b=Port(1, 1), loss_percent=(0.01, 99.99)),
        Cable(number=3, a=Port(1, 2), b=Port(2, 2), delay_ms=3, loss_percent=(100, 0)),
    ]
    ports = [end for cable in cables for end in (cable.a, cable.b)]
    links = "".join(nspawn_cables.port_batch(port, 1500, os.getpid()).split(" peer")[0] + "\n" for port in ports)
    carriers = nspawn_cables.carrier_batch((port, True) for port in ports)
    (tmp_path / "links").write_text(links + carriers)
    (tmp_path / "rules").write_text("".join(nspawn_cables.rules(cable, True) for cable in cables))
    script = "set -e; ip -batch links; nft -f rules; nft -f rules; nft list ruleset | grep -c 'chain [ab]'"
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.stdout.strip(), done.stderr) == ("6", "")

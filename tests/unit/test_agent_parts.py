"""The agent's decisions, as tables: control-plane order, anycast, node, network, certificates, state."""

import asyncio
import datetime
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kmagent import anycast, babel, certificates, console, control_plane, kubernetes_api, network, node, ports, status
from kmagent.facts import Facts, load, save
from kmagent.http import Response
from kmagent.paths import Paths
from kmagent.registry import Node
from kmagent.state import State, phase
from kmplan.errors import UserError

FACTS = Facts(
    cluster="one",
    name="one-1",
    number=1,
    role="voter",
    prefix="fd00::/48",
    address="fd00::1",
    address4="10.0.1.1",
    pods="fd00:0:0:1::/64",
    pods4="10.0.1.0/24",
    services="fd00:0:0:ffff::/112",
    services4="10.255.0.0/16",
    api="fd00::a:1",
    join="fd00::a:2",
    dns="fd00:0:0:ffff::a",
    dns4="10.255.0.10",
    image="0.1.0",
)
ALL = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"]


@pytest.mark.parametrize(
    ("etcd", "api", "present", "wanted"),
    [
        (False, False, [], ["etcd"]),
        (True, False, ["etcd"], ALL[:2]),
        (True, True, ALL[:2], ALL),
        # What was started stays when its basis goes away for a while: kubelet would stop it otherwise.
        (False, False, ALL, ALL),
        (False, False, ALL[:2], ALL[:2]),
        (True, False, ALL, ALL),
    ],
)
def test_the_control_plane_starts_in_order(etcd: bool, api: bool, present: list[str], wanted: list[str]) -> None:
    assert control_plane.wanted_manifests(etcd, api, frozenset(present)) == wanted


def test_manifests_that_do_not_change_are_not_written_again(tmp_path: Path) -> None:
    paths = Paths(run=tmp_path, manifests=tmp_path / "kubelet")
    paths.staged.mkdir()
    paths.manifests.mkdir()
    for name in ALL:
        (paths.staged / f"{name}.yaml").write_text(name)
    first = control_plane.changes(paths, etcd=True, api=False)
    assert list(first) == ALL[:2]
    control_plane.place(paths, first)
    assert control_plane.changes(paths, etcd=False, api=False) == {}
    (paths.staged / "etcd.yaml").write_text("new")
    assert control_plane.changes(paths, etcd=False, api=False) == {"etcd": "new"}


def test_etcd_asks_no_other_for_its_data_where_all_start_at_once(tmp_path: Path) -> None:
    """They would wait for each other; and what was begun so stays so, or etcd would be started anew."""
    paths = Paths(run=tmp_path, manifests=tmp_path / "kubelet")
    paths.staged.mkdir()
    paths.manifests.mkdir()
    (paths.staged / "etcd.yaml").write_text("--feature-gates=InitialCorruptCheck=true,CompactHashCheck=true")

    def given(*, served: bool) -> str:
        control_plane.note_start(paths, served=served)
        control_plane.place(paths, control_plane.changes(paths, etcd=False, api=False))
        return (paths.manifests / "etcd.yaml").read_text()

    template = Path(__file__).parents[2] / "overlays/node/manifests/etcd.yaml.j2"
    assert control_plane.CHECKED in template.read_text()
    cold = "--feature-gates=InitialCorruptCheck=false,CompactHashCheck=true"
    assert [given(served=False), given(served=True)] == [cold, cold]
    control_plane.withdraw(paths)
    assert given(served=True) == (paths.staged / "etcd.yaml").read_text()
    assert given(served=False) == (paths.staged / "etcd.yaml").read_text()


FINDINGS: dict[str, anycast.Finding] = {"+": "good", "-": "bad", "0": "gone"}


class Address:
    """The API's anycast address, and a local API server that answers well all the time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.there = False
        self.taken_away: list[str] = []
        self.look = lambda: ""

        async def has(_: str) -> bool:
            return self.there

        async def batch(commands: list[str]) -> None:
            if commands[0].startswith("route"):
                return
            self.there = commands[0].startswith("address replace")
            if not self.there:
                self.taken_away.append(self.look())

        async def look(*_: object) -> anycast.Finding:
            return "good"

        monkeypatch.setattr(network, "has_address", has)
        monkeypatch.setattr(network, "ip_batch", batch)
        monkeypatch.setattr(anycast, "look", look)
        for module, names in ((anycast, ("STARTING_S", "PERIOD_S", "ELSEWHERE_S")), (control_plane, ("KUBELET_S",))):
            for name in names:
                monkeypatch.setattr(module, name, 0.01)


def test_clients_are_led_elsewhere_before_etcd_or_the_api_server_is_started_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = Paths(run=tmp_path, manifests=tmp_path / "kubelet")
    paths.staged.mkdir()
    paths.manifests.mkdir()
    for name in ALL:
        (paths.staged / f"{name}.yaml").write_text("old")
    address, state = Address(monkeypatch), State(facts=replace(FACTS, role="voter"))
    address.look = lambda: (paths.manifests / "etcd.yaml").read_text()

    async def scenario() -> None:
        state.set("etcd", True)
        running = (anycast.run(state, paths), control_plane.run(state, paths, lambda: True))
        parts = [asyncio.create_task(one) for one in running]
        await state.wait_for("announced")
        while not all((paths.manifests / f"{name}.yaml").exists() for name in ALL):
            await asyncio.sleep(0.001)
        # What clients do not need is started anew without a word.
        steps: dict[str, list[str]] = {"kube-scheduler": [], "etcd": ["old"], "kube-apiserver": ["old", "new"]}
        for name, texts in steps.items():
            (paths.staged / f"{name}.yaml").write_text("new")
            state.notify()
            while (paths.manifests / f"{name}.yaml").read_text() != "new":
                await asyncio.sleep(0.001)
            assert address.taken_away == texts
            await state.wait_for("announced")
            assert address.there and not state.aside
        for part in parts:
            part.cancel()

    asyncio.run(asyncio.wait_for(scenario(), 20))


@pytest.mark.parametrize(
    ("checks", "ready", "announced"),
    [
        ("", False, False),
        ("+", True, False),
        ("++", True, True),
        ("+-+", True, False),
        ("++--", True, True),
        ("++---", False, False),
        ("++--+--", True, True),
        ("++---+", True, False),
        ("---", False, False),
        # It does not run at all: that needs less proof.
        ("++0", True, True),
        ("++00", False, False),
        ("++0-0", False, False),
        ("++0+0", True, True),
        ("++-0", True, True),
    ],
)
def test_the_address_is_announced_after_two_good_checks_and_withdrawn_after_three_bad(
    checks: str, ready: bool, announced: bool
) -> None:
    health = anycast.Health()
    for check in checks:
        health = anycast.step(health, FINDINGS[check])
    assert (health.ready, health.announced) == (ready, announced)


def test_an_address_left_by_a_killed_agent_stays_while_checks_are_good() -> None:
    health = anycast.Health(announced=True)
    assert anycast.step(health, "good").announced
    assert not anycast.step(anycast.step(anycast.step(health, "bad"), "bad"), "bad").announced


def test_what_came_or_went_is_looked_at_soon() -> None:
    health = anycast.Health()
    assert anycast.period_s(health) == anycast.STARTING_S
    assert anycast.period_s(anycast.step(health, "good")) == anycast.PERIOD_S
    up = anycast.Health(good=9, ready=True, announced=True)
    assert anycast.period_s(anycast.step(up, "bad")) == anycast.PERIOD_S
    assert anycast.period_s(anycast.step(up, "gone")) == anycast.STARTING_S


@pytest.mark.parametrize(
    ("etcd", "api", "found"),
    [
        (200, 200, "good"),
        (200, 500, "bad"),
        (200, None, "gone"),
        (None, 200, "gone"),
        # It has no leader: the API server would take seconds to notice.
        (503, 200, "bad"),
        (200, 0, "bad"),
        (0, 200, "bad"),
    ],
)
def test_a_server_that_does_not_run_is_told_from_one_that_is_not_well(
    etcd: int | None, api: int | None, found: anycast.Finding
) -> None:
    """None is a refused connection, 0 one without an answer."""

    class Asked:
        def __init__(self, status: int | None) -> None:
            self.status = status

        async def request(self, *_: str) -> Response:
            if not self.status:
                raise ConnectionRefusedError if self.status is None else TimeoutError
            return Response(self.status, b"")

    assert asyncio.run(anycast.look(Asked(etcd), Asked(api))) == found  # type: ignore[arg-type]


DUMP = """\
add xroute fd00::a:1/128-::/0 prefix fd00::a:1/128 from ::/0 metric 0
add route 1 prefix fd00::a:1/128 from ::/0 installed no id a4 metric 288 refmetric 192 via fe80::2 if eth1
add route 2 prefix fd00::a:1/128 from ::/0 installed no id a4 metric 96 refmetric 0 via fe80::1 if eth0
add route 3 prefix fd00::a:1/128 from ::/0 installed no id a4 metric 65535 refmetric 65535 via fe80::3 if eth2
add route 4 prefix fd00::a:2/128 from ::/0 installed yes id a4 metric 65535 refmetric 0 via fe80::3 if eth2
""".splitlines()


def test_an_address_that_is_withdrawn_is_reached_by_the_best_other_way() -> None:
    table = babel.parse(DUMP)
    assert table.best_way("fd00::a:1/128") == babel.Way("fe80::1", "eth0")
    assert table.best_way("fd00::a:2/128") is table.best_way("fd00::9/128") is None
    command = network.detour_command("fd00::a:1", "fe80::1", "eth0")
    assert command == "route replace fd00::a:1/128 via fe80::1 dev eth0 proto 201 metric 2048 expires 10"


@pytest.mark.parametrize("fails", [False, True])
def test_an_address_is_withdrawn_whether_there_is_another_way_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    asked: list[list[str]] = []

    async def has(_: str) -> bool:
        return True

    async def batch(commands: list[str]) -> None:
        asked.append(commands)
        if fails and commands[0].startswith("route"):
            raise UserError("no such device")

    async def babeld(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"BABEL 1.0\nok\n")
        assert await reader.readline() == b"dump\n"
        writer.write("".join(f"{line}\n" for line in [*DUMP, "ok"]).encode())
        writer.close()

    monkeypatch.setattr(network, "has_address", has)
    monkeypatch.setattr(network, "ip_batch", batch)
    monkeypatch.setattr(anycast, "ELSEWHERE_S", 0.0)
    paths = Paths(run=tmp_path)

    async def scenario() -> None:
        async with await asyncio.start_unix_server(babeld, paths.babel_socket):
            await anycast.withdraw(paths, "fd00::a:1")
        # babeld is not there: nothing is known of another way.
        paths.babel_socket.unlink(missing_ok=True)
        await anycast.withdraw(paths, "fd00::a:1")

    asyncio.run(asyncio.wait_for(scenario(), 20))
    away = ["address del fd00::a:1/128 dev lo"]
    worst = "unreachable fd00::a:1/128 proto 202 metric 2048"
    assert asked[:2] == [[network.detour_command("fd00::a:1", "fe80::1", "eth0")], away]
    assert asked[2:] == [[f"route replace {worst}"], away, [f"route del {worst}"]]


def test_the_commands_that_make_a_node() -> None:
    assert network.node_commands(FACTS) == [
        "link set lo up",
        "address replace fd00::1/128 dev lo nodad",
        "address replace 10.0.1.1/32 dev lo",
        "route replace unreachable fd00::/48",
        "route replace unreachable fd00:0:0:1::/64",
        "route replace unreachable 10.0.1.0/24",
        "route replace fd00:0:0:ffff::/112 dev lo src fd00::1",
        "route replace 10.255.0.0/16 dev lo src 10.0.1.1",
    ]
    assert network.anycast_commands("fd00::a:1", True) == ["address replace fd00::a:1/128 dev lo preferred_lft 0 nodad"]


@pytest.mark.parametrize(("container", "expected"), [(False, ["enp1s0"]), (True, ["enp1s0", "eth0"])])
def test_ports_are_what_has_a_device_and_in_a_container_what_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, container: bool, expected: list[str]
) -> None:
    monkeypatch.setattr(ports, "in_container", lambda: container)
    for index, name in enumerate(["lo", "eth0", "enp1s0", "dummy0", "veth12ab"], 1):
        (tmp_path / name).mkdir()
        for file, text in (("ifindex", index), ("address", f"52:54:00:00:00:0{index}"), ("carrier", 1), ("mtu", 1500)):
            (tmp_path / name / file).write_text(f"{text}\n")
    (tmp_path / "enp1s0/device").mkdir()
    assert [port.name for port in ports.physical_ports(tmp_path)] == expected
    assert ports.physical_ports(tmp_path, ("52:54:00:00:00:02", "52:54:00:00:00:03")) == ()
    assert ports.physical_ports(tmp_path / "missing") == ()


def test_a_node_object_gets_what_its_role_asks_for() -> None:
    pods = [FACTS.pods, FACTS.pods4]
    voter = Node(1, "one-1", "voter", "f" * 64, "c" * 64)
    new: dict[str, Any] = {"metadata": {"labels": {}}, "spec": {}}
    patch = node.missing(new, voter, pods)
    assert patch == {
        "metadata": {"labels": {"node-role.kubernetes.io/control-plane": ""}},
        "spec": {"podCIDR": "fd00:0:0:1::/64", "podCIDRs": ["fd00:0:0:1::/64", "10.0.1.0/24"]},
    }
    assert node.missing(patch, voter, pods) == {}
    gone = {"metadata": {"labels": {"node-role.kubernetes.io/control-plane": None}}}
    assert node.missing(patch, replace(voter, role="worker"), pods) == gone


HEARTBEAT = "2027-05-01T10:00:00Z"
HEARTBEAT_S = datetime.datetime.fromisoformat(HEARTBEAT).timestamp()


@pytest.mark.parametrize(
    ("kind", "value", "booted", "ready"),
    [
        ("Ready", "True", HEARTBEAT_S - 10, True),
        ("Ready", "True", HEARTBEAT_S + 0.9, True),
        ("Ready", "True", HEARTBEAT_S + 10, False),
        ("Ready", "Unknown", HEARTBEAT_S - 10, False),
        ("Ready", "False", HEARTBEAT_S - 10, False),
        ("MemoryPressure", "True", HEARTBEAT_S - 10, False),
    ],
)
def test_a_node_is_ready_when_its_kubelet_said_so_since_boot(kind: str, value: str, booted: float, ready: bool) -> None:
    condition = {"type": kind, "status": value, "lastHeartbeatTime": HEARTBEAT}
    assert node.is_ready({"status": {"conditions": [condition]}}, booted) is ready
    assert not node.is_ready({"metadata": {}}, booted)


@pytest.mark.parametrize(
    ("version", "kind", "metadata", "path"),
    [
        ("v1", "ConfigMap", {"name": "a", "namespace": "b"}, "/api/v1/namespaces/b/configmaps/a"),
        ("apps/v1", "DaemonSet", {"name": "a", "namespace": "b"}, "/apis/apps/v1/namespaces/b/daemonsets/a"),
        (
            "rbac.authorization.k8s.io/v1",
            "ClusterRole",
            {"name": "kubermesh:a"},
            "/apis/rbac.authorization.k8s.io/v1/clusterroles/kubermesh%3Aa",
        ),
    ],
)
def test_objects_have_their_place_in_the_api(version: str, kind: str, metadata: dict[str, str], path: str) -> None:
    assert kubernetes_api.path_of({"apiVersion": version, "kind": kind, "metadata": metadata}) == path


def test_certificates_are_renewed_with_about_a_third_left_but_not_all_at_once() -> None:
    start = datetime.datetime(2027, 1, 1, tzinfo=datetime.UTC)
    end = start + datetime.timedelta(days=90)
    moments = {certificates.renewal_time(f"leaf {number}", start, end) for number in range(20)}
    assert len(moments) > 15
    assert all(datetime.timedelta(days=30) <= end - moment <= datetime.timedelta(days=39) for moment in moments)


def test_the_certificates_of_a_node() -> None:
    leaves = {f"{leaf.component}/{leaf.name}": leaf for leaf in certificates.leaves(FACTS, ("fd00::f:1", "10.255.0.1"))}
    api = leaves["kube-apiserver/server"].subject.names
    assert {"fd00::a:1", "fd00::1", "10.0.1.1", "::1", "localhost", "fd00::f:1", "10.255.0.1", "kubernetes"} <= {*api}
    assert leaves["kubelet/client"].subject.common_name == "system:node:one-1"
    assert leaves["etcd/peer"].subject.usages == ("server", "client")
    masters = [name for name, leaf in leaves.items() if "system:masters" in leaf.subject.organizations]
    assert masters == ["agent/client"]
    etcd = {name for name, leaf in leaves.items() if leaf.authority == "etcd-ca"}
    assert etcd == {"etcd/server", "etcd/peer", "kube-apiserver/etcd-client", "agent/etcd-client"}


@pytest.mark.parametrize(
    ("reached", "failed", "expected"),
    [
        ([], False, "starting"),
        (["configured"], False, "configured"),
        (["configured", "etcd"], False, "etcd"),
        (["configured", "etcd", "api", "addons", "announced"], False, "api"),
        (["configured", "etcd", "api", "ready"], False, "ready"),
        # The API is gone: Ready is what it said last, and no longer counts.
        (["configured", "etcd", "ready"], False, "etcd"),
        ([], True, "failed"),
    ],
)
def test_the_state_in_one_word(reached: list[str], failed: bool, expected: str) -> None:
    conditions = {name: name in reached for name in ("configured", "etcd", "api", "addons", "announced", "ready")}
    assert phase(conditions, failed) == expected


def test_a_change_is_an_event_and_wakes_who_waits() -> None:
    async def scenario() -> State:
        state = State(facts=FACTS)
        waiting = asyncio.create_task(state.wait_for("etcd", "api"))
        await asyncio.sleep(0)
        state.set("etcd", True)
        state.set("etcd", True)
        state.set("api", True)
        await asyncio.wait_for(waiting, 1)
        state.set("api", False)
        return state

    state = asyncio.run(scenario())
    assert [event["name"] for event in state.events] == ["etcd", "api", "api-lost"]
    shown = json.loads(json.dumps(state.document()))
    assert shown["node"] == {"name": "one-1", "number": 1, "addresses": ["fd00::1", "10.0.1.1"]}
    assert shown["memory_mib"] > 0


def test_the_status_api_answers() -> None:
    state = State(version="0.1.0", facts=FACTS)
    answer = status.respond(state, "GET", "/status")
    assert (answer.status, json.loads(answer.body)["cluster"]) == (200, "one")
    assert b'kubermesh_condition{condition="ready"} 0' in status.respond(state, "GET", "/metrics").body
    assert status.respond(state, "GET", "/").status == 404
    assert status.respond(state, "POST", "/status").status == 405


def test_the_console_says_who_the_node_is_and_how_to_reach_it() -> None:
    state = State(version="0.1.0")
    state.fail("no seed credential")
    assert "no seed credential" in console.block(state)
    text = console.block(State(version="0.1.0", facts=FACTS))
    for part in ("one-1", "fd00::1", "10.0.1.1", "starting", "https://[fd00::a:1]:6443"):
        assert part in text
    assert "ssh" not in text


def test_a_machine_that_waits_shows_both_fingerprints() -> None:
    """Its own, and that of the cluster which it believes in: the list has the same two."""
    state = State(version="0.1.0")
    state.ask(state="looking", fingerprint="", message="looking for a neighbour")
    assert "key" not in console.block(state) and "cluster" not in console.block(state)
    state.ask(state="pending", cluster="shop", fingerprint="a1b2" * 16, authority="d525" * 16, message="waiting")
    lines = [line.strip() for line in console.block(state).splitlines()]
    assert "cluster    shop, fingerprint " + " ".join(["d525"] * 8) in lines
    assert "key        " + " ".join(["a1b2"] * 8) + "   (compare it before you approve)" in lines


def test_facts_survive_being_written(tmp_path: Path) -> None:
    assert save(tmp_path / "node.json", FACTS)
    assert not save(tmp_path / "node.json", FACTS)
    assert load(tmp_path / "node.json") == FACTS
    assert [path.name for path in tmp_path.iterdir()] == ["node.json"]

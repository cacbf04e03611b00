"""The smaller parts of the bench."""

import asyncio
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from test_cluster_state import make_cluster

from kmcluster import (
    access,
    cgroups,
    channel,
    console,
    forward,
    inotify,
    kvm,
    nspawn,
    process,
    qmp,
    starter,
    testimage,
    tuning,
    waiting,
)
from kmcluster.driver import Result
from kmcluster.launch import Spec
from kmcluster.qemu import QemuDriver
from kmcluster.state import Machine
from kmcluster.topology import Node, Role
from kmplan import run
from kmplan.errors import UserError
from kmplan.tuning import Tuning


@pytest.mark.parametrize(
    "value",
    [
        tuning.EMULATED,
        tuning.container_tuning(legacy_cgroups=True, may_raise_limits=False),
        tuning.container_tuning(legacy_cgroups=False, may_raise_limits=True),
    ],
)
def test_the_agent_takes_every_tuning(value: dict[str, Any]) -> None:
    msgspec.convert(value, Tuning)


def test_a_container_on_a_common_host_needs_little() -> None:
    assert tuning.container_tuning(legacy_cgroups=False, may_raise_limits=True) == {
        "kubelet": {"localStorageCapacityIsolation": False}
    }


def test_a_container_on_cgroup_v1_without_cap_sys_resource() -> None:
    made = tuning.container_tuning(legacy_cgroups=True, may_raise_limits=False)
    assert made["kubelet"]["failCgroupV1"] is False
    assert made["kubelet"]["cgroupDriver"] == "cgroupfs"
    assert "restrict_oom_score_adj = true" in made["containerd"]
    assert "SystemdCgroup = false" in made["containerd"]


def test_the_kubeconfig_leads_to_the_port_on_this_host(tmp_path: Path) -> None:
    original = {
        "clusters": [
            {"name": "one", "cluster": {"server": "https://[fd00::1]:6443", "certificate-authority-data": "x"}}
        ]
    }
    (tmp_path / "admin.kubeconfig").write_text(yaml.safe_dump(original))
    cluster = make_cluster()
    cluster.directory, cluster.machines[0].api_port = tmp_path, 7000
    (entry,) = yaml.safe_load(access.kubeconfig(cluster))["clusters"]
    assert entry["cluster"] == {
        "server": "https://127.0.0.1:7000",
        "certificate-authority-data": "x",
        "tls-server-name": "kubernetes",
    }


def test_the_kubeconfig_leads_to_a_voter_the_seed_first(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = make_cluster()
    cluster.machines = [Machine(name=str(number), number=number, node=Node()) for number in (1, 2, 3, 4)]
    seed = msgspec.structs.replace(cluster.machines[2], node=Node(role=Role.SEED))
    cluster.machines[2] = seed
    powers = dict.fromkeys((1, 2, 3, 4), "on")
    statuses: dict[int, dict[str, Any] | None] = {1: None, 2: {"role": "worker"}, 3: {"role": "voter"}}
    statuses[4] = {"role": "voter"}

    class Driver:
        def power(self, machine: Machine) -> str:
            return powers[machine.number]

        def read_status(self, machine: Machine) -> dict[str, Any] | None:
            return statuses[machine.number]

    monkeypatch.setattr(access, "driver_of", lambda _: Driver())
    assert access.api_machine(cluster) == seed
    powers[3] = "frozen"
    assert access.api_machine(cluster).number == 4
    statuses[4] = {"role": "standby"}
    assert access.api_machine(cluster) == seed


def test_more_machines_are_given_more_time() -> None:
    cluster = make_cluster()
    assert waiting.default_timeout_s(cluster) == 120
    cluster.machines *= 5
    assert waiting.default_timeout_s(cluster) == 180


def test_a_missing_kubeconfig_is_one_line(tmp_path: Path) -> None:
    cluster = make_cluster()
    cluster.directory = tmp_path
    with pytest.raises(UserError, match=r"admin.kubeconfig: cannot be read"):
        access.kubeconfig(cluster)


def test_the_forwarder_carries_both_directions() -> None:
    """Through a real listener, as the machine's would be."""

    async def scenario() -> bytes:
        async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write((await reader.read()).upper())
            writer.close()

        inside = await asyncio.start_server(shout, forward.ADDRESS, 0)
        port = inside.sockets[0].getsockname()[1]
        listener = forward.listen(0)
        server = asyncio.ensure_future(forward.serve(listener, port))
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(b"hello")
        writer.write_eof()
        answer = await asyncio.wait_for(reader.read(), 5)
        server.cancel()
        inside.close()
        return answer

    assert asyncio.run(scenario()) == b"HELLO"


def test_a_taken_port_is_replaced_by_another() -> None:
    with forward.listen(0) as first, forward.listen(first.getsockname()[1]) as second:
        assert second.getsockname()[1] != first.getsockname()[1]


def serve_lines(path: Path, answers: list[bytes]) -> threading.Thread:
    """A server that answers every line with the next of `answers`."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()

    def serve() -> None:
        connection, _ = server.accept()
        with connection, connection.makefile("rwb") as stream:
            stream.write(b'{"QMP": {}}\n')
            stream.flush()
            for answer in answers:
                stream.readline()
                stream.write(answer + b"\n")
                stream.flush()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return thread


def test_qmp_passes_over_events(tmp_path: Path) -> None:
    serve_lines(tmp_path / "s", [b'{"return": {}}', b'{"event": "STOP"}\n{"return": {"running": false}}'])
    assert qmp.execute(tmp_path / "s", "query-status") == {"running": False}


def test_qmp_says_what_qemu_refused(tmp_path: Path) -> None:
    serve_lines(tmp_path / "s", [b'{"return": {}}', b'{"error": {"class": "x", "desc": "no such thing"}}'])
    with pytest.raises(UserError, match="QEMU refuses stop: no such thing"):
        qmp.execute(tmp_path / "s", "stop")


def test_qmp_without_qemu_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="QEMU does not answer"):
        qmp.execute(tmp_path / "none", "stop")


def test_a_late_answer_to_another_request_is_passed_over() -> None:
    late = json.dumps({"id": "a", "code": 0, "stdout": "", "stderr": ""}).encode()
    assert channel.parse(late, "b") is None
    assert channel.parse(late[:9], "a") is None
    assert channel.parse(late, "a") == (0, b"", b"")


def test_the_guests_script_answers_requests(tmp_path: Path) -> None:
    """The very script that the machine runs, with a pipe for the port."""
    code = f"""
import os, runpy, sys
script = runpy.run_path({str(channel.SCRIPT)!r})
for line in sys.stdin.buffer:
    script["answer"](1, line)
"""
    requests = [
        {"id": "1", "argv": ["sh", "-c", "cat; echo no >&2; exit 3"], "stdin": "aGk="},
        {"id": "2", "read": str(tmp_path / "missing")},
        {"id": "3", "argv": ["nonsuch"]},
        {"id": "4", "argv": ["sleep", "9"], "timeout_s": 0.1},
        {"id": "5", "argv": ["sh", "-c", "printf '\\377'; kill -TERM $$"]},
    ]
    text = "\n".join(json.dumps(request) for request in requests) + "\nhalf a li\n"
    done = subprocess.run([sys.executable, "-c", code], input=text.encode(), capture_output=True, check=True)
    answers = [channel.parse(line, str(number)) for number, line in enumerate(done.stdout.split(b"\n\n"), 1)]
    assert answers[0] == (3, b"hi", b"no\n")
    assert answers[4] == (128 + signal.SIGTERM, b"\xff", b"")
    assert [answer[0] for answer in answers[1:4] if answer] == [127, 127, 124]


@pytest.fixture
def guest() -> Iterator[socket.socket]:
    """The host's end of a port that the very script serves which the machine runs."""
    code = f"import runpy; runpy.run_path({str(channel.SCRIPT)!r})['serve'](0)"
    host, inside = socket.socketpair()
    with host, inside, subprocess.Popen([sys.executable, "-c", code], stdin=inside) as served:
        host.settimeout(30)
        yield host
        served.kill()


def ask_guest(host: socket.socket, name: str, **request: Any) -> None:
    host.sendall(b"\n" + json.dumps({"id": name, **request}).encode() + b"\n")


def answer_of(host: socket.socket, name: str) -> channel.Answer:
    data = b""
    while not (found := [answer for line in data.split(b"\n") if (answer := channel.parse(line, name))]):
        data += host.recv(65536)
    return found[0]


def test_a_command_ends_when_the_host_hangs_up(guest: socket.socket) -> None:
    ask_guest(guest, "1", argv=["sleep", "600"])
    guest.shutdown(socket.SHUT_WR)
    assert answer_of(guest, "1")[0] == 128 + signal.SIGKILL


def test_a_command_ends_when_the_host_asks_the_next(guest: socket.socket, tmp_path: Path) -> None:
    """The machine may miss that the host hung up and called again."""
    ask_guest(guest, "1", argv=["sh", "-c", f"echo > {tmp_path}/runs; exec sleep 600"])
    deadline = time.monotonic() + 30
    while not (tmp_path / "runs").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    ask_guest(guest, "2", argv=["echo", "still there"])
    data = b""
    while b'"1"' not in data or b'"2"' not in data:
        data += guest.recv(65536)
    lines = data.split(b"\n")
    assert [answer for line in lines if (answer := channel.parse(line, "2"))] == [(0, b"still there\n", b"")]
    assert [answer[0] for line in lines if (answer := channel.parse(line, "1"))] == [128 + signal.SIGKILL]


def test_bytes_of_a_virtual_machine_are_passed_on_as_they_are(
    monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """For as long as somebody waits at the terminal."""
    asked: list[Any] = []

    def execute(_path: Path, *rest: Any) -> channel.Answer:
        asked.append(rest)
        return 137, b"\r\n\xff\0", b"\xfe"

    driver, machine = QemuDriver(make_cluster()), make_cluster().machines[0]
    monkeypatch.setattr(channel, "execute", execute)
    monkeypatch.setattr(driver, "power", lambda _: "on")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xfd")))
    assert driver.attach(machine, ["cat"]) == 137
    assert asked == [(["cat"], b"\xfd", 86400)]
    assert capsysbinary.readouterr() == (b"\r\n\xff\0", b"\xfe")
    assert driver.execute(machine, ["cat"]) == Result(137, "\r\n\ufffd\0", "\ufffd")


def test_what_an_interrupted_power_on_left_to_do_is_done_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, told = make_cluster(), []
    driver, machine = QemuDriver(cluster), cluster.machines[0]
    machine.disk_faults = ["errors"]
    monkeypatch.setattr(driver, "power", lambda _: power)
    monkeypatch.setattr(driver, "start_qemu", lambda _: told.append("start"))
    monkeypatch.setattr(driver, "wait_for_monitor", lambda _: told.append("wait"))
    monkeypatch.setattr(driver, "fail_disk", lambda _, failing: told.append(f"errors {failing}"))
    monkeypatch.setattr(driver, "apply_cables", lambda _: told.append("cables"))
    power = "off"
    driver.power_on(machine)
    assert told == ["start", "wait", "errors True", "cables"]
    power, told[:] = "on", []
    driver.power_on(machine)
    assert told == ["wait", "errors True", "cables"]


def test_only_a_container_that_is_on_says_how_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The file of one that is frozen is there too."""
    cluster = make_cluster()
    driver, machine = nspawn.NspawnDriver(cluster), cluster.machines[0]
    (tmp_path / "status.json").write_text('{"state": "ready"}')
    monkeypatch.setattr(nspawn, "STATUS", f"{tmp_path}/status.json".lstrip("/"))
    assert driver.read_status(machine) is None
    machine.processes["init"] = process.identify(os.getpid())
    assert driver.read_status(machine) == {"state": "ready"}
    monkeypatch.setattr(cgroups, "is_frozen", lambda _: True)
    assert driver.read_status(machine) is None


def test_the_machine_that_tries_kvm_dies_with_the_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Spec] = []

    def start(spec: Spec, *_arguments: Any, **_options: Any) -> process.Process:
        started.append(spec)
        raise UserError("enough")

    monkeypatch.setattr(kvm, "start", start)
    monkeypatch.setattr(kvm, "qemu", lambda _tools, _arguments: ["qemu"])
    monkeypatch.setattr(kvm.shutil, "copyfile", lambda *_: None)
    with pytest.raises(UserError, match="enough"):
        kvm.probe(make_cluster().image)
    assert started[0].argv == run.die_with_parent(["qemu"])


def test_events_are_shown_once_and_again_after_a_new_boot() -> None:
    seen = waiting.Seen()
    started, ready = {"name": "started"}, {"name": "node-ready"}
    assert seen.take({"state": "starting", "events": [started]}) == [started]
    assert seen.take({"state": "ready", "events": [started, ready]}) == [ready]
    assert seen.ready
    assert seen.take({"state": "starting", "events": [started]}) == [started]
    assert not seen.ready


def test_the_test_image_is_the_same_twice(tmp_path: Path) -> None:
    (tmp_path / "busybox").write_bytes(b"\x7fELF")
    first = testimage.make_archive(tmp_path / "busybox", tmp_path / "a").read_bytes()
    assert testimage.make_archive(tmp_path / "busybox", tmp_path / "b").read_bytes() == first


def test_cgroups_are_children_of_what_is_ours() -> None:
    for folder in map(Path, cgroups.plan("kubermesh-x")):
        assert folder.name == "kubermesh-x"
        assert folder.parent == cgroups.ROOT or folder.parent in cgroups.own_folders()


def test_a_seed_and_a_blank_machine_differ_by_role_only() -> None:
    assert Machine(name="a", number=1, node=Node(role=Role.SEED)) != Machine(name="a", number=1, node=Node())


@pytest.mark.parametrize(
    "line",
    [
        "[    1.0] Kernel panic - not syncing: Attempted to kill init!",
        "[    2.0] Out of memory: Killed process 12 (etcd)",
        "[    3.0] BUG: kernel NULL pointer dereference, address: 0000000000000008",
        "[    4.0] kernel BUG at mm/slub.c:305!",
        "goroutine 1 [running]:",
        "[\x1b[0;1;31mFAILED\x1b[0m] Failed to start foo.service",
        "systemd[1]: sysinit.target: Found ordering cycle on foo.service/start",
    ],
)
def test_faults_on_a_console_are_found(tmp_path: Path, line: str) -> None:
    (tmp_path / "console.log").write_text(f"all is well\r\n{line}\r\n")
    (found,) = console.find_faults(console.read_lines(tmp_path / "console.log"))
    assert found.endswith(line[-10:])


def test_a_quiet_console_has_no_faults(tmp_path: Path) -> None:
    (tmp_path / "console.log").write_text(
        "[  OK  ] Started kubelet.service.\npanic=10 rd.shell=0\n"
        "[    0.028000] ..MP-BIOS bug: 8254 timer not connected to IO-APIC\n"
    )
    assert console.find_faults(console.read_lines(tmp_path / "console.log")) == []


def test_containers_need_inotify_instances_of_the_host(tmp_path: Path) -> None:
    limit, files = tmp_path / "limit", tmp_path / "1/fd"
    limit.write_text("128\n")
    files.mkdir(parents=True)
    for number in range(40):
        (files / str(number)).symlink_to("anon_inode:inotify" if number < 20 else "/dev/null")
    inotify.check(9, tmp_path, limit)
    with pytest.raises(UserError, match=r"^20 of 128 inotify instances of this host are in use") as raised:
        inotify.check(10, tmp_path, limit)
    assert "sysctl -w fs.inotify.max_user_instances=1024" in raised.value.hint


def test_a_process_that_stays_in_the_host_network_is_not_taken_for_a_machine_holder(tmp_path: Path) -> None:
    started = starter.start(Spec(argv=["sleep", "30"]), tmp_path / "log", lambda _: None)
    try:
        with pytest.raises(UserError, match="no network namespace of its own"):
            process.wait_own_network(started, 0.3, tmp_path / "log")
    finally:
        process.end(started)


def test_a_process_that_shall_be_nice_is_nice_to_those_of_other_sessions_too(tmp_path: Path) -> None:
    started = starter.start(Spec(argv=["sleep", "30"], nice=5), tmp_path / "log", lambda _: None)
    folder = Path(f"/proc/{started.pid}")
    try:
        until = time.monotonic() + 10
        while (folder / "comm").read_text() != "sleep\n" and time.monotonic() < until:
            time.sleep(0.01)
        assert os.getpriority(os.PRIO_PROCESS, started.pid) == 5
        group = folder / "autogroup"
        assert not group.exists() or group.read_text().endswith(" nice 5\n")
    finally:
        process.end(started)

"""The state file and the processes in it: what a crash of the tool at any point leaves, and what is never touched."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmcluster import bench, process, state
from kmcluster.image import Image
from kmcluster.launch import Spec
from kmcluster.process import Process
from kmcluster.starter import start
from kmcluster.state import Cluster, Machine
from kmcluster.topology import Node, Role
from kmplan.errors import UserError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "kubermesh/clusters"


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen(["sleep", "60"])
    yield child
    child.kill()
    child.wait()


def make_cluster(name: str = "one") -> Cluster:
    nowhere = Path("/nowhere")
    return Cluster(
        version=1,
        name=name,
        driver="nspawn",
        accelerator="native",
        directory=nowhere,
        image=Image(nowhere, nowhere, nowhere, nowhere, nowhere),
        roothash="abc",
        machines=[Machine(name=f"{name}-1", number=1, node=Node(role=Role.SEED))],
    )


def test_a_saved_cluster_is_read_back_the_same() -> None:
    cluster = make_cluster()
    cluster.machines[0].processes["init"] = process.identify(os.getpid())
    with state.locked("one", make=True):
        cluster.save()
    assert state.load("one") == cluster
    assert state.cluster_names() == ["one"]


def test_the_state_file_is_the_owners_only(home: Path) -> None:
    with state.locked("one", make=True):
        make_cluster().save()
    assert (home / "one/cluster.json").stat().st_mode & 0o777 == 0o600
    assert (home / "one").stat().st_mode & 0o777 == 0o700


def test_a_damaged_state_file_is_one_line(home: Path) -> None:
    (home / "one").mkdir(parents=True)
    (home / "one/cluster.json").write_text('{"version": 1')
    with pytest.raises(UserError, match=r"one/cluster.json: "):
        state.load("one")


def test_an_unknown_cluster_is_one_line() -> None:
    with pytest.raises(UserError, match="no cluster two on this machine"):
        state.load("two")


@pytest.mark.parametrize("name", ["", "../one", "One", "a" * 33, "one-", "1one"])
def test_a_name_cannot_lead_out_of_the_folder(name: str) -> None:
    with pytest.raises(UserError, match="not a cluster name"):
        state.folder_of(name)


def test_the_name_may_be_left_out_when_there_is_one(home: Path) -> None:
    with pytest.raises(UserError, match="no cluster on this machine"):
        state.only_name(None)
    (home / "one").mkdir(parents=True)
    assert state.only_name(None) == "one"
    (home / "two").mkdir()
    with pytest.raises(UserError, match="more than one cluster on this machine; say which one: one, two"):
        state.only_name(None)
    assert state.only_name("two") == "two"


def test_nodes_are_found_by_name_and_number() -> None:
    cluster = make_cluster()
    assert cluster.machine("1") is cluster.machine("one-1")
    with pytest.raises(UserError, match="2: no such node in cluster one; nodes: one-1"):
        cluster.machine("2")


def test_a_held_lock_is_waited_for_and_then_named() -> None:
    with (
        state.locked("one", make=True),
        pytest.raises(UserError, match="cluster one is being changed by another kmbuild"),
        state.locked("one", timeout_s=0.3),
    ):
        pass


def test_a_lock_on_a_removed_folder_counts_for_nothing(home: Path) -> None:
    with state.locked("one", make=True) as folder:
        state.remove(folder)
        assert not folder.exists()
        with state.locked("one", timeout_s=1, make=True):
            assert folder.exists()


def test_only_who_makes_a_cluster_makes_its_folder(home: Path) -> None:
    with pytest.raises(state.NoClusterError, match="no cluster one on this machine; `kmbuild cluster up` makes one"):
        state.locked("one").__enter__()
    assert not home.exists()


def test_who_waits_for_a_cluster_that_goes_finds_none(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a second `down` has nothing to do."""
    monkeypatch.setattr(state.time, "sleep", lambda _: state.remove(home / "one"))
    with state.locked("one", make=True):
        make_cluster().save()
        assert bench.down("one") is False
    with state.locked("one", make=True):
        make_cluster().save()
        with pytest.raises(state.NoClusterError):
            bench.power("one", "1", "on")
    assert list(home.iterdir()) == []


def test_a_process_is_known_by_its_start_time_too(sleeper: subprocess.Popen[bytes]) -> None:
    known = process.identify(sleeper.pid)
    assert process.is_running(known)
    later = Process(pid=known.pid, started=known.started + 1, boot=known.boot)
    assert not process.is_running(later)
    assert not process.send(later, signal.SIGKILL)
    process.end(later)
    assert sleeper.poll() is None


def test_a_thread_that_has_the_pid_now_is_not_taken_for_the_process() -> None:
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    try:
        gone = Process(pid=thread.native_id or 0, started=1, boot=process.boot_id())
        assert not process.send(gone, signal.SIGKILL)
        process.end(gone)
    finally:
        over.set()


@pytest.mark.parametrize(("answers", "raised"), [([True, False], False), ([True, True], True)])
def test_a_process_that_ends_while_it_is_opened_is_gone(
    monkeypatch: pytest.MonkeyPatch, answers: list[bool], raised: bool
) -> None:
    """Another failure is not kept quiet about."""

    def refuse(_pid: int) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    known, left = process.identify(os.getpid()), iter(answers)
    monkeypatch.setattr(process, "is_running", lambda _: next(left))
    monkeypatch.setattr(os, "pidfd_open", refuse)
    with pytest.raises(OSError, match="Invalid") if raised else contextlib.nullcontext():
        assert process.wait_end(known, 0)


def test_a_process_of_an_earlier_boot_is_never_touched(sleeper: subprocess.Popen[bytes]) -> None:
    known = process.identify(sleeper.pid)
    process.end(Process(pid=known.pid, started=known.started, boot="another"))
    assert sleeper.poll() is None


def test_a_zombie_does_not_count_as_running() -> None:
    child = subprocess.Popen(["sleep", "60"])
    known = process.identify(child.pid)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not process.is_running(known)
    process.end(known)
    child.wait()


def test_a_started_process_stands_in_the_state_before_it_runs(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    noted: list[bool] = []
    started = start(Spec(argv=["touch", str(mark)]), tmp_path / "log", lambda _: noted.append(mark.exists()))
    assert process.wait_end(started, 10)
    assert noted == [False]
    assert mark.exists()


def test_nothing_runs_when_the_tool_dies_before_it_took_note(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    log = tmp_path / "log"
    code = f"""
import os
from pathlib import Path
from kmcluster.launch import Spec
from kmcluster.starter import start
start(Spec(argv=["touch", {str(mark)!r}]), Path({str(log)!r}), lambda _: os.kill(os.getpid(), 9))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while "the tool ended" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert "the tool ended" in log.read_text()
    assert not mark.exists()


def test_a_process_that_dies_with_the_tool_does_so_behind_the_launcher(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = f"""
import os, time
from pathlib import Path
from kmcluster.launch import Spec
from kmcluster.starter import start
from kmplan import run
started = start(Spec(argv=run.die_with_parent(["sleep", "60"])), Path({str(tmp_path / "log")!r}), lambda _: None)
while Path(f"/proc/{{started.pid}}/comm").read_text() != "sleep\\n":
    time.sleep(0.01)
Path({str(pid)!r}).write_text(str(started.pid))
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while (stat := process.read_stat(int(pid.read_text()))) and stat[0] not in "ZX" and time.monotonic() < deadline:
        time.sleep(0.02)
    assert stat is None or stat[0] in "ZX"


def test_a_killed_writer_leaves_the_old_state(home: Path) -> None:
    with state.locked("one", make=True):
        make_cluster().save()
    (home / "one/.cluster.json.abc").write_text("{half")
    assert state.load("one").name == "one"
    state.remove(home / "one")
    assert not (home / "one").exists()


def test_the_state_is_plain_json(home: Path) -> None:
    with state.locked("one", make=True):
        make_cluster().save()
    assert json.loads((home / "one/cluster.json").read_text())["image"]["raw"] == "/nowhere"

"""`cluster down` leaves nothing, whatever happened before."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from machines import IMAGE, KMBUILD, kmbuild

from kmcluster import cgroups, state


def network_namespaces() -> set[str]:
    found = set()
    for path in Path("/proc").glob("[0-9]*/ns/net"):
        try:
            found.add(str(path.readlink()))
        except OSError:
            continue
    return found


def traces(name: str) -> list[str]:
    """Whatever on this host still mentions a cluster."""
    folder = str(state.folder_of(name))
    found = [folder] if Path(folder).exists() else []
    found += [f"mount: {line}" for line in Path("/proc/mounts").read_text().splitlines() if folder in line]
    found += [f"cgroup: {path}" for path in cgroups.ROOT.rglob(f"kubermesh-{name}-*")]
    for path in [*Path("/proc").glob("[0-9]*/cmdline"), *Path("/sys/block").glob("loop*/loop/backing_file")]:
        try:
            if folder in (words := path.read_text()):
                found.append(f"{path}: {words}")
        except OSError:
            continue
    return found


@pytest.mark.usefixtures("nspawn_node")
def test_down_leaves_nothing_and_disturbs_no_other_cluster() -> None:
    done = kmbuild("cluster", "up", "one", "--name", "gone", "--image", IMAGE)
    assert done.returncode == 0, done.stderr
    assert traces("gone")
    network = str(Path(f"/proc/{state.load('gone').machines[0].processes['init'].pid}/ns/net").readlink())
    assert network in network_namespaces()
    assert kmbuild("cluster", "down", "gone").returncode == 0
    assert traces("gone") == []
    assert network not in network_namespaces()
    assert kmbuild("cluster", "down", "gone").returncode == 0
    assert kmbuild("cluster", "status", "test-nspawn").stdout.count("ready") == 1


@pytest.mark.parametrize("after_s", [0.05, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.2, 3.0])
def test_down_cleans_after_the_tool_was_killed(bench_home: Path, after_s: float) -> None:
    child = subprocess.Popen(
        [KMBUILD, "cluster", "up", "one", "--name", "crash", "--image", IMAGE],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    time.sleep(after_s)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    done = kmbuild("cluster", "down", "crash")
    assert done.returncode == 0, done.stderr
    assert traces("crash") == []


def test_a_dead_machine_is_reported_with_its_console(bench_home: Path) -> None:
    done = kmbuild("cluster", "up", "one", "--name", "late", "--image", IMAGE, "--timeout", "1")
    assert done.returncode == 1
    assert "late-1 is not Ready after 1 s; last seen: " in done.stderr
    assert "console: " in done.stderr
    assert kmbuild("cluster", "down", "late").returncode == 0
    assert traces("late") == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["up", "nonsuch"], "nonsuch: no such topology"),
        (["status", "nonsuch"], "no cluster nonsuch on this machine"),
        (["up", "one", "--name", "../x"], "../x: not a cluster name"),
        (["up", "one", "--name", "bad", "--cluster", "/nowhere"], "/nowhere: not a cluster directory"),
        (["up", "one", "--name", "bad", "--image", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_input_is_one_line(bench_home: Path, arguments: list[str], expected: str) -> None:
    image = [] if "--image" in arguments or arguments[0] != "up" else ["--image", IMAGE]
    done = kmbuild("cluster", *arguments, *image)
    assert done.returncode == 1
    assert expected in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "bad" not in state.cluster_names()


def test_a_truncated_image_is_refused(bench_home: Path, tmp_path: Path) -> None:
    for path in IMAGE.iterdir():
        if path.suffix != ".raw":
            (tmp_path / path.name).symlink_to(path)
    (raw,) = IMAGE.glob("*.raw")
    with raw.open("rb") as source, (tmp_path / raw.name).open("wb") as target:
        target.write(source.read(1 << 20))
    done = kmbuild("cluster", "up", "one", "--name", "bad", "--image", tmp_path)
    assert done.returncode == 1
    assert "truncated" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1

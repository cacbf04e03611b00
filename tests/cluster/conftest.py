"""Booted machines, one per driver, shared by all tests of a session."""

import json
import os
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bundles
import pytest
from machines import IMAGE, Node, boot, kmbuild, wait_for
from rings import Ring

from kmcluster import testimage


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep what tells of a failure, before its clusters go on or down."""
    report = yield
    if report.failed and (told := bundles.collect(item)):
        report.sections.append(("bundles", "\n".join(told)))
    return report


@pytest.fixture(scope="session", autouse=True)
def bench_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A state folder of the session's own; whatever is left in it at the end is taken down."""
    if not (IMAGE / "manifest.json").exists():
        pytest.fail(f"no image in {IMAGE}: call `make image` first")
    home = tmp_path_factory.mktemp("state")
    old = os.environ.get("XDG_STATE_HOME")
    os.environ["XDG_STATE_HOME"] = str(home)
    yield home
    kmbuild("cluster", "down", "--all")
    if old is None:
        del os.environ["XDG_STATE_HOME"]
    else:
        os.environ["XDG_STATE_HOME"] = old


@pytest.fixture(scope="session")
def busybox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test image's archive."""
    from kmbuild.cluster import locate_image

    tools = locate_image(IMAGE).tools
    return testimage.make_archive(tools / "usr/bin/busybox", tmp_path_factory.mktemp("images") / "busybox.tar")


@pytest.fixture(scope="session")
def alone(bench_home: Path) -> None:
    """No other cluster is up: two would have to share what this machine has.

    Tests that use it have names that come after those of all others, so that no cluster is booted twice.
    """
    done = kmbuild("cluster", "down", "--all")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def nspawn_node(bench_home: Path, busybox: Path) -> Iterator[Node]:
    yield from boot("nspawn", busybox)


@pytest.fixture(scope="session")
def qemu_node(alone: None, busybox: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """The seed of three, installed from a stick. The second one's disk is not empty: somebody has to say that it may be wiped.

    The other two have no part in the control plane: emulated, that would take them many minutes.
    """
    directory = tmp_path_factory.mktemp("directory") / "test-qemu"
    assert kmbuild("init", directory, "--voters", "1").returncode == 0
    path = directory / "cluster.yaml"
    path.write_text(path.read_text().replace("policy: approve", "policy: auto"))
    booted = boot("qemu", busybox, Path(__file__).parent / "stick.yaml", "", "--cluster", directory)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(next, booted)
        try:
            let_wipe("test-qemu", first)
        finally:
            node = first.result()
    yield node
    next(booted, None)


def let_wipe(name: str, up: Future[Node]) -> None:
    """Wait until a machine says what is on its disk, and let it wipe that; ends when the cluster is up, or failed."""

    def blocked() -> Any:
        assert not up.done(), f"{name} is up, or failed, and nobody was asked"
        done = kmbuild("nodes", "list", "--json")
        return next((one for one in json.loads(done.stdout or "[]") if one["status"].get("blocked")), None)

    found = wait_for("machine that found a disk with data", blocked, 900, 2)
    assert found["status"]["phase"] == "Pending" and "holds photos" in found["status"]["blocked"], found
    refused = kmbuild("nodes", "approve", found["metadata"]["name"])
    assert refused.returncode != 0 and "--wipe" in refused.stderr
    done = kmbuild("nodes", "approve", found["metadata"]["name"], "--wipe", "--timeout", "300")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def ring(bench_home: Path, busybox: Path) -> Iterator[Ring]:
    """Five nodes in a ring, three of them voters, with a pod and two services on them."""
    booted = boot("nspawn", busybox, Path(__file__).parent / "ring.yaml", "ring")
    next(booted)
    ring = Ring("ring")
    ring.settle()
    yield ring
    next(booted, None)

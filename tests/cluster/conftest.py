"""Booted machines, one per driver, shared by all tests of a session."""

import json
import os
import re
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bundles
import pytest
import walkthrough
from machines import IMAGE, Node, boot, kmbuild, wait_for
from rings import Ring

from kmcluster import cabling, testimage


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
    from kmbuild.locate import locate_image

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
    """The seed of three, installed from a stick, as docs/five-machines.md has it done. Somebody has to let the others in.

    They have no part in the control plane: emulated, that would take them many minutes.
    """
    home = tmp_path_factory.mktemp("directory")
    name, stick = walkthrough.NAME, home / "stick.img"
    begin, flash = walkthrough.step(1)[0]
    done = walkthrough.called(begin + " --voters 1", home)
    assert done.returncode == 0, done.stderr
    with stick.open("wb") as file:
        file.truncate(8 << 30)
    done = walkthrough.called(flash.removeprefix("sudo ").replace(" out ", f" {IMAGE} {stick} "), home)
    assert done.returncode == 0 and "kubermesh.seed. You may pull it out." in done.stdout, done
    more = ("--cluster", home / name, "--stick", stick)
    booted = boot("qemu", busybox, Path(__file__).parent / "stick.yaml", name, *more)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(next, booted)
        try:
            wait_for("cluster", lambda: cabling.change(name, "3", "1", "cut", None, None), 120)
            interrupt(Node(name), first)
            let_in(home, first)
        finally:
            node = first.result()
    yield node
    next(booted, None)


def interrupt(seed: Node, up: Future[Node]) -> None:
    """Reset the seed while it installs itself from the stick; it starts over."""
    wait_for("seed that installs", lambda: up.done() or installing(seed), 300, 0.2)
    assert not up.done(), up.exception()
    seed.power("reset")


def installing(node: Node) -> list[str]:
    """Where an installing machine says how far it is."""
    return [line for line in node.console_lines() if re.search(r"installing, [1-9]\d? %", line)]


def let_in(home: Path, up: Future[Node]) -> None:
    """Let both machines in as they ask; ends when the cluster is up, or failed.

    The one that boots from the seed has a disk with data, and somebody has to say that it may be wiped. The other one is
    refused first.
    """

    def asking(via: str, what: str = "phase") -> Any:
        if up.done():
            return f"nobody asked by {via}, and the cluster is up, or failed"
        done = kmbuild("nodes", "list", "--json", "--cluster", home / walkthrough.NAME)
        nodes = json.loads(done.stdout or "[]")
        first = (one["status"].get("offers", []) for one in nodes if one["status"].get("name") == "shop-1")
        walkthrough.offered.extend(offer["message"] for offers in first for offer in offers)
        asked = (one["status"] for one in nodes)
        return next((one for one in asked if one.get("via", "").startswith(via) and one.get(what)), None)

    second = wait_for("machine that found a disk with data", lambda: asking("shop-1", "blocked"), 900, 2)
    assert not up.done(), second
    assert second["phase"] == "Pending" and "holds photos" in second["blocked"], second
    refused = kmbuild("nodes", "approve", second["fingerprint"])
    assert refused.returncode != 0 and "--wipe" in refused.stderr
    done = kmbuild("nodes", "approve", second["fingerprint"], "--wipe", "--timeout", "300")
    assert done.returncode == 0 and "wipes a disk and installs itself there" in done.stdout, done
    third = wait_for("machine that booted from the second", lambda: asking("shop-2"), 1200, 2)
    assert not up.done(), third
    denied = kmbuild("nodes", "deny", third["fingerprint"], "--timeout", "300")
    assert denied.returncode == 0, denied.stderr
    console = Node(walkthrough.NAME, 3).console_lines
    wait_for("machine that knows", lambda: "refused by an administrator" in "\n".join(console()), 60, 1)
    look, decide = (block[0] for block in walkthrough.step(4)[1:])
    key = third["fingerprint"]
    listed = walkthrough.called(look, home)
    assert f"{key[:4]} {key[4:8]} " in listed.stdout and "Denied" in listed.stdout, listed
    done = walkthrough.called(decide + " --timeout 300", home, f"{key[:4]} {key[4:8]}")
    assert done.returncode == 0 and "compare it with the machine's console" in done.stderr, done


@pytest.fixture(scope="session")
def ring(bench_home: Path, busybox: Path) -> Iterator[Ring]:
    """Five nodes in a ring, three of them voters, with a pod and two services on them."""
    booted = boot("nspawn", busybox, Path(__file__).parent / "ring.yaml", "ring")
    next(booted)
    ring = Ring("ring")
    ring.settle()
    yield ring
    next(booted, None)

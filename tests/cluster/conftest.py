"""Booted machines, shared by all tests of a session or of a module."""

import json
import os
import re
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import bundles
import pytest
import walkthrough
from machines import IMAGE, Node, boot, cable, kmbuild, wait_for
from rings import Ring

from kmcluster import cabling, testimage, waiting


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


@pytest.fixture(scope="module")
def alone(bench_home: Path) -> None:
    """No other cluster is up, also none whose start has failed: two would have to share what this machine has.

    Tests that use it have names that come after those of all others, so that no cluster is booted twice.
    """
    done = kmbuild("cluster", "down", "--all")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def nspawn_node(bench_home: Path, busybox: Path) -> Iterator[Node]:
    yield from boot("nspawn", busybox)


@pytest.fixture(scope="module")
def shop(alone: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that has the cluster's directory, and a stick, as docs/five-machines.md has them made."""
    home = tmp_path_factory.mktemp("directory")
    stick = home / "stick.img"
    begin, flash = walkthrough.step(1)[0]
    done = walkthrough.called(begin + " --voters 1", home)
    assert done.returncode == 0, done.stderr
    with stick.open("wb") as file:
        file.truncate(8 << 30)
    done = walkthrough.called(flash.removeprefix("sudo ").replace(" out ", f" {IMAGE} {stick} "), home)
    assert done.returncode == 0 and "kubermesh.seed. You may pull it out." in done.stdout, done
    return home


@pytest.fixture(scope="module")
def qemu_node(shop: Path, busybox: Path, request: pytest.FixtureRequest) -> Iterator[Node]:
    """The seed of three, installed from a stick; the second has booted from it. Somebody has to let that one in.

    The others have no part in the control plane: emulated, that would take them many minutes. What takes time and only some tests
    look at is done when they are among those that run.
    """
    wanted = {item.name for item in request.session.items}
    holds_data = "test_a_disk_that_held_something_was_wiped_when_that_was_allowed" in wanted
    topology = shop / "shop.yaml"
    text = (Path(__file__).parent / "stick.yaml").read_text()
    text = text if holds_data else text.replace(", holds: data", "")
    # Every three days by the other family.
    by_ipv6 = datetime.now(UTC).toordinal() // 3 % 2
    topology.write_text(text.replace("boot: pxe,", "boot: pxe6,") if by_ipv6 else text)
    more = ("--cluster", shop / walkthrough.NAME, "--stick", shop / "stick.img")
    booted = boot("qemu", busybox, topology, walkthrough.NAME, *more)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(next, booted)
        try:
            wait_for("cluster", lambda: cabling.change(walkthrough.NAME, "3", "1", "cut", None, None), 120)
            cable(walkthrough.NAME, 3, 2, "cut")
            if "test_an_install_that_was_cut_off_begins_anew" in wanted:
                interrupt(Node(walkthrough.NAME), first)
            let_the_second_in(shop, first, holds_data)
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


# Each look costs the emulated API server a second of its processor.
LOOK_S = 20


def asking(shop: Path, via: str) -> Any:
    """The request of a machine that asks by this node, as the list shows it."""
    done = kmbuild("nodes", "list", "--json", "--cluster", shop / walkthrough.NAME)
    nodes = [one["status"] for one in json.loads(done.stdout or "[]")]
    offers = next((one.get("offers", []) for one in nodes if one.get("name") == "shop-1"), [])
    walkthrough.offered.extend(offer["message"] for offer in offers)
    return next((one for one in nodes if one.get("via", "").startswith(via)), None)


def let_the_second_in(shop: Path, up: Future[Node], holds_data: bool) -> None:
    """Let the machine in that boots from the seed; somebody has to say that its disk may be wiped when it has data."""

    def asks() -> Any:
        asked = asking(shop, "shop-1")
        return up.done() or (asked if asked and bool(asked.get("blocked")) == holds_data else None)

    second = wait_for("machine that asks", asks, 900, LOOK_S)
    assert not up.done(), up.exception()
    assert second["phase"] == "Pending", second
    decide = ["nodes", "approve", second["fingerprint"], "--cluster", str(shop / walkthrough.NAME), "--timeout", "300"]
    if holds_data:
        assert "holds photos" in second["blocked"], second
        refused = kmbuild(*decide)
        assert refused.returncode != 0 and "--wipe" in refused.stderr
        decide.append("--wipe")
    done = kmbuild(*decide)
    assert done.returncode == 0 and ("wipes a disk and installs itself there" in done.stdout) == holds_data, done


@pytest.fixture(scope="module")
def third(qemu_node: Node, shop: Path) -> Node:
    """The third machine: booted from the second, reset when its disk was all but its own, installed, refused, and let in then."""
    node = Node(qemu_node.name, 3)
    cable(node.name, 3, 2, "plug")
    node.power("on")

    def shows(text: str) -> bool:
        return text in "\n".join(node.console_lines())

    def asks() -> Any:
        nobody = {machine.name: waiting.Seen() for machine in node.cluster.machines}
        waiting.start_again(node.cluster, node.driver, nobody)
        return asking(shop, "shop-2")

    # On its way the list says what it does.
    wait_for("machine that fetches", lambda: asks() or shows("fetching, 50 %"), 1200, LOOK_S)
    wait_for("machine that reads back", lambda: shows("reading back what was written"), 600, 0.2)
    node.power("reset")
    asked = wait_for("machine that booted from the second", asks, 1200, LOOK_S)
    screen = walkthrough.step(4)[0]
    wait_for("screen of the page", lambda: walkthrough.missing(screen, node.console_lines()) == [], 600, 2)
    denied = kmbuild("nodes", "deny", asked["fingerprint"], "--cluster", shop / walkthrough.NAME, "--timeout", "300")
    assert denied.returncode == 0, denied.stderr

    wait_for("machine that knows", lambda: shows("refused by an administrator"), 60, 1)
    look, decide = (block[0] for block in walkthrough.step(4)[1:])
    key = asked["fingerprint"]
    listed = walkthrough.called(look, shop)
    assert f"{key[:4]} {key[4:8]} " in listed.stdout and "Denied" in listed.stdout, listed
    done = walkthrough.called(decide + " --timeout 300", shop, f"{key[:4]} {key[4:8]}")
    assert done.returncode == 0 and "compare it with the machine's console" in done.stderr, done
    wait_for("machine that is admitted", lambda: shows("node       shop-3 (number 3, worker)"), 300, 2)
    return node


@pytest.fixture(scope="session")
def ring(bench_home: Path, busybox: Path) -> Iterator[Ring]:
    """Five nodes in a ring, three of them voters, with a pod and two services on them."""
    booted = boot("nspawn", busybox, Path(__file__).parent / "ring.yaml", "ring")
    next(booted)
    ring = Ring("ring")
    ring.settle()
    yield ring
    next(booted, None)

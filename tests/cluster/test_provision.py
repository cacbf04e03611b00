"""What a node gives to whoever is on its cables without being a node: a system to boot, and a way to the API."""

import contextlib
import json
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from firmware import DHCP4, DHCP6, HTTP, READ, TFTP
from machines import IMAGE, kmbuild, wait_for
from rings import Ring
from stranger import CONNECT, PORT, Stranger, ask_from_many, greeting, nobody, plugged_in

from kmbuild.config import load
from kmplan import pki, seed
from kmplan.cluster import read_cluster
from kmplan.run import run, spawn

pytestmark = pytest.mark.turn(2)

BOOT_IMAGE = "/kubermesh.efi"
MANIFEST: dict[str, Any] = json.loads((IMAGE / "manifest.json").read_text())


def offer(ring: Ring, number: int, name: str = "eth2") -> str | None:
    """What a node says of the machine on a port."""
    ports = ring[number].status()["ports"]
    return next((port["offer"] for port in ports if port["name"] == name), None)


@pytest.fixture(scope="module")
def stranger(ring: Ring) -> Iterator[Stranger]:
    """Somebody on spare ports of two neighbours, of which the first is a voter."""
    with plugged_in(ring.first.cluster, "1:eth2", "2:eth2") as one:
        for number in (1, 2):
            wait_for("offer", lambda of=number: offer(ring, of), 30)
        yield one
    # What was offered is taken back with the carrier.
    wait_for("nothing offered", lambda: offer(ring, 1) is None, 20)
    assert ring[1].output("ls", "/run/kubermesh/provision") == ""
    assert "fd6b" not in ring[1].output("ip", "-6", "-o", "address", "show", "dev", "eth2")
    units = ring[1].output("systemctl", "list-units", "--plain", "--no-legend", "kubermesh-*")
    assert not [unit for unit in ("dnsmasq", "radvd") if unit in units]


def test_firmware_boots_by_http_over_ipv4(stranger: Stranger) -> None:
    lease = json.loads(stranger.python(DHCP4, PORT, "HTTPClient:Arch:00016:UNDI:003001", "16", ""))
    assert (lease["vendor"], lease["router"]) == ("HTTPClient", False)
    assert lease["file"].startswith("http://198.19.") and lease["file"].endswith(BOOT_IMAGE)
    stranger.run("ip", "address", "replace", f"{lease['address']}/28", "dev", PORT)
    assert stranger.python(HTTP, lease["file"]) == f"200 {MANIFEST['artefacts']['uki']['sha256']}"


def test_firmware_boots_by_http_over_ipv6(stranger: Stranger) -> None:
    lease = json.loads(stranger.python(DHCP6, PORT, "16"))
    assert lease["address"].startswith("fd6b:6d00:1:") and lease["url"].endswith(BOOT_IMAGE)
    # Behind four bytes of an enterprise's number comes what UEFI looks for, with its length.
    assert lease["vendor"][8:] == "000a" + b"HTTPClient".hex()
    stranger.run("ip", "-6", "address", "replace", f"{lease['address']}/64", "dev", PORT, "nodad")
    assert stranger.python(HTTP, lease["url"]) == f"200 {MANIFEST['artefacts']['uki']['sha256']}"


def test_firmware_boots_by_pxe_in_two_steps(ring: Ring, stranger: Stranger) -> None:
    first = json.loads(stranger.python(DHCP4, PORT, "PXEClient:Arch:00007:UNDI:003001", "7", ""))
    assert first["file"] == "snponly.efi"
    stranger.run("ip", "address", "replace", f"{first['address']}/28", "dev", PORT)
    wanted = ring[1].output("sha256sum", "/usr/lib/ipxe/snponly.efi").split()[0]
    assert stranger.python(TFTP, first["server"], "snponly.efi") == wanted
    second = json.loads(stranger.python(DHCP4, PORT, "PXEClient:Arch:00007:UNDI:003010", "7", "iPXE"))
    assert second["file"].startswith("http://198.19.") and second["file"].endswith("/boot.ipxe")
    script = stranger.python(READ, second["file"])
    assert (
        script.startswith("#!ipxe\nchain kubermesh.efi root=/dev/mapper/root ")
        and f"roothash={MANIFEST['roothash']}" in script
    )
    # The same over IPv6.
    assert json.loads(stranger.python(DHCP6, PORT, "7"))["url"].startswith("tftp://[fd6b:6d00:1:")


@pytest.mark.parametrize(("kind", "beginning"), [("ping", "fd6b:6d00:"), ("arp", "198.19.")])
def test_a_storm_from_many_addresses_fills_no_table(ring: Ring, stranger: Stranger, kind: str, beginning: str) -> None:
    ask_from_many(stranger, ring[1], "eth2", kind, beginning)


def test_who_is_no_firmware_is_given_no_address(stranger: Stranger) -> None:
    """A node in somebody's office network disturbs nobody there."""
    assert json.loads(stranger.python(DHCP4, PORT, "MSFT 5.0", "0", "")) is None


def test_what_serves_a_port_is_started_again(ring: Ring, stranger: Stranger) -> None:
    units = ["kubermesh-provide.service", "kubermesh-dnsmasq@eth2.service", "kubermesh-radvd@eth2.service"]

    def running() -> list[str]:
        shown = ring[1].output("systemctl", "show", "--property=MainPID", "--value", *units).split()
        return shown if len(shown) == len(units) and "0" not in shown else []

    before = wait_for("servers", running, 30)
    ring[1].output("systemctl", "kill", "--signal=KILL", *units)
    wait_for("all three anew", lambda: (now := running()) and not set(now) & set(before), 30)
    lease = wait_for(
        "lease", lambda: json.loads(stranger.python(DHCP4, PORT, "HTTPClient:Arch:00016:UNDI:003001", "16", "")), 30
    )
    stranger.run("ip", "address", "replace", f"{lease['address']}/28", "dev", PORT)
    wait_for("boot image", lambda: stranger.python(HTTP, lease["file"]).startswith("200 "), 30)


def test_a_machine_of_another_cluster_is_left_alone(ring: Ring, stranger: Stranger, tmp_path: Path) -> None:
    """It is offered nothing while it says hello, and is no neighbour."""
    serial = ring[1].status()["registry"]

    def heard() -> dict[str, Any] | None:
        found = next(port["neighbour"] for port in ring[1].status()["ports"] if port["name"] == "eth2")
        return found if found and found["name"] == "other-9" else None

    with greeting(stranger, tmp_path / "log"):
        assert not wait_for("neighbour that is heard", heard, 30)["authenticated"]
        wait_for("nothing offered", lambda: offer(ring, 1) is None, 30)
        assert ring[1].status()["registry"] == serial
        assert json.loads(stranger.python(DHCP4, PORT, "HTTPClient:Arch:00016:UNDI:003001", "16", "")) is None
    wait_for("offer", lambda: offer(ring, 1), 60)


def test_a_plain_computer_reaches_the_api_and_nothing_else(ring: Ring) -> None:
    """Through a node that is none of the control plane: what goes on from there has that node's address."""
    plan = read_cluster(ring.first.cluster.directory).plan
    worker = min(ring.with_role("worker"))
    kubectl = str(ring.first.cluster.image.kubectl.resolve())
    with plugged_in(ring.first.cluster, f"{worker}:eth2") as computer:
        wait_for("offer", lambda: offer(ring, worker), 30)
        computer.run(
            "sysctl",
            "-q",
            "-w",
            f"net.ipv6.conf.{PORT}.accept_ra=2",
            f"net.ipv6.conf.{PORT}.accept_ra_rt_info_max_plen=64",
        )
        computer.run("ip", "link", "set", PORT, "down")
        computer.run("ip", "link", "set", PORT, "up")
        wait_for("route to the cluster", lambda: str(plan.prefix) in computer.run("ip", "-6", "route"), 30)
        wait_for(
            "own address",
            lambda: f"fd6b:6d00:{worker:x}:" in computer.run("ip", "-6", "address", "show", "dev", PORT),
            30,
        )
        # A link to the multi-call binary says which of its programs runs.
        config = ring.first.cluster.directory / "admin.kubeconfig"
        words = (
            "bash",
            "-c",
            'exec -a kubectl "$@"',
            "-",
            kubectl,
            f"--kubeconfig={config}",
            "get",
            "nodes",
            "-o",
            "name",
        )
        wanted = sorted(f"node/{node.machine.name}" for node in ring.nodes.values())
        shown = wait_for(
            "kubectl", lambda: sorted(computer.run(*words, check=False, timeout_s=30).split()) == wanted, 60, 1
        )
        assert shown
        assert "default" not in computer.run("ip", "-6", "route")
        tried = [f"{plan.node(number)} {port}" for number in (1, worker) for port in (22, 2379, 9443, 9444, 10250)]
        pods = [f"{pod.address6} 8080" for pod in ring.pods().values()]
        assert computer.python(CONNECT, *tried, *pods, f"{plan.join} 9443", timeout_s=120) == ""


def made_by(stage: str) -> Path:
    """The folder of the build cache with what a stage has made for the image."""
    return load(None)[0].cache_path / "stages" / stage / MANIFEST["stages"][stage]


class Fetch:
    """The initrd's program, in a stranger's namespace; `said` is what it has said so far."""

    def __init__(
        self,
        stranger: Stranger,
        folder: Path,
        roothash: str = MANIFEST["roothash"],
        pinned: bytes | None = None,
        version: str = "0.1.0",
    ) -> None:
        self.folder, self.log = folder, folder / "log"
        folder.mkdir()
        (folder / "arguments").write_text(f"ro roothash={roothash} quiet\n")
        (folder / "version").write_text(version + "\n")
        words = (
            str(made_by("components-fetch") / "kubermesh-fetch"),
            "-version",
            str(folder / "version"),
            "-kernel-arguments",
            str(folder / "arguments"),
            "-into",
            str(folder / "got"),
        )
        if pinned:
            (folder / "join").write_bytes(pinned)
            words += ("-pinned", str(folder / "join"))
        self.process = spawn(stranger.argv(*words), log=self.log)

    @property
    def said(self) -> str:
        return self.log.read_text()

    def wait_said(self, what: str, timeout_s: float = 60) -> None:
        wait_for(what, lambda: what in self.said, timeout_s, 0.01)

    def wait_done(self, timeout_s: float = 120) -> None:
        assert wait_for("end", lambda: self.process.poll() is not None or None, timeout_s, 0.1)
        assert self.process.returncode == 0, self.said
        assert same(self.folder / "got/root", IMAGE / MANIFEST["artefacts"]["erofs"]["name"]), self.said
        assert same(self.folder / "got/hashes", IMAGE / MANIFEST["artefacts"]["verity"]["name"]), self.said

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def same(got: Path, wanted: Path) -> bool:
    """Whether a file begins with another; the rest of a slot is empty."""
    return run(["cmp", "-n", str(wanted.stat().st_size), got, wanted], check=False).returncode == 0


@pytest.fixture
def fetch(stranger: Stranger, tmp_path: Path) -> Iterator[Callable[..., Fetch]]:
    made: list[Fetch] = []

    def begin(**more: Any) -> Fetch:
        made.append(Fetch(stranger, tmp_path / f"fetch{len(made)}", **more))
        return made[-1]

    yield begin
    for one in made:
        one.stop()


def test_two_blank_machines_fetch_the_system_at_once_and_all_see_it(ring: Ring, fetch: Callable[..., Fetch]) -> None:
    both = [fetch(), fetch()]
    seen = wait_for(
        "fetching",
        lambda: [one for one in (offer(ring, 1), offer(ring, 2)) if (one or "").startswith("fetching")],
        60,
        0.05,
    )
    assert seen
    for one in both:
        one.wait_done()
    assert f"cluster {ring.name}, fingerprint " in both[0].said
    words = ("nodes", "list", "--cluster", ring.first.cluster.directory)
    # Also of one that takes no longer than it takes to ask.
    wait_for("line of the list", lambda: " eth2: fetching, " in kmbuild(*words).stdout, 60, 1)


def plug(ring: Ring, how: str, *numbers: int) -> None:
    """Plug the stranger's cables into nodes, or pull them out there; without numbers into both."""
    for number in numbers or (1, 2):
        ring[number].output("ip", "link", "set", "eth2", how)


def goes_on(one: Fetch, source: str) -> bool:
    """Whether it went on from somebody where it was: a tenth was there."""
    found = re.search(rf"going on from {source}, at (\d+) MB", one.said)
    return found is not None and int(found[1]) >= MANIFEST["artefacts"]["erofs"]["size"] // 10 >> 20


@pytest.mark.parametrize("how", ["STOP", "KILL"])
def test_a_neighbour_that_dies_is_followed_by_the_other(ring: Ring, fetch: Callable[..., Fetch], how: str) -> None:
    """One that says nothing any more, and one that hangs up."""
    one = fetch()
    one.wait_said("fetching, 10 %")
    # Not a race: the rest takes less than a second.
    one.process.send_signal(signal.SIGSTOP)
    first = 1 if "ring-1 on" in one.said else 2
    ring[first].run("systemctl", "kill", f"--signal={how}", "kubermesh-provide.service")
    one.process.send_signal(signal.SIGCONT)
    try:
        one.wait_done()
    finally:
        ring[first].run("systemctl", "kill", "--signal=CONT", "kubermesh-provide.service")
    assert goes_on(one, f"ring-{3 - first} on stranger{2 - first}"), one.said


def test_a_cable_that_is_moved_meanwhile_goes_on_where_it_was(ring: Ring, fetch: Callable[..., Fetch]) -> None:
    """To another port of the machine, and to another node: nobody else is there."""
    plug(ring, "down", 2)
    try:
        one = fetch()
        one.wait_said("fetching, 10 %")
        one.process.send_signal(signal.SIGSTOP)
        plug(ring, "down", 1)
        plug(ring, "up", 2)
        one.process.send_signal(signal.SIGCONT)
        one.wait_done()
    finally:
        plug(ring, "up")
    assert "ring-1 on stranger0 has this system" in one.said and goes_on(one, "ring-2 on stranger1"), one.said


@contextlib.contextmanager
def liar(ring: Ring, stranger: Stranger, authority: Path, spoil: str, name: str = "ring") -> Iterator[None]:
    """One on a third cable of the stranger's; the others' are not plugged in yet, and `plug` does that."""
    plug(ring, "down")
    with nobody() as other:
        stranger.run("ip", "link", "add", "liar0", "type", "veth", "peer", "name", "evil0", "netns", str(other.pid))
        other.run("ip", "link", "set", "evil0", "addrgenmode", "none", "up")
        other.run("ip", "-6", "address", "add", "fe80::1/64", "dev", "evil0", "nodad")
        stranger.run("sysctl", "-q", "-w", "net.ipv6.conf.liar0.dad_transmits=0")
        stranger.run("ip", "link", "set", "liar0", "up")
        script = str(Path(__file__).parent / "evil.py")
        words = other.argv(sys.executable, script, "evil0", str(IMAGE), str(authority), name, spoil)
        child = spawn(words, log=authority.with_suffix(".log"))
        try:
            yield
        finally:
            child.kill()
            child.wait()
            stranger.run("ip", "link", "del", "liar0")
            plug(ring, "up")


def stolen(ring: Ring, folder: Path, *, key: bool = True) -> Path:
    """The cluster's authority, which everybody may have, and beside it a node's key."""
    authority = folder / "authority"
    authority.write_bytes((ring.first.cluster.directory / "pki/node-ca.crt").read_bytes())
    for kind in ("key", "crt") if key else ():
        (folder / f"identity.{kind}").write_text(ring[2].output("cat", f"/var/lib/kubermesh/identity.{kind}"))
    return authority


FALSE = "evil?[2J on liar0: what it sends is not what the root hash says"


@pytest.mark.parametrize(
    ("spoil", "says"), [("data", FALSE), ("hashes", FALSE), ("flat", "evil?[2J on liar0: /v1/root: status 503")]
)
def test_what_is_false_is_not_taken(
    ring: Ring, stranger: Stranger, fetch: Callable[..., Fetch], tmp_path: Path, spoil: str, says: str
) -> None:
    """Neither from a node whose disk or memory is bad, nor from somebody who has its key; who is next is asked for all of it."""
    with liar(ring, stranger, stolen(ring, tmp_path), spoil):
        one = fetch()
        one.wait_said(says)
        plug(ring, "up")
        one.wait_done()
    assert "\x1b" not in one.said


def test_nothing_is_taken_from_who_is_no_node_of_the_cluster_that_he_names(
    ring: Ring, stranger: Stranger, fetch: Callable[..., Fetch], tmp_path: Path
) -> None:
    """Not even this very system: with it comes what the machine does with its disks."""
    with liar(ring, stranger, stolen(ring, tmp_path, key=False), "nothing"):
        one = fetch()
        one.wait_said("evil?[2J on liar0 does not prove that it is a node of its cluster")
        plug(ring, "up")
        one.wait_done()
    assert "evil?[2J on liar0 has this system" not in one.said


def test_a_machine_that_knows_its_cluster_takes_nothing_from_another(
    ring: Ring, stranger: Stranger, fetch: Callable[..., Fetch], tmp_path: Path
) -> None:
    authority = tmp_path / "authority"
    authority.write_text(pki.create_authority("other").certificate)
    with liar(ring, stranger, authority, "nothing", name="other"):
        one = fetch(pinned=seed.make_join(ring.first.cluster.directory))
        one.wait_said("is of another cluster, other")
        plug(ring, "up")
        one.wait_done()


def test_a_machine_that_finds_nobody_says_so_and_goes_on_when_somebody_comes(
    ring: Ring, fetch: Callable[..., Fetch]
) -> None:
    plug(ring, "down")
    try:
        one = fetch()
        one.wait_said("looking for a neighbour that has this system")
    finally:
        plug(ring, "up")
    one.wait_done()


def started(one: Fetch) -> list[str]:
    """What the kernel would be told that a machine starts in the place of its own, which is this image's."""
    wait_for("end", lambda: one.process.poll() is not None or None, 60, 0.1)
    assert one.process.returncode == 0, one.said
    got = one.folder / "got"
    assert (got / "linux").read_bytes() == (made_by("tree") / "vmlinuz").read_bytes()
    assert (got / "initrd").read_bytes() == (made_by("initrd") / "initrd").read_bytes()
    return (got / "cmdline").read_text().split()


@pytest.mark.parametrize("proves", [True, False])
def test_the_newest_system_wins_when_its_node_proves_that_it_is_one(
    ring: Ring, stranger: Stranger, fetch: Callable[..., Fetch], tmp_path: Path, proves: bool
) -> None:
    with liar(ring, stranger, stolen(ring, tmp_path, key=proves), "newer"):
        plug(ring, "up")
        one = fetch(pinned=seed.make_join(ring.first.cluster.directory))
        if proves:
            words = started(one)
            assert "evil?[2J on liar0 has version 9.9.9, this is 0.1.0: starting that" in one.said
            # What the machine was told besides stays.
            assert words[-2:] == ["roothash=" + "cd" * 32, "quiet"]
        else:
            one.wait_done()
            assert "evil?[2J on liar0 does not prove that it is a node of its cluster" in one.said


def test_where_nobody_has_this_system_another_one_is_started(fetch: Callable[..., Fetch]) -> None:
    one = fetch(roothash="ab" * 32, version="9.9.9")
    one.wait_said("has another system, version 0.1.0")
    words = started(one)
    assert "has version 0.1.0, this is 9.9.9: starting that" in one.said
    # The newer one could not be fetched: it is not started once more as it is newer.
    assert words[-3:] == [f"roothash={MANIFEST['roothash']}", "quiet", "kubermesh.tried=" + "ab" * 32]

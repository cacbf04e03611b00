"""Machines of the disk image under OVMF: what a container cannot show. One has a stick, the others nothing but a cable."""

import json
import re

import pytest
import walkthrough
from machines import WEB, Node, bad_words, below_root, cable, kmbuild, wait_for

from kmcluster.topology import Boot
from kmplan import pki
from kmplan.fingerprint import compared

GIB = 1 << 30
pytestmark = pytest.mark.turn(1)


def in_order(text: str, *pieces: str) -> bool:
    """Whether all pieces are in a text, one behind the other."""
    at = 0
    for piece in pieces:
        at = text.find(piece, at) + len(piece)
        if at < len(piece):
            return False
    return True


def test_a_machine_installs_itself_and_the_stick_may_be_pulled_out(qemu_node: Node) -> None:
    """Everything after this runs without it."""
    status = json.loads(qemu_node.output("cat", "/run/kubermesh/disk.json"))
    assert (status["state"], status["disk"]) == ("installed", "vda")
    assert below_root(qemu_node) == {"vda2", "vda3"}
    assert qemu_node.host.mount_point("/var").device == "/dev/vda6"
    text = "\n".join(qemu_node.console_lines())
    assert in_order(text, "BdsDxe: starting", "installing, ", "the stick may be pulled out"), text
    done = kmbuild("cluster", "stick", "1", "pull", "--json")
    assert done.returncode == 0 and not json.loads(done.stdout)["stick"], done.stderr
    wait_for("machine without a stick", lambda: qemu_node.run("test", "-e", "/sys/block/sda").code != 0, 60, 1)
    # Nothing of the root is left in memory that was read before.
    assert qemu_node.output("sh", "-c", "sync; echo 3 > /proc/sys/vm/drop_caches; cat /usr/bin/* | wc -c")


def test_an_install_that_was_cut_off_begins_anew(qemu_node: Node) -> None:
    """It was reset at some per cent."""
    text = "\n".join(qemu_node.console_lines())
    assert in_order(text, "installing, ", "BdsDxe: starting", "installing, ", "the stick may be pulled out"), text


def test_a_blank_machine_boots_from_its_neighbour(qemu_node: Node) -> None:
    """It had no stick and no credential: firmware, boot image, root, cluster and admission came over the cable."""
    worker = Node(qemu_node.name, 2)
    first = qemu_node.machine.name
    console = "\n".join(worker.console_lines())
    found = f"{first} on eth0 has this system"
    assert in_order(
        console, "Start HTTP Boot over IPv4", found, "fetching, 50 %", "each block checked", "installed;"
    ), console
    shown = compared(pki.fingerprint((qemu_node.cluster.directory / "pki/node-ca.crt").read_text()))
    assert f"cluster {qemu_node.name}, fingerprint {shown}" in console
    assert qemu_node.cluster.roothash in worker.output("cat", "/proc/cmdline")


def test_a_disk_that_held_something_was_wiped_when_that_was_allowed(qemu_node: Node) -> None:
    """It was started anew then, and boots from the partitions that it has made itself."""
    worker = Node(qemu_node.name, 2)
    assert below_root(worker) == {"vda2", "vda3"}
    assert in_order("\n".join(worker.console_lines()), "holds photos", "installing, ", "installed;")
    assert worker.status()["disk"] == ""
    # Firmware that boots from the network says nothing of this partition: nobody else has it mounted.
    esp = "mkdir /run/esp && mount -o ro /dev/vda1 /run/esp && ls /run/esp/EFI/Linux && umount /run/esp"
    assert worker.output("sh", "-c", esp).split() == ["kubermesh_0.1.0.efi"]


def test_the_list_shows_how_far_a_machine_is(qemu_node: Node) -> None:
    """What its own console shows, to somebody who is elsewhere."""
    assert in_order("\n".join(walkthrough.offered), "offered", "fetching, "), walkthrough.offered


def test_the_root_is_sealed_by_verity(qemu_node: Node) -> None:
    root = qemu_node.host.mount_point("/")
    assert root.filesystem == "erofs"
    assert root.device == "/dev/mapper/root"
    assert "verity" in qemu_node.output("cat", "/sys/class/block/dm-0/dm/uuid").lower()
    assert f"roothash={qemu_node.cluster.roothash}" in qemu_node.output("cat", "/proc/cmdline")


def test_the_other_machine_joined_over_the_cable(qemu_node: Node) -> None:
    worker = Node(qemu_node.name, 2)
    assert worker.status()["role"] == "worker"
    assert worker.neighbour("eth0") == qemu_node.machine.name
    worker.wait_ready(300)


def test_pods_of_both_machines_reach_each_other(qemu_node: Node) -> None:
    worker = Node(qemu_node.name, 2)
    look = ("get", "pods", "-n", "kube-system", "-l", "k8s-app=kube-dns", "-o", "json")

    def addresses() -> dict[str, str]:
        items = json.loads(qemu_node.kubectl(*look))["items"]
        return {item["spec"]["nodeName"]: item["status"]["podIP"] for item in items if item["status"].get("podIP")}

    def both() -> dict[str, str] | None:
        found = addresses()
        return found if {qemu_node.machine.name, worker.machine.name} <= found.keys() else None

    found = wait_for("a CoreDNS on each", both, 300, 10)
    ask = "import sys, urllib.request; print(urllib.request.urlopen(f'http://[{sys.argv[1]}]:8181/ready', timeout=10).status)"
    for node, other in ((qemu_node, worker), (worker, qemu_node)):
        address = found[other.machine.name]
        wait_for(f"answer of {other.machine.name}", lambda one=node, to=address: one.python(ask, to) == "200", 300, 5)


def test_var_has_grown_to_the_disk(qemu_node: Node) -> None:
    blocks, size = qemu_node.output("stat", "-f", "-c", "%b %S", "/var").split()
    assert int(blocks) * int(size) > 2 * GIB


def test_the_boot_was_blessed(qemu_node: Node) -> None:
    look = "ls /efi/EFI/Linux /boot/EFI/Linux 2>/dev/null | grep '[.]efi$'"

    def blessed() -> bool:
        names = qemu_node.output("sh", "-c", look).split()
        return bool(names) and not [name for name in names if "+" in name]

    wait_for("boot entry without a counter", blessed, 120, 5)


def test_no_unit_failed(qemu_node: Node) -> None:
    assert qemu_node.output("systemctl", "--failed", "--no-legend", "--plain") == ""


def test_a_pod_runs(qemu_node: Node) -> None:
    wait_for("applied objects", lambda: qemu_node.kubectl("apply", "-f", "-", given=WEB), 120, 5)
    path = "jsonpath={.status.readyReplicas}"
    wait_for("ready pod", lambda: qemu_node.kubectl("get", "deployment", "web", "-o", path) == "1", 600, 15)


def test_the_console_says_who_the_node_is(qemu_node: Node) -> None:
    text = "\n".join(qemu_node.console_lines())
    assert qemu_node.machine.name in text
    assert [address for address in qemu_node.status()["node"]["addresses"] if address in text]


def test_a_machine_boots_from_one_that_has_booted_from_another(third: Node) -> None:
    """By PXE, in three steps: firmware, iPXE, boot image; twice, as the power was cut when the disk had all but a cluster."""
    console = "\n".join(third.console_lines())
    second = Node(third.name, 2).machine.name
    begins = {Boot.PXE: "Start PXE over IPv4", Boot.PXE6: "Start PXE over IPv6"}[third.machine.node.boot]
    boot = (begins, "iPXE", f"{second} on eth0 has this system")
    assert in_order(console, *boot, "reading back what was written", *boot, "installed;"), console
    assert below_root(third) == {"vda2", "vda3"}
    # What it came with is given back: the root is on the disk now.
    assert third.output("ls", "/sys/block").split().count("zram0") == 0
    assert third.output("systemctl", "--failed", "--no-legend", "--plain") == ""
    wait_for("neighbour", lambda: third.neighbour("eth0") == second, 120, 1)


def test_a_root_whose_links_are_lost_stays(third: Node) -> None:
    """As while a disk with the same root gets its partitions: systemd stops the unit that is bound to them."""
    unit = "systemd-veritysetup@root.service"
    look = ("systemctl", "is-active", unit)
    assert third.output(*look) == "active\n"
    third.output("sh", "-c", "echo remove > /sys/class/block/vda2/uevent")
    wait_for("unit that is stopped", lambda: third.run(*look).stdout.strip() == "inactive", 60, 1)
    third.output("sh", "-c", "echo add > /sys/class/block/vda2/uevent")
    assert third.output("systemctl", "--failed", "--no-legend", "--plain") == ""
    assert below_root(third) == {"vda2", "vda3"}


def test_it_goes_as_the_page_says(qemu_node: Node, third: Node) -> None:
    """What is on the screens, and in the lists, from the stick to the ring (docs/five-machines.md)."""
    assert walkthrough.missing(walkthrough.step(2)[0], qemu_node.console_lines()) == []
    # One that was refused is told so, and let in when somebody thinks better of it.
    assert in_order(
        "\n".join(third.console_lines()), "waiting for approval", "refused by an administrator", "asking: admitted"
    )
    for (command,), table in (walkthrough.step(3), walkthrough.step(5)):
        words = command.removeprefix("kubectl --kubeconfig shop/admin.kubeconfig ").split()
        shown = qemu_node.kubectl(*words).splitlines()
        # Of its five machines there are three, and the third may not be a node of Kubernetes yet.
        assert len(shown) in ((4,) if "meshnodes" in words else (3, 4)), shown
        assert walkthrough.missing(table[: len(shown)], shown) == [], shown


def test_a_ring_is_closed_and_any_cable_may_break(qemu_node: Node, third: Node) -> None:
    """The seed's way to the second machine leads over the third then."""
    first, second = (Node(qemu_node.name, number) for number in (1, 2))
    cable(qemu_node.name, 3, 1, "plug")
    wait_for("closed ring", lambda: third.neighbour("eth1") == first.machine.name, 60)
    cable(qemu_node.name, 1, 2, "cut")
    ping = ("ping", "-6", "-c", "1", "-W", "2", second.address)
    wait_for("the other way", lambda: "dev eth1" in first.output("ip", "-6", "route", "get", second.address), 60)
    wait_for("answer", lambda: first.run(*ping).code == 0, 60)
    cable(qemu_node.name, 1, 2, "plug")
    wait_for("cable that is back", lambda: second.neighbour("eth0") == first.machine.name, 60)


def pinged(node: Node, address: str, count: int, *options: str) -> tuple[float, float]:
    """What part of so many pings was lost, and the least time that an answer took (ms)."""
    done = node.run("ping", "-6", "-n", "-q", "-c", str(count), *options, address)
    if re.search(r"connect: (Network is unreachable|No route to host)", done.stderr):
        # The mesh has lost the way already.
        return 1.0, 0.0
    lost = re.search(r"([\d.]+)% packet loss", done.stdout)
    least = re.search(r"= ([\d.]+)/", done.stdout)
    assert lost, f"{done.stdout}{done.stderr}"
    return float(lost.group(1)) / 100, float(least.group(1)) if least else 0.0


def test_a_cable_between_virtual_machines_is_slow_lossy_and_one_way(qemu_node: Node) -> None:
    worker = Node(qemu_node.name, 2)

    def neighbours() -> bool:
        return worker.neighbour("eth0") == qemu_node.machine.name and qemu_node.neighbour("eth0") == worker.machine.name

    wait_for("neighbours", neighbours, 120, 1)
    cable(qemu_node.name, 1, 2, "slow", delay=100)
    lost, least_ms = pinged(qemu_node, f"{worker.link_local('eth0')}%eth0", 5)
    assert lost < 1 and 200 <= least_ms < 2000
    cable(qemu_node.name, 1, 2, "lossy", loss=30)
    lost, _ = pinged(qemu_node, f"{worker.link_local('eth0')}%eth0", 60, "-i", "0.2")
    assert 0.2 < lost < 0.8
    cable(qemu_node.name, 1, 2, "one-way")
    assert pinged(qemu_node, f"{worker.link_local('eth0')}%eth0", 5) == (1.0, 0.0)
    wait_for("worker that is not heard", lambda: worker.neighbour("eth0") == "", 120, 1)
    cable(qemu_node.name, 1, 2, "plug")
    wait_for("neighbours again", neighbours, 120, 1)


def test_no_machine_has_told_of_a_fault(qemu_node: Node) -> None:
    """Neither its kernel nor its system nor a service or a pod, since it was switched on first."""
    assert bad_words(qemu_node.name) == {}


MARK = "/var/lib/bench-mark"


def test_a_disk_of_a_virtual_machine_is_filled_freed_and_corrupted(qemu_node: Node) -> None:
    worker = Node(qemu_node.name, 2)
    write = ("sh", "-c", f"yes | head -c 1M > {MARK} && sync {MARK}")
    for _ in range(2):
        assert kmbuild("cluster", "disk", "2", "fill").returncode == 0
    assert worker.run(*write).code != 0
    for _ in range(2):
        assert kmbuild("cluster", "disk", "2", "repair").returncode == 0
    worker.output(*write)
    assert kmbuild("cluster", "disk", "2", "corrupt", "--file", MARK).returncode == 0
    assert worker.output("sh", "-c", f"tr -d 'y\\n' < {MARK} | wc -c").strip() != "0"


def test_a_frozen_machine_goes_on_and_one_with_a_bad_disk_writes_nothing(qemu_node: Node) -> None:
    worker = Node(qemu_node.name, 2)
    for _ in range(2):
        worker.power("freeze")
    assert worker.driver.power(worker.machine) == "frozen"
    assert pinged(qemu_node, worker.address, 2) == (1.0, 0.0)
    for _ in range(2):
        worker.power("thaw")
    wait_for("answer", lambda: pinged(qemu_node, worker.address, 2)[0] < 1, 60, 1)
    for _ in range(2):
        assert kmbuild("cluster", "disk", "2", "errors").returncode == 0
    written = worker.run("sh", "-c", f"echo lost > {MARK} && sync {MARK}")
    assert written.code != 0, written
    assert kmbuild("cluster", "disk", "2", "repair").returncode == 0


def test_a_reboot_keeps_the_data(qemu_node: Node) -> None:
    # The others have shown what they can, and take its processors.
    for number in (2, 3):
        Node(qemu_node.name, number).power("cut")
    qemu_node.kubectl("create", "configmap", "kept", "--from-literal=kept=yes")
    before = qemu_node.output("cat", "/proc/sys/kernel/random/boot_id")
    qemu_node.run("systemctl", "--no-block", "reboot")
    wait_for("new boot", lambda: qemu_node.output("cat", "/proc/sys/kernel/random/boot_id") != before, 600, 5)
    qemu_node.wait_ready(900)
    assert qemu_node.kubectl("get", "configmap", "kept", "-o", "jsonpath={.data.kept}") == "yes"


def test_a_stick_boots_the_machine_that_is_installed_already(qemu_node: Node) -> None:
    """Whoever leaves the stick in, or plugs it in again, has the same node."""
    serial = qemu_node.status()["registry"]
    qemu_node.power("cut")
    assert kmbuild("cluster", "stick", "1", "plug").returncode == 0
    qemu_node.power("on")
    qemu_node.wait_ready(900)
    assert "kubermesh-a" in qemu_node.output("lsblk", "--output=PARTLABEL", "/dev/sda")
    # Root and hashes have the same UUIDs on both: either may have been found first.
    assert below_root(qemu_node) == {"vda2", "vda3"}
    assert qemu_node.status()["registry"] >= serial
    assert qemu_node.kubectl("get", "configmap", "kept", "-o", "jsonpath={.data.kept}") == "yes"


def test_the_machine_has_told_of_no_fault_when_it_was_started_again(qemu_node: Node) -> None:
    assert bad_words(qemu_node.name).get(qemu_node.machine.name) is None

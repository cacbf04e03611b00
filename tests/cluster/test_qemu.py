"""One node of the disk image under OVMF: what a container cannot show."""

from machines import WEB, Node, wait_for

from kmcluster.console import find_faults

GIB = 1 << 30


def test_the_root_is_sealed_by_verity(qemu_node: Node) -> None:
    root = qemu_node.host.mount_point("/")
    assert root.filesystem == "erofs"
    assert root.device == "/dev/mapper/root"
    assert "verity" in qemu_node.output("cat", "/sys/class/block/dm-0/dm/uuid").lower()
    assert f"roothash={qemu_node.cluster.roothash}" in qemu_node.output("cat", "/proc/cmdline")


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


def test_the_console_says_who_the_node_is_and_nothing_bad(qemu_node: Node) -> None:
    lines = qemu_node.console_lines()
    text = "\n".join(lines)
    assert qemu_node.machine.name in text
    assert [address for address in qemu_node.status()["node"]["addresses"] if address in text]
    assert find_faults(lines) == []


def test_a_reboot_keeps_the_data(qemu_node: Node) -> None:
    qemu_node.kubectl("create", "configmap", "kept", "--from-literal=kept=yes")
    before = qemu_node.output("cat", "/proc/sys/kernel/random/boot_id")
    qemu_node.run("systemctl", "--no-block", "reboot")
    wait_for("new boot", lambda: qemu_node.output("cat", "/proc/sys/kernel/random/boot_id") != before, 600, 5)
    qemu_node.wait_ready(900)
    assert qemu_node.kubectl("get", "configmap", "kept", "-o", "jsonpath={.data.kept}") == "yes"

"""Command lines that the drivers build."""

import itertools
import re
from pathlib import Path

import pytest

from kmcluster import tools
from kmcluster.nspawn import enter_argv, nspawn_argv
from kmcluster.qemu_argv import kernel_arguments, mac_address, machine_uuid, niceness, qemu_arguments
from kmcluster.state import Machine
from kmcluster.topology import Boot, Node, Role
from kmplan.errors import UserError

SEED = Machine(name="one-1", number=1, node=Node(role=Role.SEED), api_port=7000, node_port=7001)


def test_nspawn_on_cgroup_v1() -> None:
    argv = nspawn_argv(
        "one-1",
        "u-1",
        Path("/roots/abc"),
        Path("/state/one-1"),
        Path("/state/served"),
        42,
        [Path("/c/kubermesh.seed")],
        legacy=True,
    )
    assert argv == [
        "systemd-nspawn",
        "--quiet",
        "--register=no",
        "--keep-unit",
        "--directory=/roots/abc",
        "--read-only",
        "--machine=one-1",
        "--hostname=one-1",
        "--uuid=u-1",
        "--network-namespace-path=/proc/42/ns/net",
        "--capability=all",
        "--drop-capability=CAP_SYS_MODULE,CAP_SYS_TIME",
        "--system-call-filter=@keyring bpf",
        "--console=read-only",
        "--link-journal=no",
        "--resolv-conf=off",
        "--timezone=off",
        "--bind=/dev/kmsg",
        "--bind=/state/one-1/var:/var",
        "--overlay=+/etc:/state/one-1/etc/upper:/etc",
        "--bind-ro=/state/one-1/bench:/run/kubermesh-bench",
        "--bind-ro=/state/served:/run/kubermesh-image",
        "--load-credential=kubermesh.seed:/c/kubermesh.seed",
        "--setenv=SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1",
        "--setenv=SYSTEMD_PROC_CMDLINE=systemd.unified_cgroup_hierarchy=0 SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1",
        "--boot",
    ]


def test_nspawn_on_cgroup_v2_says_nothing_of_v1() -> None:
    argv = nspawn_argv("one-1", "u-1", Path("/r"), Path("/s"), Path("/i"), 42, [], legacy=False)
    assert not [word for word in argv if "LEGACY" in word or "unified" in word]
    assert argv[-1] == "--boot"


def test_a_command_enters_every_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert enter_argv(7, ["id", "-u"]) == [
        *("nsenter", "--target=7", "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root"),
        *("/usr/bin/env", "-i", "-C", "/", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"),
        *("HOME=/root", "TERM=xterm", "id", "-u"),
    ]


def pairs(argv: list[str]) -> list[tuple[str, str]]:
    return list(itertools.pairwise(argv))


def test_qemu_under_tcg() -> None:
    argv = qemu_arguments("one", SEED, Path("/tools"), "tcg", ["smbios/kubermesh.seed"], {})
    assert ("-accel", "tcg,thread=multi,tb-size=2000") in pairs(argv)
    assert ("-cpu", "max,-la57,-erms,-fsrm,-smap,-smep,-pku") in pairs(argv)
    assert ("-smp", "2") in pairs(argv)
    assert ("-m", "4096M") in pairs(argv)
    assert (
        "-drive",
        "if=pflash,unit=0,format=raw,readonly=on,file=/tools/usr/share/OVMF/OVMF_CODE_4M.fd",
    ) in pairs(argv)
    assert (
        "-drive",
        "if=none,id=disk,node-name=disk-image,format=qcow2,cache=unsafe,discard=unmap,file=disk.qcow2",
    ) in pairs(argv)
    assert ("-smbios", "type=11,path=smbios/kubermesh.seed") in pairs(argv)
    network = next(word for word in argv if word.startswith("user,"))
    assert "restrict=on" in network
    ports = "hostfwd=tcp:127.0.0.1:7000-198.18.0.15:6443,hostfwd=tcp:127.0.0.1:7001-198.18.0.15:9444"
    assert network.endswith(ports)


def test_qemu_under_kvm_keeps_production_settings() -> None:
    argv = qemu_arguments("one", SEED, Path("/tools"), "kvm", [], {})
    assert ("-accel", "kvm") in pairs(argv)
    assert ("-cpu", "host") in pairs(argv)
    assert kernel_arguments("kvm") == "console=ttyS0 net.ifnames=0"
    assert "highres=off nohz=off" in kernel_arguments("tcg")


@pytest.mark.parametrize(("boot", "accelerator", "nice"), [("http", "tcg", 3), ("http", "kvm", 0), ("disk", "tcg", 0)])
def test_an_emulated_machine_that_boots_from_the_network_leaves_more_to_others(
    boot: str, accelerator: str, nice: int
) -> None:
    assert niceness(Machine(name="one-2", number=2, node=Node(boot=Boot(boot))), accelerator) == nice


def test_no_secret_stands_in_an_argv() -> None:
    argv = qemu_arguments("one", SEED, Path("/tools"), "tcg", ["smbios/kubermesh.seed"], {})
    assert not [word for word in argv if "io.systemd.credential" in word]


def test_machines_keep_their_identity_and_differ() -> None:
    other = Machine(name="one-300", number=300, node=Node())
    assert mac_address(SEED) == "52:54:00:6b:00:01"
    assert mac_address(other) == "52:54:00:6b:01:2c"
    assert machine_uuid("one", SEED) == machine_uuid("one", SEED) != machine_uuid("one", other)
    assert machine_uuid("one", SEED) != machine_uuid("two", SEED)


def test_tools_run_by_the_trees_own_loader(tmp_path: Path) -> None:
    for name in ("usr/bin/qemu-img", tools.LOADER):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert tools.tool(tmp_path, "qemu-img", "info", "-q") == [
        *(f"{tmp_path}/usr/lib64/ld-linux-x86-64.so.2", "--library-path", f"{tmp_path}/usr/lib/x86_64-linux-gnu"),
        *(f"{tmp_path}/usr/bin/qemu-img", "info", "-q"),
    ]


def test_a_missing_tool_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"usr/bin/fsck.erofs: missing in the tools tree; `make image`"):
        tools.tool(tmp_path, "fsck.erofs")


@pytest.mark.parametrize("boot", [Boot.HTTP, Boot.PXE, Boot.PXE6])
def test_a_machine_that_boots_from_the_network_does_when_it_has_a_system_too(boot: Boot) -> None:
    machine = Machine(name="one-2", number=2, node=Node(role=Role.BLANK, boot=boot), ports=1)
    words = " ".join(qemu_arguments("one", machine, Path("/tools"), "tcg", [], dict.fromkeys(machine.port_list, 1400)))
    port, disk = (
        int(re.findall(rf"{device},[^ ]*bootindex=(\d+)", words)[0]) for device in ("virtio-net-pci", "virtio-blk-pci")
    )
    assert port < disk


def test_a_stick_is_booted_from_first_and_may_be_out() -> None:
    machine = Machine(name="one-1", number=1, node=Node(role=Role.SEED, boot=Boot.STICK), stick=True)

    def words() -> str:
        return " ".join(qemu_arguments("one", machine, Path("/tools"), "tcg", [], {}))

    assert "usb-storage,id=stick-device,bus=usb.0,drive=stick-image,removable=on,bootindex=0" in words()
    assert "virtio-blk-pci,id=disk-device,drive=disk,bootindex=1" in words()
    machine.stick = False
    assert "usb-storage" not in words() and "qemu-xhci" in words()

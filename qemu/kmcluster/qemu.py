"""Machines as QEMU virtual machines: the disk image itself, under OVMF."""

import base64
import errno
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from kmcluster import channel, process, qemu_cables, qemu_stick, qmp
from kmcluster.cable import Cable
from kmcluster.driver import LONG_S, Result
from kmcluster.forward import listen
from kmcluster.launch import Spec
from kmcluster.qemu_argv import ADDRESS, OVMF, kernel_arguments, mac_address, niceness, qemu_arguments
from kmcluster.starter import start
from kmcluster.state import Cluster, Machine
from kmcluster.tools import qemu, qemu_environment, tool
from kmcluster.topology import Boot, Holds
from kmplan import run
from kmplan.errors import UserError

STATUS = "/run/kubermesh/status.json"
STATUS_TIMEOUT_S = 20.0
# Whoever waits for a command at a terminal ends it by hand.
ATTACHED_S = 86400.0

POWER_ON = "-- power on --"
DISK, FAULTY = "disk-image", "disk-faulty"
FAILING = ("write", "write-zeroes", "discard", "flush")
FAULTY_DISK = {
    "driver": "blkdebug",
    "node-name": FAULTY,
    "image": DISK,
    "inject-error": [{"event": "none", "iotype": kind, "errno": errno.EIO} for kind in FAILING],
}


class QemuDriver:
    """Runs the machines of one cluster as virtual machines."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def power_on(self, machine: Machine) -> None:
        """Start QEMU unless it runs; what an interrupted power on left to do is done in any case."""
        if self.power(machine) == "off":
            self.start_qemu(machine)
        self.wait_for_monitor(machine)
        self.fail_disk(machine, "errors" in machine.disk_faults)
        self.apply_cables(self.cluster.cables_of(machine))

    def start_qemu(self, machine: Machine) -> None:
        """Make the disk at the first power on, then start QEMU."""
        self.cleanup(machine)
        folder = self.cluster.machine_folder(machine)
        folder.mkdir(parents=True, exist_ok=True)
        self.make_disk(machine)
        self.make_variables(folder)
        with listen(machine.api_port) as api, listen(machine.node_port) as node:
            machine.api_port, machine.node_port = api.getsockname()[1], node.getsockname()[1]
        strings = self.write_strings(machine)
        tools = self.cluster.image.tools
        ports = self.cluster.mtus()
        argv = qemu(tools, qemu_arguments(self.cluster.name, machine, tools, self.cluster.accelerator, strings, ports))
        spec = Spec(argv=argv, cwd=str(folder), nice=niceness(machine, self.cluster.accelerator))
        log, note = self.log(machine), self.cluster.noter("qemu", machine)
        with self.console(machine).open("a") as console:
            # What was shown before is kept; this is the end of it.
            console.write(f"\n{POWER_ON}\n")
        start(spec, log, note, env=qemu_environment(tools))

    def make_disk(self, machine: Machine) -> None:
        """An overlay over the image, as big as the machine's disk: the image itself is never written to. Or an empty disk."""
        disk = self.cluster.machine_folder(machine) / "disk.qcow2"
        if disk.exists():
            return
        partial = disk.with_suffix(".partial")
        tools, size_gib = self.cluster.image.tools, machine.node.disk_gib
        if machine.node.boot is not Boot.DISK and machine.node.holds is Holds.DATA:
            qemu_stick.make_used_disk(tools, partial, size_gib)
            partial.rename(disk)
            return
        options = ["-q", "-f", "qcow2"]
        if machine.node.boot is Boot.DISK:
            options += ["-F", "raw", "-b", str(self.cluster.image.raw.resolve())]
        run.run(tool(tools, "qemu-img", "create", *options, str(partial), f"{size_gib}G"))
        partial.rename(disk)

    def make_variables(self, folder: Path) -> None:
        """The firmware's variable store, the machine's own."""
        if not (folder / "vars.fd").exists():
            shutil.copyfile(self.cluster.image.tools / OVMF / "OVMF_VARS_4M.fd", folder / ".vars.fd")
            (folder / ".vars.fd").rename(folder / "vars.fd")

    def write_strings(self, machine: Machine) -> list[str]:
        """Write the SMBIOS strings, one file each, so that no secret stands in an argv; returns paths in the folder."""
        folder = self.cluster.machine_folder(machine)
        given = {path.name: path.read_bytes() for path in sorted((folder / "credentials").glob("*"))}
        given |= channel.credentials(mac_address(machine), f"{ADDRESS}/24")
        (folder / "smbios").mkdir(mode=0o700, exist_ok=True)
        extra = f"io.systemd.stub.kernel-cmdline-extra={kernel_arguments(self.cluster.accelerator)}"
        strings = {"kernel-arguments": extra}
        for name, data in given.items():
            strings[name] = f"io.systemd.credential.binary:{name}={base64.b64encode(data).decode()}"
        for name, text in strings.items():
            (folder / "smbios" / name).write_text(text)
        return [f"smbios/{name}" for name in strings]

    def wait_for_monitor(self, machine: Machine) -> None:
        """Wait until QEMU answers; raises UserError with its words when it ended instead."""
        path = self.socket(machine, "qmp")
        while not process.wait_end(machine.processes["qemu"], 0.05):
            if path.exists():
                try:
                    qmp.execute(path, "query-status")
                except UserError:
                    continue
                return
        words = self.log(machine).read_text(errors="replace").strip().splitlines()
        raise UserError(f"{machine.name}: QEMU ended: {words[-1] if words else 'without a word'}")

    def log(self, machine: Machine) -> Path:
        """The file with QEMU's own words."""
        return self.cluster.machine_folder(machine) / "qemu.log"

    def socket(self, machine: Machine, name: str) -> Path:
        """Path of one of the machine's sockets."""
        return self.cluster.machine_folder(machine) / f"{name}.sock"

    def power_off(self, machine: Machine, timeout_s: float) -> None:
        """Ask the system to power off; the power button is for a system that does not answer."""
        state = self.power(machine)
        if state == "frozen":
            self.thaw(machine)
        started = machine.processes.get("qemu")
        if state != "off" and started:
            try:
                self.execute(machine, ["systemctl", "--no-block", "poweroff"], timeout_s=20)
            except UserError:
                qmp.execute(self.socket(machine, "qmp"), "system_powerdown")
            if not process.wait_end(started, timeout_s):
                raise UserError(
                    f"{machine.name} is still on after {timeout_s:g} s", "`cluster power NODE cut` does not ask"
                )
        self.power_cut(machine)

    def power_cut(self, machine: Machine) -> None:
        """Kill QEMU; what it wrote is in the host's page cache, as after a cut with a disk that keeps its word."""
        self.cleanup(machine)
        self.apply_cables(self.cluster.cables_of(machine))

    def reset(self, machine: Machine) -> None:
        """Reset the machine; one that is off is powered on."""
        if self.power(machine) == "off":
            self.power_on(machine)
        else:
            self.command(machine, "system_reset")
            self.thaw(machine)

    def freeze(self, machine: Machine) -> None:
        """Stop the virtual processors."""
        self.command(machine, "stop")

    def thaw(self, machine: Machine) -> None:
        """Continue."""
        if self.power(machine) != "off":
            self.command(machine, "cont")

    def wipe_disk(self, machine: Machine) -> None:
        """Forget what was written over the image; the firmware's variables are not on the disk."""
        (self.cluster.machine_folder(machine) / "disk.qcow2").unlink(missing_ok=True)

    def fail_disk(self, machine: Machine, failing: bool) -> None:
        """Put a filter that fails all writes between the disk's controller and its image, or take it out."""
        if self.power(machine) == "off":
            return
        nodes = [node["node-name"] for node in self.command(machine, "query-named-block-nodes")]
        if failing == (FAULTY in nodes):
            return
        if failing:
            self.command(machine, "blockdev-add", **FAULTY_DISK)
        # QEMU 10.0 dies of an assertion when the controller has this image already.
        image = FAULTY if failing else DISK
        self.command(machine, "qom-set", path="/machine/peripheral/disk-device", property="drive", value=image)
        if not failing:
            self.command(machine, "blockdev-del", **{"node-name": FAULTY})

    def plug_stick(self, machine: Machine, plugged: bool) -> None:
        """Plug a USB device in, or pull it out."""
        if self.power(machine) != "off":
            qemu_stick.plug(self.socket(machine, "qmp"), plugged)

    def command(self, machine: Machine, name: str, **arguments: Any) -> Any:
        """Run a QMP command on a machine that is on."""
        if self.power(machine) == "off":
            raise UserError(f"{machine.name} is off", f"`kmbuild cluster power {machine.name} on`")
        return qmp.execute(self.socket(machine, "qmp"), name, **arguments)

    def power(self, machine: Machine) -> str:
        """Whether QEMU runs, and whether its processors do."""
        started = machine.processes.get("qemu")
        if started is None or not process.is_running(started):
            return "off"
        try:
            running = qmp.execute(self.socket(machine, "qmp"), "query-status")["running"]
        except UserError:
            return "on" if process.is_running(started) else "off"
        return "on" if running else "frozen"

    def console(self, machine: Machine) -> Path:
        """The first serial port."""
        return self.cluster.machine_folder(machine) / "console.log"

    def execute(self, machine: Machine, argv: Sequence[str], stdin: bytes = b"", timeout_s: float = LONG_S) -> Result:
        """Run a command over the virtio serial port."""
        code, stdout, stderr = self.ask(machine, argv, stdin, timeout_s)
        return Result(code, stdout.decode(errors="replace"), stderr.decode(errors="replace"))

    def ask(self, machine: Machine, argv: Sequence[str], stdin: bytes, timeout_s: float) -> channel.Answer:
        """Run a command over the virtio serial port; returns its status, standard output and error."""
        state = self.power(machine)
        if state != "on":
            raise UserError(
                f"{machine.name} is {state}",
                f"`kmbuild cluster power {machine.name} {'on' if state == 'off' else 'thaw'}`",
            )
        return channel.execute(self.socket(machine, "exec"), argv, stdin, timeout_s)

    def execute_on_disk(
        self, machine: Machine, argv: Sequence[str], stdin: bytes = b"", timeout_s: float = LONG_S
    ) -> Result:
        """Only the machine itself reads its disk: the image's partitions are in a file that the host cannot mount."""
        raise UserError(f"{machine.name} is off", f"`kmbuild cluster power {machine.name} on`")

    def attach(self, machine: Machine, argv: Sequence[str]) -> int:
        """Run a command with all of standard input read before, and output written after."""
        stdin = b"" if sys.stdin.isatty() else sys.stdin.buffer.read()
        code, stdout, stderr = self.ask(machine, argv, stdin, ATTACHED_S)
        sys.stdout.buffer.write(stdout)
        sys.stderr.buffer.write(stderr)
        return code

    def read_status(self, machine: Machine) -> dict[str, Any] | None:
        """Read the file over the virtio serial port."""
        if self.power(machine) != "on":
            return None
        data = channel.read(self.socket(machine, "exec"), STATUS, STATUS_TIMEOUT_S)
        try:
            return msgspec.json.decode(data, type=dict[str, Any]) if data else None
        except msgspec.MsgspecError:
            return None

    def apply_cables(self, cables: Sequence[Cable]) -> None:
        """Run relays and set links."""
        qemu_cables.apply(self.cluster, cables)

    def cleanup(self, machine: Machine) -> None:
        """Kill QEMU."""
        for started in machine.processes.values():
            process.end(started)
        machine.processes = {}
        for name in ("qmp", "exec"):
            self.socket(machine, name).unlink(missing_ok=True)
        if self.cluster.folder.is_dir():
            self.cluster.save()

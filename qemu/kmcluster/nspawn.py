"""Machines as systemd-nspawn containers of the image's root tree: the same system, at native speed."""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from kmcluster import cgroups, process, var_disk
from kmcluster.cable import Cable
from kmcluster.console import read_lines
from kmcluster.driver import LONG_S, Result
from kmcluster.forward import listen
from kmcluster.launch import Spec
from kmcluster.nspawn_cables import NspawnCables
from kmcluster.nspawn_files import SERVED, SERVED_AT, write_files
from kmcluster.process import Process
from kmcluster.qemu_argv import machine_uuid
from kmcluster.roots import root_tree
from kmcluster.starter import start
from kmcluster.state import Cluster, Machine
from kmplan import run
from kmplan.errors import UserError

API_PORT, NODE_PORT = 6443, 9444
GUEST_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"
STATUS = "run/kubermesh/status.json"
GUEST_ENVIRONMENT = ["/usr/bin/env", "-i", "-C", "/", f"PATH={GUEST_PATH}", "HOME=/root"]
SIGRTMIN = 34
POWEROFF_SIGNAL = SIGRTMIN + 4

# The container may do all but load modules into the host's kernel and set the host's clock.
DROPPED = "CAP_SYS_MODULE,CAP_SYS_TIME"
# crun gives every container a session keyring, and takes no refusal but "not implemented".
CALLS = "@keyring bpf"
ENVIRONMENT = {"SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network"}
# systemd 257 boots on cgroup v1 only when told twice; the host's nspawn 252 has to make the v1 mounts.
LEGACY_ENVIRONMENT = {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "0"}
LEGACY_KERNEL_ARGUMENTS = "systemd.unified_cgroup_hierarchy=0 SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1"


def nspawn_argv(
    name: str,
    uuid: str,
    root: Path,
    folder: Path,
    served: Path,
    network: int,
    credentials: Sequence[Path],
    *,
    legacy: bool,
) -> list[str]:
    """The argv of a machine's systemd-nspawn; `network` is the pid of a process in the network namespace to use."""
    argv = [
        "systemd-nspawn", "--quiet", "--register=no", "--keep-unit", f"--directory={root}", "--read-only",
        f"--machine={name}", f"--hostname={name}", f"--uuid={uuid}", f"--network-namespace-path=/proc/{network}/ns/net",
        "--capability=all", f"--drop-capability={DROPPED}", f"--system-call-filter={CALLS}",
        "--console=read-only", "--link-journal=no", "--resolv-conf=off", "--timezone=off",
        "--bind=/dev/kmsg", f"--bind={folder}/var:/var", f"--overlay=+/etc:{folder}/etc/upper:/etc",
        f"--bind-ro={folder}/bench:/run/kubermesh-bench", f"--bind-ro={served}:{SERVED_AT}",
        *(f"--load-credential={path.name}:{path}" for path in credentials),
    ]  # fmt: skip
    if legacy:
        argv += [
            "--setenv=SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1",
            f"--setenv=SYSTEMD_PROC_CMDLINE={LEGACY_KERNEL_ARGUMENTS}",
        ]
    return [*argv, "--boot"]


def enter_argv(init: int, argv: Sequence[str]) -> list[str]:
    """The argv that runs a command in all namespaces of the container whose process 1 is `init` outside."""
    terminal = f"TERM={os.environ.get('TERM', 'dumb')}"
    namespaces = ["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root"]
    return ["nsenter", f"--target={init}", *namespaces, *GUEST_ENVIRONMENT, terminal, *argv]


class NspawnDriver:
    """Runs the machines of one cluster as containers."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.cables = NspawnCables(cluster)

    def power_on(self, machine: Machine) -> None:
        """Start the forwarder, which holds the network namespace, and systemd-nspawn in it."""
        if self.power(machine) != "off":
            self.cables.connect(machine, machine.processes["init"])
            return
        self.cleanup(machine)
        root = root_tree(self.cluster.image, self.cluster.roothash)
        folder = self.cluster.machine_folder(machine)
        credentials = write_files(folder)
        disk = self.disk(machine)
        var_disk.make(disk, machine.node.disk_gib)
        machine.cgroups = cgroups.plan(f"kubermesh-{self.cluster.name}-{machine.number}-{os.getpid()}")
        self.cluster.save()
        cgroups.make(machine.cgroups)
        holder = self.start_forward(machine)
        self.cables.connect(machine, holder)
        uuid = machine_uuid(self.cluster.name, machine)
        served = self.cluster.folder / SERVED
        argv = nspawn_argv(
            machine.name, uuid, root, folder, served, holder.pid, credentials, legacy=not cgroups.is_unified()
        )
        argv = var_disk.mounted(disk, folder / "var", argv, failing="errors" in machine.disk_faults)
        spec = Spec(argv=argv, cgroups=machine.cgroups, private_mounts=True, tmpfs=["/run/systemd"])
        environment = ENVIRONMENT | ({} if cgroups.is_unified() else LEGACY_ENVIRONMENT)
        Path("/run/systemd").mkdir(exist_ok=True)
        nspawn = start(spec, self.console(machine), self.cluster.noter("nspawn", machine), env=environment)
        init = process.first_child(nspawn.pid, 20)
        if init is None:
            words = read_lines(self.console(machine))
            raise UserError(f"{machine.name}: systemd-nspawn ended: {words[-1] if words else 'without a word'}")
        self.cluster.noter("init", machine)(init)

    def start_forward(self, machine: Machine) -> Process:
        """Start the process that holds the machine's network namespace and carries its APIs' ports to the host."""
        with listen(machine.api_port) as api, listen(machine.node_port) as node:
            machine.api_port, machine.node_port = api.getsockname()[1], node.getsockname()[1]
            descriptors = [api.fileno(), node.fileno()]
            ports = [descriptors[0], API_PORT, descriptors[1], NODE_PORT]
            argv = [sys.executable, "-P", "-m", "kmcluster.forward", *map(str, ports)]
            log = self.cluster.machine_folder(machine) / "forward.log"
            note = self.cluster.noter("forward", machine)
            holder = start(Spec(argv=argv, new_network=True), log, note, pass_fds=descriptors)
        process.wait_own_network(holder, 60, log)
        return holder

    def apply_cables(self, cables: Sequence[Cable]) -> None:
        """Set links up and down and load rules, in the cables' namespace."""
        self.cables.apply(cables)

    def power_off(self, machine: Machine, timeout_s: float) -> None:
        """Ask the container's systemd to power off."""
        if self.power(machine) == "frozen":
            self.thaw(machine)
        init, nspawn = machine.processes.get("init"), machine.processes.get("nspawn")
        if init and nspawn and process.send(init, POWEROFF_SIGNAL) and not process.wait_end(nspawn, timeout_s):
            raise UserError(
                f"{machine.name} is still on after {timeout_s:g} s", "`cluster power NODE cut` does not ask"
            )
        self.cleanup(machine)

    def power_cut(self, machine: Machine) -> None:
        """Kill process 1: the kernel kills all others of the PID namespace with it.

        The disk first: the end of the pods' overlays would give it what it has not yet. Nobody hears from those that see it.
        """
        if self.power(machine) != "off":
            self.cables.disconnect(machine)
            var_disk.cut_off(Path(f"/proc/{machine.processes['init'].pid}/root/var"), self.disk(machine))
        self.cleanup(machine)

    def reset(self, machine: Machine) -> None:
        """Cut and on: a container has no firmware in between."""
        self.power_cut(machine)
        self.power_on(machine)

    def freeze(self, machine: Machine) -> None:
        """Stop all of the machine's processes by its cgroup."""
        if self.power(machine) == "off":
            raise UserError(f"{machine.name} is off")
        cgroups.freeze(machine.cgroups, True)

    def thaw(self, machine: Machine) -> None:
        """Continue."""
        cgroups.freeze(machine.cgroups, False)

    def power(self, machine: Machine) -> str:
        """On means that the container's process 1 runs."""
        init = machine.processes.get("init")
        if init is None or not process.is_running(init):
            return "off"
        return "frozen" if cgroups.is_frozen(machine.cgroups) else "on"

    def disk(self, machine: Machine) -> Path:
        """The file behind the machine's /var."""
        return self.cluster.machine_folder(machine) / var_disk.FILE

    def console(self, machine: Machine) -> Path:
        """The container's /dev/console, and before it nspawn's own words."""
        return self.cluster.machine_folder(machine) / "console.log"

    def init(self, machine: Machine) -> Process:
        """The container's process 1; raises UserError when the machine is not on."""
        state = self.power(machine)
        if state != "on":
            raise UserError(
                f"{machine.name} is {state}",
                f"`kmbuild cluster power {machine.name} {'on' if state == 'off' else 'thaw'}`",
            )
        return machine.processes["init"]

    def execute(self, machine: Machine, argv: Sequence[str], stdin: bytes = b"", timeout_s: float = LONG_S) -> Result:
        """Run a command in the container's namespaces."""
        done = run.run(enter_argv(self.init(machine).pid, argv), input=stdin, check=False, timeout_s=timeout_s)
        return Result(done.returncode, done.stdout, done.stderr)

    def execute_on_disk(
        self, machine: Machine, argv: Sequence[str], stdin: bytes = b"", timeout_s: float = LONG_S
    ) -> Result:
        """Run it in the root tree, with the disk mounted in a mount namespace that ends with the command."""
        disk = self.disk(machine)
        if not disk.exists():
            raise UserError(f"{machine.name} has no disk yet", "it is made at the first power on")
        root = root_tree(self.cluster.image, self.cluster.roothash)
        var_disk.wait_free(disk)
        inside = ["chroot", str(root), *GUEST_ENVIRONMENT, *argv]
        done = run.run(var_disk.opened(disk, root, inside), input=stdin, check=False, timeout_s=timeout_s)
        return Result(done.returncode, done.stdout, done.stderr)

    def wipe_disk(self, machine: Machine) -> None:
        """Remove the file: the next power on makes a new one."""
        self.disk(machine).unlink(missing_ok=True)

    def fail_disk(self, machine: Machine, failing: bool) -> None:
        """Do to the file system what ext4 does to itself when a write fails; there is no way back while it is mounted."""
        if failing and "errors" not in machine.disk_faults and self.power(machine) != "off":
            result = self.execute(machine, ["mount", "-o", "remount,abort", "/var"])
            if result.code != 0:
                raise UserError(f"{machine.name}: {result.stderr.strip() or 'no abort of /var'}")

    def plug_stick(self, machine: Machine, plugged: bool) -> None:
        """A container boots from no stick."""
        raise UserError(f"{machine.name} is a container and has no USB port", "use a cluster of --driver qemu")

    def attach(self, machine: Machine, argv: Sequence[str]) -> int:
        """Become the command."""
        run.replace_self(enter_argv(self.init(machine).pid, argv))
        return 0

    def read_status(self, machine: Machine) -> dict[str, Any] | None:
        """Read the file through the container's root."""
        if self.power(machine) != "on":
            return None
        path = Path(f"/proc/{machine.processes['init'].pid}/root/{STATUS}")
        try:
            return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        except (OSError, msgspec.MsgspecError):
            return None

    def cleanup(self, machine: Machine) -> None:
        """Take the cables out, kill the container, end the forwarder, remove the cgroups.

        The cables first: neighbours lose the carrier at once, as with real power, and not when the kernel comes to it.
        """
        self.cables.disconnect(machine)
        for role in ("init", "nspawn", "forward"):
            if role in machine.processes:
                process.send(machine.processes[role], signal.SIGKILL)
        if machine.cgroups:
            cgroups.freeze(machine.cgroups, False)
        for started in machine.processes.values():
            process.end(started)
        cgroups.remove(machine.cgroups)
        var_disk.wait_free(self.disk(machine))
        machine.processes, machine.cgroups = {}, []
        self.cluster.save()

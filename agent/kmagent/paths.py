"""Where the agent reads and writes. Functions get a `Paths`, so that tests can give them another place."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Paths:
    """The agent's folders: `run` is empty after a reboot, `state` is what a node remembers."""

    run: Path = Path("/run/kubermesh")
    state: Path = Path("/var/lib/kubermesh")
    templates: Path = Path("/usr/share/kubermesh/node")
    manifests: Path = Path("/run/kubernetes/manifests")
    versions: Path = Path("/usr/lib/kubermesh/versions.json")
    containerd_seed: Path = Path("/usr/lib/kubermesh/containerd")
    containerd: Path = Path("/var/lib/containerd")
    audit: Path = Path("/var/log/kubernetes/audit")

    @property
    def pki(self) -> Path:
        """Leaf certificates, one folder per component."""
        return self.run / "pki"

    @property
    def config(self) -> Path:
        """Configuration files, one folder per component."""
        return self.run / "config"

    @property
    def staged(self) -> Path:
        """Rendered static pods, before their turn comes."""
        return self.run / "manifests"

    @property
    def cold_start(self) -> Path:
        """There when no other node's etcd served as this one's was started."""
        return self.run / "cold-start"

    @property
    def facts(self) -> Path:
        """What `prepare` found out about this node."""
        return self.run / "node.json"

    @property
    def addons(self) -> Path:
        """The objects to apply, as a JSON list."""
        return self.run / "addons.json"

    @property
    def status(self) -> Path:
        """What the agent shows."""
        return self.run / "status.json"

    @property
    def var_device(self) -> Path:
        """The device that is mounted at `/var`, a symbolic link."""
        return self.run / "var"

    @property
    def disk(self) -> Path:
        """What became of the stick that this machine was booted from, JSON; not there when there was none."""
        return self.run / "disk.json"

    @property
    def booted(self) -> Path:
        """What a machine that was booted from the network has of it; not there otherwise."""
        return Path("/run/kubermesh-boot")

    @property
    def started_own(self) -> Path:
        """Says that the machine was started anew from this disk, as its neighbour has another system."""
        return self.state / "started-own"

    @property
    def provision(self) -> Path:
        """Configuration of what serves machines without a system, by port."""
        return self.run / "provision"

    @property
    def provided(self) -> Path:
        """What `provide` last heard from each port, JSON."""
        return self.run / "provided.json"

    @property
    def clock(self) -> Path:
        """What is known of the machine's clock in this boot."""
        return self.run / "clock.json"

    @property
    def registry(self) -> Path:
        """The signed registry of nodes, as this node knows it."""
        return self.state / "nodes.json"

    @property
    def order(self) -> Path:
        """The newest order to begin the cluster anew, signed; not there as long as there was none."""
        return self.state / "order.json"

    @property
    def order_taken(self) -> Path:
        """The epoch of the order that was given in this boot."""
        return self.run / "order-taken"

    @property
    def agreed(self) -> Path:
        """When this node last heard a majority of all, in seconds since the machine started; with witnesses only."""
        return self.run / "agreed"

    @property
    def withdrawn(self) -> Path:
        """The newest order that was not carried out and never will be."""
        return self.state / "order-withdrawn.json"

    def begun(self, epoch: int) -> Path:
        """What an epoch begins from: while it is there, the node may have gone over to that epoch in part."""
        return self.state / f"begin-{epoch}.db"

    @property
    def settings(self) -> Path:
        """Settings of the control plane on this node, and which of them are on trial."""
        return self.state / "settings.json"

    @property
    def etcd(self) -> Path:
        """etcd's data."""
        return self.state / "etcd"

    @property
    def etcd_database(self) -> Path:
        """The file in etcd's data that bbolt holds a lock on while an etcd has it open."""
        return self.etcd / "member/snap/db"

    @property
    def snapshots(self) -> Path:
        """Sealed snapshots of etcd, this node's own and those that it keeps for others."""
        return self.state / "snapshots"

    @property
    def mesh_keys(self) -> Path:
        """The mesh keys (hex) by generation, JSON."""
        return self.state / "mesh-keys.json"

    @property
    def babel_config(self) -> Path:
        """babeld's configuration."""
        return self.run / "babeld.conf"

    @property
    def babel_socket(self) -> Path:
        """babeld's local socket."""
        return self.run / "babeld.sock"

    @property
    def kubelet_start(self) -> Path:
        """Lets kubelet start: it has what it needs, and somebody to talk to."""
        return self.run / "kubelet/start"

    @property
    def hurried(self) -> Path:
        """Says that kubelet was started anew in this boot."""
        return self.run / "kubelet-hurried"

    @property
    def credentials(self) -> Path | None:
        """The credentials that systemd passed to this process, if any."""
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        return Path(folder) if folder else None


def in_container() -> bool:
    """Tell whether this machine is a container (https://systemd.io/CONTAINER_INTERFACE)."""
    return Path("/run/host/container-manager").exists() or Path("/run/systemd/container").exists()

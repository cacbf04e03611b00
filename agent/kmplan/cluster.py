"""The cluster file: what a user says about a cluster."""

from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Annotated, Literal
from uuid import UUID

import msgspec
from msgspec import Meta

from kmplan import document
from kmplan.addresses import AddressPlan
from kmplan.errors import UserError
from kmplan.voters import AUTO

CLUSTER_FILE = "cluster.yaml"
NAME_PATTERN = r"^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$"
SSH_KEY_TYPES = ("ssh-ed25519", "ssh-rsa", "ecdsa-sha2-", "sk-ssh-ed25519@", "sk-ecdsa-sha2-")


class Admission(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Which machines become nodes."""

    policy: Annotated[
        Literal["approve", "allowlist", "auto"],
        Meta(
            description="Who waits for `kmbuild nodes approve`. `approve`: all; `allowlist`: all but the listed; `auto`: none."
        ),
    ] = "approve"
    allowlist: Annotated[list[str], Meta(description="SMBIOS UUIDs of machines that are admitted at once.")] = []

    def __post_init__(self) -> None:
        """Refuse what is no UUID."""
        for index, text in enumerate(self.allowlist):
            try:
                canonical = str(UUID(text)) == text.lower()
            except ValueError:
                canonical = False
            if not canonical:
                raise ValueError(f"allowlist[{index}]: expected a UUID as firmware shows it, got `{text}`")


class Gateway(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A port that leads to the outside world. Without addresses it is configured by DHCP and router advertisements."""

    node: Annotated[str, Meta(description="The node's name, or its machine's SMBIOS UUID.")]
    port: Annotated[str, Meta(description="The port's name on that machine.")]
    addresses: Annotated[list[str], Meta(description="The port's own addresses with prefix length.")] = []
    routers: Annotated[list[str], Meta(description="Addresses of the routers out there, one per family.")] = []

    def __post_init__(self) -> None:
        """Refuse what is no address."""
        for index, text in enumerate(self.addresses):
            try:
                ip_interface(text)
            except ValueError:
                raise ValueError(f"addresses[{index}]: expected an address with prefix length, got `{text}`") from None
        for index, text in enumerate(self.routers):
            try:
                ip_address(text)
            except ValueError:
                raise ValueError(f"routers[{index}]: expected an IP address, got `{text}`") from None


class Egress(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The ways out of the cluster."""

    gateways: Annotated[list[Gateway], Meta(description="Ports that lead to the outside world.")] = []
    discover: Annotated[
        bool, Meta(description="Also take a port for a gateway when a router advertises a default route there.")
    ] = False


class DiskRule(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What a disk has to be; what is left out fits any. Patterns are those of a shell: `*`, `?`, `[…]`."""

    min_gb: Annotated[float, Meta(ge=0, description="Smallest size, in 10^9 bytes.")] = 0
    max_gb: Annotated[float, Meta(ge=0, description="Largest size, in 10^9 bytes; 0: any.")] = 0
    bus: Annotated[str, Meta(description="What it is connected by: `nvme`, `sata`, `sas`, `virtio`, …")] = ""
    model: Annotated[str, Meta(description="Pattern of its model's name.")] = "*"
    id: Annotated[str, Meta(description="Pattern of its serial number or World Wide Name.")] = "*"

    def __post_init__(self) -> None:
        """Refuse what fits no disk."""
        if 0 < self.max_gb < self.min_gb:
            raise ValueError(f"max_gb: {self.max_gb:g} is less than min_gb, {self.min_gb:g}")


class Install(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Where a machine that boots from a stick lives."""

    to: Annotated[
        Literal["disk", "stick", "ram"],
        Meta(
            description="`disk`: on a disk of its own, the stick can be pulled out; `stick`: on the stick; `ram`: in memory, "
            "it forgets all when it is switched off."
        ),
    ] = "disk"
    disks: Annotated[
        list[DiskRule], Meta(description="Which disks may be taken, the first rule's before the next one's. None: all.")
    ] = []
    wipe: Annotated[bool, Meta(description="Whether a disk may be taken that has other data.")] = False
    wipe_clusters: Annotated[
        bool, Meta(description="Whether a disk may be taken that has a node of another cluster.")
    ] = False


class ClusterFile(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A Kubermesh cluster."""

    version: Annotated[Literal[1], Meta(description="Version of this file's format.")]
    name: Annotated[
        str,
        Meta(
            pattern=NAME_PATTERN, description="Name of the cluster: lower-case letters, digits and dashes, at most 40."
        ),
    ]
    prefix: Annotated[
        str, Meta(description="The cluster's own IPv6 prefix, a /48 in fd00::/8. It cannot be changed later.")
    ]
    voters: Annotated[
        Literal[1, 3, 5, "auto"],
        Meta(description="How many nodes vote in etcd, once there are that many. `auto`: 3, and 5 from nine nodes on."),
    ] = "auto"
    voter_grace_s: Annotated[
        float, Meta(ge=10, description="Seconds that a voter may be away before another node takes its place for good.")
    ] = 600.0
    auto_recover: Annotated[
        Literal["off", "witness"],
        Meta(
            description="Who begins the cluster anew when most voters are lost. `off`: you, with `kmbuild recover`; `witness`: "
            "the best voter that is left, when a majority of all nodes is with it."
        ),
    ] = "off"
    auto_recover_after_s: Annotated[
        float,
        Meta(
            ge=60,
            description="Seconds that a voter waits for the others with `auto_recover: witness`. Voters that reach no "
            "majority of all nodes for a quarter of it end their etcd.",
        ),
    ] = 1200.0
    ssh_authorized_keys: Annotated[
        list[str], Meta(description="Public keys that may log in as root on every node. Without one there is no login.")
    ] = []
    dns_upstreams: Annotated[
        list[str], Meta(description="Addresses of name servers that answer for names outside the cluster.")
    ] = []
    admission: Annotated[Admission, Meta(description="Which machines become nodes.")] = Admission()
    install: Annotated[Install, Meta(description="Where a machine that boots from a stick lives.")] = Install()
    provision: Annotated[
        bool, Meta(description="Whether nodes offer a system to machines on their cables that have none.")
    ] = True
    egress: Annotated[Egress, Meta(description="Ways out of the cluster.")] = Egress()

    def __post_init__(self) -> None:
        """Check what types cannot say; raises ValueError, which msgspec shows with its place."""
        try:
            AddressPlan.parse(self.prefix)
        except ValueError:
            raise ValueError(f"prefix: expected an IPv6 /48 in fd00::/8, got `{self.prefix}`") from None
        for index, key in enumerate(self.ssh_authorized_keys):
            if not key.startswith(SSH_KEY_TYPES) or len(key.split()) < 2 or "\n" in key:
                raise ValueError(f"ssh_authorized_keys[{index}]: expected one public key as in id_ed25519.pub")
        for index, address in enumerate(self.dns_upstreams):
            try:
                ip_address(address)
            except ValueError:
                raise ValueError(f"dns_upstreams[{index}]: expected an IP address, got `{address}`") from None

    @property
    def plan(self) -> AddressPlan:
        """The cluster's addresses."""
        return AddressPlan.parse(self.prefix)

    @property
    def wanted_voters(self) -> int:
        """How many nodes shall vote, AUTO for as many as fit the cluster."""
        return AUTO if self.voters == "auto" else self.voters


def read_cluster(directory: Path) -> ClusterFile:
    """Read the cluster file of a cluster directory; UserError in one line when it is not one."""
    path = directory / CLUSTER_FILE
    try:
        found = path.is_file()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    if not found:
        raise UserError(
            f"{directory}: not a cluster directory (no {CLUSTER_FILE})", "make one with `kmbuild init NAME`"
        )
    return document.read(path, ClusterFile)

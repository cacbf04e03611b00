"""What the daemon knows about its node: plain data, written by `prepare`, read without a schema library."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kmplan.files import write_if_changed


@dataclass(frozen=True)
class Facts:
    """A node's name, role and addresses, as text; `probe_scale` stretches every poll on slow machines.

    `cluster_id` is the SHA-256 (hex) of the cluster authority's certificate, `epoch` counts how often the cluster was begun
    anew, `began` says that it did here. `fingerprint` and `certificate` are SHA-256 (hex) of the node's public key and identity
    certificate; `voters` is how many the cluster wants, 0 for as many as fit, `voter_grace_s` how long one may be away,
    `auto_recover_after_s` after how long without most of them a voter begins anew by itself, 0 for never; `admission` and
    `allowlist` are its policy, `gateways` this node's ports that lead outside; `provision` says whether machines without a
    system are offered one.
    """

    cluster: str
    name: str
    number: int
    role: str
    prefix: str
    address: str
    address4: str
    pods: str
    pods4: str
    services: str
    services4: str
    api: str
    join: str
    dns: str
    dns4: str
    image: str
    cluster_id: str = ""
    epoch: int = 1
    began: bool = False
    probe_scale: float = 1.0
    ssh: bool = False
    fingerprint: str = ""
    certificate: str = ""
    uuid: str = ""
    voters: int = 3
    voter_grace_s: float = 600.0
    auto_recover_after_s: float = 0.0
    admission: str = "approve"
    allowlist: tuple[str, ...] = ()
    ignored_ports: tuple[str, ...] = ()
    gateways: tuple[dict[str, Any], ...] = ()
    discover_gateways: bool = False
    provision: bool = True

    @property
    def controls(self) -> bool:
        """Whether this node runs a part of the control plane."""
        return self.role in ("voter", "standby")

    @property
    def addresses(self) -> list[str]:
        """The node's own addresses."""
        return [self.address, self.address4]


def load(path: Path) -> Facts:
    """Read the facts that `prepare` wrote."""
    data: dict[str, Any] = json.loads(path.read_text())
    data |= {key: tuple(value) for key, value in data.items() if isinstance(value, list)}
    return Facts(**data)


def save(path: Path, facts: Facts) -> bool:
    """Write the facts; tells whether they changed."""
    return write_if_changed(path, json.dumps(dataclasses.asdict(facts), indent=1) + "\n")

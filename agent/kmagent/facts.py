"""What the daemon knows about its node: plain data, written by `prepare`, read without a schema library."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kmplan.files import write_if_changed


@dataclass(frozen=True)
class Facts:
    """A node's name, role and addresses, as text; `probe_scale` stretches every poll on slow machines."""

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
    probe_scale: float = 1.0
    ssh: bool = False

    @property
    def addresses(self) -> list[str]:
        """The node's own addresses."""
        return [self.address, self.address4]


def load(path: Path) -> Facts:
    """Read the facts that `prepare` wrote."""
    data: dict[str, Any] = json.loads(path.read_text())
    return Facts(**data)


def save(path: Path, facts: Facts) -> bool:
    """Write the facts; tells whether they changed."""
    return write_if_changed(path, json.dumps(dataclasses.asdict(facts), indent=1) + "\n")

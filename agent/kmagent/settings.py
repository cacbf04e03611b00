"""Settings of the control plane that admins change: arguments of its components (docs/settings.md).

They are edited in the ConfigMap `kube-system/kubermesh-control-plane`, one key for each: `kube-apiserver.event-ttl: 2h`.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kmagent.components import CONTROL_PLANE
from kmplan.files import write

KEY = re.compile(r"([a-z-]+)\.([a-z0-9][a-z0-9-]*)\Z")
FLAG = re.compile(r"^\s*- ['\"]?--([a-z0-9-]+)", re.MULTILINE)
VALUE = re.compile(r"[\x20-\x7e]{0,1000}\Z")
# Of etcd these alone: others may have it begin another cluster, or keep its data elsewhere.
ETCD = frozenset({
    "auto-compaction-mode", "auto-compaction-retention", "backend-batch-interval", "backend-batch-limit", "election-timeout",
    "heartbeat-interval", "log-level", "max-request-bytes", "max-txn-ops", "quota-backend-bytes", "snapshot-count",
    "warning-apply-duration",
})  # fmt: skip

# By component and name, without dashes.
Arguments = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Settings:
    """Arguments that are set as a whole; `id` tells them from others, and is empty for none at all."""

    arguments: Arguments = field(default_factory=dict)

    @property
    def id(self) -> str:
        """What they are called."""
        text = json.dumps(self.arguments, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16] if self.arguments else ""


@dataclass(frozen=True)
class Report:
    """What a node says: `id` is what its components run with, `refused` what they did not become healthy with, and `why`."""

    id: str = ""
    refused: str = ""
    why: str = ""


@dataclass(frozen=True)
class Plan:
    """Which settings these nodes shall have, and which all had last; `wanted` is the id of those that people ask for."""

    target: Settings = Settings()
    nodes: tuple[int, ...] = ()
    good: Settings = Settings()
    wanted: str = ""


@dataclass(frozen=True)
class Kept:
    """What a node remembers, also when it is cut off while it tries something: `trying` is on trial, `good` is known to work."""

    good: Settings = Settings()
    trying: Settings | None = None
    refused: str = ""
    why: str = ""

    @property
    def current(self) -> Settings:
        """What the components are given."""
        return self.good if self.trying is None else self.trying

    @property
    def report(self) -> Report:
        """What the others are told."""
        return Report(self.good.id, self.refused, self.why)


def parse(data: Mapping[str, str], own: Mapping[str, frozenset[str]]) -> Settings:
    """Read a ConfigMap's data. `own` are the arguments that Kubermesh itself sets: ValueError for one of them, and in words."""
    arguments: dict[str, dict[str, str]] = {}
    for key, value in sorted(data.items()):
        match = KEY.match(key)
        if match is None or match[1] not in CONTROL_PLANE:
            raise ValueError(f"{key}: expected COMPONENT.ARGUMENT, of {', '.join(CONTROL_PLANE)}")
        component, name = match.groups()
        if name in own.get(component, ()):
            raise ValueError(f"{key}: Kubermesh sets this itself")
        if component == "etcd" and name not in ETCD:
            raise ValueError(f"{key}: of etcd there may be {', '.join(sorted(ETCD))}")
        if not isinstance(value, str) or not VALUE.match(value):
            raise ValueError(f"{key}: expected one line of ASCII, of 1000 characters at most")
        arguments.setdefault(component, {})[name] = value
    return Settings(arguments)


def own_arguments(staged: Path, current: Settings) -> dict[str, frozenset[str]]:
    """Return what the rendered manifests set, by component, but for the current settings."""
    found = {}
    for component in CONTROL_PLANE:
        names = frozenset(FLAG.findall((staged / f"{component}.yaml").read_text()))
        found[component] = names - set(current.arguments.get(component, {}))
    return found


def plan_to_text(plan: Plan) -> str:
    """Return a plan as it is kept."""
    return json.dumps(asdict(plan))


def plan_from_text(text: str) -> Plan:
    """Read it; the plan of a cluster that never had one is empty."""
    data = json.loads(text or "{}")
    if not data:
        return Plan()
    target, good = (Settings(data[name]["arguments"]) for name in ("target", "good"))
    return Plan(target, tuple(data["nodes"]), good, data.get("wanted", ""))


def load(path: Path) -> Kept:
    """Read what a node remembers; nothing when there is nothing of use."""
    try:
        data: dict[str, Any] = json.loads(path.read_text())
        trying = data["trying"]
        return Kept(
            Settings(data["good"]["arguments"]),
            Settings(trying["arguments"]) if trying else None,
            data["refused"],
            data["why"],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return Kept()


def save(path: Path, kept: Kept) -> None:
    """Write it down."""
    write(path, json.dumps(asdict(kept), indent=1) + "\n", 0o600)

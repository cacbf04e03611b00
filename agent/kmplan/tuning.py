"""What a test bench may override on a node, and how it is merged."""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

CERTIFICATE_DAYS = 90
COMPONENTS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet")


class Tuning(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The credential `kubermesh.tuning`: timers for slow machines, and what a container lacks."""

    kubelet: Annotated[dict[str, Any], Meta(description="Merged deep into the KubeletConfiguration.")] = {}
    containerd: Annotated[str, Meta(description="TOML that containerd imports last.")] = ""
    arguments: Annotated[
        dict[str, dict[str, str]], Meta(description="Command-line arguments by component, without dashes.")
    ] = {}
    environment: Annotated[
        dict[str, str], Meta(description="Environment of every component, containerd and kubelet.")
    ] = {}
    probe_scale: Annotated[
        float, Meta(ge=0.1, le=100, description="Multiplies periods and time-outs of probes and polls.")
    ] = 1.0
    ignored_ports: Annotated[
        list[str], Meta(description="Hardware addresses of ports that belong to the bench, not to the mesh.")
    ] = []
    certificate_days: Annotated[
        float, Meta(gt=0, le=CERTIFICATE_DAYS, description="How long leaf certificates are valid, in days.")
    ] = CERTIFICATE_DAYS

    def __post_init__(self) -> None:
        """Refuse components that do not exist."""
        for name in self.arguments:
            if name not in COMPONENTS:
                raise ValueError(f"arguments: unknown component `{name}`, expected one of {', '.join(COMPONENTS)}")


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Merge two trees of dicts, deep; `over` wins, lists are replaced as a whole. Neither is changed."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def merge_arguments(command: list[str], over: Mapping[str, str]) -> list[str]:
    """Put `--name=value` arguments into a command line: a known one is replaced in its place, a new one appended."""
    left = dict(over)
    merged = []
    for word in command:
        name = word.removeprefix("--").partition("=")[0]
        merged.append(f"--{name}={left.pop(name)}" if word.startswith("--") and name in left else word)
    return merged + [f"--{name}={value}" for name, value in left.items()]

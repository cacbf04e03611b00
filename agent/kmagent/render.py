"""Files rendered from the templates in the image: configuration, static pods, add-ons."""

import hashlib
import ipaddress
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import yaml

from kmagent.components import CONTROL_PLANE, UIDS
from kmagent.facts import Facts
from kmagent.settings import Arguments
from kmplan.cluster import ClusterFile
from kmplan.tuning import Tuning, merge, merge_arguments

ADDONS = ("rbac", "meshnode", "kube-proxy", "coredns")
API_CONFIGS = ("authentication", "authorization", "encryption", "audit", "admission")

# libyaml is several times faster; its absence changes nothing but time.
Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


@dataclass(frozen=True)
class Inputs:
    """Everything that rendering depends on; `secrets` maps names of the cluster's secret files to their content.
    `settings` are the components' arguments that admins set.

    `initial_cluster` is what etcd is told when it joins others; empty on the node that began the cluster.
    """

    facts: Facts
    cluster: ClusterFile
    tuning: Tuning
    versions: dict[str, str]
    secrets: dict[str, str]
    settings: Arguments = field(default_factory=dict)
    initial_cluster: str = ""
    run: Path = Path("/run/kubermesh")


@dataclass(frozen=True)
class File:
    """A rendered file, relative to /run/kubermesh."""

    path: str
    content: str
    mode: int = 0o644
    uid: int = 0


def render_all(templates: Path, inputs: Inputs) -> list[File]:
    """Render every file of a node; a worker's are a few of a control-plane node's."""
    environment = _environment(templates, inputs)
    text = environment.get_template("kubeconfig.yaml.j2").render(
        component="kubelet", server=f"https://[{inputs.facts.api}]:6443"
    )
    common = [File("kubelet/kubeconfig", text, 0o600), *_node_files(environment, inputs)]
    if not inputs.facts.controls:
        return common
    configs = _configs(environment, inputs)
    environment.globals["restart_digest"] = _restart_digests(configs, inputs.secrets)
    return [
        *common,
        *configs,
        *(_manifest(environment, component, inputs) for component in CONTROL_PLANE),
        _addons(environment),
    ]


def _environment(templates: Path, inputs: Inputs) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - configuration files, not HTML
    )
    environment.filters["scaled"] = _scaler(inputs.tuning.probe_scale)
    environment.filters["digest"] = _digest
    environment.filters["nameserver"] = _nameserver
    environment.globals.update(
        node=inputs.facts,
        cluster=inputs.cluster,
        tuning=inputs.tuning,
        versions=inputs.versions,
        uid=UIDS,
        run=str(inputs.run),
        pki=str(inputs.run / "pki"),
        config=str(inputs.run / "config"),
        encryption_key=inputs.secrets.get("encryption.key", "").strip(),
        initial_cluster=inputs.initial_cluster,
    )
    return environment


def _scaler(scale: float) -> Callable[[float], int]:
    return lambda seconds: max(1, round(seconds * scale))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _nameserver(address: str) -> str:
    # CoreDNS takes IPv6 addresses bare only without a port; brackets always work.
    return f"[{address}]" if ipaddress.ip_address(address).version == 6 else address


def _configs(environment: jinja2.Environment, inputs: Inputs) -> list[File]:
    uid = UIDS["kube-apiserver"]
    files = [
        File(
            f"config/kube-apiserver/{name}.yaml",
            environment.get_template(f"kube-apiserver/{name}.yaml.j2").render(),
            0o400,
            uid,
        )
        for name in API_CONFIGS
    ]
    kubeconfig = environment.get_template("kubeconfig.yaml.j2")
    for component in ("kube-controller-manager", "kube-scheduler"):
        text = kubeconfig.render(component=component, server="https://[::1]:6443")
        files.append(File(f"config/{component}/kubeconfig", text, 0o400, UIDS[component]))
    return files


def _restart_digests(configs: list[File], secrets: dict[str, str]) -> dict[str, str]:
    # What a component reads only when it starts: a change of it must change its manifest. Certificates are read again.
    signing = secrets["pki/service-account.key"]
    own = {name: "".join(file.content for file in configs if file.path.startswith(f"config/{name}/")) for name in UIDS}
    return {name: _digest(own[name] + (signing if name.startswith("kube-") else "")) for name in CONTROL_PLANE}


def _node_files(environment: jinja2.Environment, inputs: Inputs) -> list[File]:
    tuning = inputs.tuning
    kubelet = yaml.load(environment.get_template("kubelet/config.yaml.j2").render(), Loader)  # noqa: S506
    files = [
        File("kubelet/config.yaml", _dump(merge(kubelet, tuning.kubelet))),
        File("kubelet/environment", _kubelet_environment(inputs)),
        File("environment", "".join(f'{name}="{value}"\n' for name, value in sorted(tuning.environment.items()))),
        File("containerd/config.toml", environment.get_template("containerd/config.toml.j2").render()),
        File("cni/10-kubermesh.conflist", environment.get_template("cni/10-kubermesh.conflist.j2").render()),
        File("resolv.conf", "".join(f"nameserver {address}\n" for address in inputs.cluster.dns_upstreams)),
    ]
    return [*files, File("containerd/tuning.toml", tuning.containerd)] if tuning.containerd else files


def _kubelet_environment(inputs: Inputs) -> str:
    facts, scaled = inputs.facts, _scaler(inputs.tuning.probe_scale)
    arguments = [
        f"--config={inputs.run}/kubelet/config.yaml",
        f"--kubeconfig={inputs.run}/kubelet/kubeconfig",
        f"--hostname-override={facts.name}",
        f"--node-ip={facts.address},{facts.address4}",
    ]
    words = " ".join(merge_arguments(arguments, inputs.tuning.arguments.get("kubelet", {})))
    # A connection to an API server that is gone without a word is given up after these, not after 30 and 15 s.
    idle = f"HTTP2_READ_IDLE_TIMEOUT_SECONDS={scaled(10)}\nHTTP2_PING_TIMEOUT_SECONDS={scaled(5)}\n"
    return f'KUBELET_ARGUMENTS="{words}"\n{idle}'


def _manifest(environment: jinja2.Environment, component: str, inputs: Inputs) -> File:
    text = environment.get_template(f"manifests/{component}.yaml.j2").render()
    pod = yaml.load(text, Loader)  # noqa: S506
    container = pod["spec"]["containers"][0]
    for arguments in (inputs.settings, inputs.tuning.arguments):
        container["command"] = merge_arguments(container["command"], arguments.get(component, {}))
    extra = [{"name": name, "value": value} for name, value in sorted(inputs.tuning.environment.items())]
    if extra:
        container["env"] = container.get("env", []) + extra
    return File(f"manifests/{component}.yaml", _dump(pod), 0o600)


def _addons(environment: jinja2.Environment) -> File:
    objects: list[Any] = []
    for name in ADDONS:
        text = environment.get_template(f"addons/{name}.yaml.j2").render()
        objects.extend(yaml.load_all(text, Loader))
    return File("addons.json", json.dumps(objects, indent=1) + "\n")


def _dump(data: object) -> str:
    return str(yaml.dump(data, Dumper=Dumper, sort_keys=False, default_flow_style=False))

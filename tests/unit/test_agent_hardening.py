"""What is rendered, checked against the CIS Kubernetes benchmark; ids are those of cis-1.12."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from kmagent import prepare, render
from kmagent.components import CONTROL_PLANE, UIDS
from kmagent.identity import Identity, Role
from kmplan.cluster import ClusterFile
from kmplan.secret_files import SECRET_FILES
from kmplan.tuning import Tuning

TEMPLATES = Path(__file__).parents[2] / "overlays/node"
VERSIONS = {"image": "0.1.0", "kubernetes": "1.37.2", "etcd": "3.6.16", "coredns": "1.15.0"}


class Rendered:
    """The files of a node, with short ways to what the checks ask for."""

    def __init__(self) -> None:
        cluster = ClusterFile(version=1, name="one", prefix="fd12:3456:789a::/48", dns_upstreams=["9.9.9.9"])
        identity = Identity(cluster=cluster, role=Role(cluster_id="x", number=1, name="one-1"))
        facts = prepare.make_facts(identity, Tuning(), "0.1.0")
        secrets = dict.fromkeys(SECRET_FILES, "secret")
        inputs = render.Inputs(facts, cluster, Tuning(), VERSIONS, secrets)
        self.files = {file.path: file for file in render.render_all(TEMPLATES, inputs)}
        self.addons: list[Any] = json.loads(self.files["addons.json"].content)
        self.kubelet = self.yaml("kubelet/config.yaml")

    def yaml(self, path: str) -> Any:
        return yaml.safe_load(self.files[path].content)

    def arguments(self, component: str) -> dict[str, str]:
        command = self.yaml(f"manifests/{component}.yaml")["spec"]["containers"][0]["command"]
        return dict(word.removeprefix("--").split("=", 1) for word in command[1:])

    def addon(self, kind: str, name: str) -> Any:
        return next(item for item in self.addons if (item["kind"], item["metadata"]["name"]) == (kind, name))


NODE = Rendered()
API = NODE.arguments("kube-apiserver")
KCM = NODE.arguments("kube-controller-manager")
SCHEDULER = NODE.arguments("kube-scheduler")
ETCD = NODE.arguments("etcd")
KUBELET = NODE.kubelet
PROXY = yaml.safe_load(NODE.addon("ConfigMap", "kube-proxy")["data"]["config.yaml"])
ENCRYPTION = NODE.yaml("config/kube-apiserver/encryption.yaml")["resources"][0]
AUTHENTICATION = NODE.yaml("config/kube-apiserver/authentication.yaml")
AUTHORIZATION = NODE.yaml("config/kube-apiserver/authorization.yaml")
ADMISSION = NODE.yaml("config/kube-apiserver/admission.yaml")["plugins"][0]["configuration"]
AUDIT = NODE.yaml("config/kube-apiserver/audit.yaml")

ANONYMOUS = {"enabled": True, "conditions": [{"path": "/livez"}, {"path": "/readyz"}]}
PLUGINS = API["enable-admission-plugins"].split(",")

CHECKS: list[tuple[str, str, Callable[[], bool]]] = [
    ("1.2.1", "anonymous requests see health only", lambda: AUTHENTICATION["anonymous"] == ANONYMOUS),
    ("1.2.1", "the flag would clash with the file", lambda: "anonymous-auth" not in API),
    ("1.2.2", "no tokens in files", lambda: "token-auth-file" not in API),
    ("1.2.4", "kubelet client certificate", lambda: {"kubelet-client-certificate", "kubelet-client-key"} <= {*API}),
    ("1.2.5", "kubelets are verified", lambda: API["kubelet-certificate-authority"].endswith("/cluster-ca.crt")),
    ("1.2.6", "Node, then RBAC", lambda: [part["type"] for part in AUTHORIZATION["authorizers"]] == ["Node", "RBAC"]),
    ("1.2.10", "images are baked in: AlwaysPullImages would break them", lambda: "AlwaysPullImages" not in PLUGINS),
    ("1.2.11", "default plugins are on", lambda: "disable-admission-plugins" not in API),
    ("1.2.14", "NodeRestriction", lambda: "NodeRestriction" in PLUGINS),
    ("1.2.15", "no profiling", lambda: API["profiling"] == "false"),
    ("1.2.16", "audit log", lambda: API["audit-log-path"].startswith("/var/log/")),
    ("1.2.17", "audit log age", lambda: int(API["audit-log-maxage"]) >= 30),
    ("1.2.18", "audit log files", lambda: int(API["audit-log-maxbackup"]) >= 10),
    ("1.2.19", "audit log size", lambda: int(API["audit-log-maxsize"]) >= 100),
    ("1.2.21", "service accounts are looked up", lambda: API["service-account-lookup"] == "true"),
    ("1.2.22", "service account key", lambda: API["service-account-key-file"].endswith("/service-account.pub")),
    ("1.2.23", "etcd client certificate", lambda: {"etcd-certfile", "etcd-keyfile"} <= {*API}),
    ("1.2.24", "serving certificate", lambda: {"tls-cert-file", "tls-private-key-file"} <= {*API}),
    ("1.2.25", "client authority", lambda: "client-ca-file" in API),
    ("1.2.26", "etcd is verified", lambda: API["etcd-cafile"].endswith("/etcd-ca.crt")),
    ("1.2.27", "encryption at rest", lambda: API["encryption-provider-config"].endswith("/encryption.yaml")),
    ("1.2.28", "with secretbox", lambda: next(iter(ENCRYPTION["providers"][0])) == "secretbox"),
    ("1.2.28", "of secrets", lambda: "secrets" in ENCRYPTION["resources"]),
    ("1.2.29", "TLS 1.3", lambda: API["tls-min-version"] == "VersionTLS13"),
    ("1.2.30", "tokens expire", lambda: API["service-account-extend-token-expiration"] == "false"),
    ("1.3.1", "finished pods are collected", lambda: 0 < int(KCM["terminated-pod-gc-threshold"]) <= 12500),
    ("1.3.2", "no profiling", lambda: KCM["profiling"] == "false"),
    ("1.3.3", "one account per controller", lambda: KCM["use-service-account-credentials"] == "true"),
    ("1.3.4", "service account key", lambda: "service-account-private-key-file" in KCM),
    ("1.3.5", "root authority", lambda: "root-ca-file" in KCM),
    ("1.3.7", "on localhost", lambda: KCM["bind-address"] == "127.0.0.1"),
    ("1.4.1", "no profiling", lambda: SCHEDULER["profiling"] == "false"),
    ("1.4.2", "on localhost", lambda: SCHEDULER["bind-address"] == "127.0.0.1"),
    ("2.1", "etcd serving certificate", lambda: {"cert-file", "key-file"} <= {*ETCD}),
    ("2.2", "etcd clients have certificates", lambda: ETCD["client-cert-auth"] == "true"),
    ("2.3", "no self-made certificates", lambda: "auto-tls" not in ETCD),
    ("2.4", "etcd peer certificate", lambda: {"peer-cert-file", "peer-key-file"} <= {*ETCD}),
    ("2.5", "etcd peers have certificates", lambda: ETCD["peer-client-cert-auth"] == "true"),
    ("2.6", "no self-made peer certificates", lambda: "peer-auto-tls" not in ETCD),
    ("2.7", "an authority of etcd's own", lambda: ETCD["trusted-ca-file"].endswith("/etcd-ca.crt")),
    ("3.2.1", "audit policy", lambda: API["audit-policy-file"].endswith("/audit.yaml")),
    ("3.2.2", "everything else is logged", lambda: AUDIT["rules"][-1] == {"level": "Metadata"}),
    ("4.2.1", "no anonymous", lambda: KUBELET["authentication"]["anonymous"]["enabled"] is False),
    ("4.2.2", "the API server decides", lambda: KUBELET["authorization"]["mode"] == "Webhook"),
    ("4.2.3", "client authority", lambda: "clientCAFile" in KUBELET["authentication"]["x509"]),
    ("4.2.4", "no read-only port", lambda: KUBELET["readOnlyPort"] == 0),
    ("4.2.5", "idle streams end", lambda: KUBELET["streamingConnectionIdleTimeout"] not in ("0", "0s")),
    ("4.2.6", "kernel defaults", lambda: KUBELET["protectKernelDefaults"] is True),
    ("4.2.8", "events are limited", lambda: KUBELET.get("eventRecordQPS", 50) > 0),
    ("4.2.9", "serving certificate", lambda: KUBELET["serverTLSBootstrap"] is True),
    ("4.2.10", "certificates are renewed (by the agent)", lambda: KUBELET.get("rotateCertificates") is not False),
    ("4.2.12", "TLS 1.3", lambda: KUBELET["tlsMinVersion"] == "VersionTLS13"),
    ("4.2.13", "pods cannot fork without end", lambda: KUBELET["podPidsLimit"] > 0),
    ("4.2.14", "seccomp", lambda: KUBELET["seccompDefault"] is True),
    ("4.3.1", "kube-proxy's metrics on localhost", lambda: PROXY["metricsBindAddress"].startswith("127.0.0.1:")),
    ("5.2.1", "pods are held to the baseline", lambda: ADMISSION["defaults"]["enforce"] == "baseline"),
    ("5.2.1", "but for the control plane", lambda: ADMISSION["exemptions"] == {"namespaces": ["kube-system"]}),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: f"{check[0]} {check[1]}")
def test_cis(check: tuple[str, str, Callable[[], bool]]) -> None:
    assert check[2]()


def test_ids_1_1_files_with_secrets_are_private() -> None:
    for path, file in NODE.files.items():
        if path.startswith(("manifests/", "config/")) or path.endswith("kubeconfig"):
            assert file.mode in (0o400, 0o600), path


@pytest.mark.parametrize("component", CONTROL_PLANE)
def test_5_2_static_pods_are_confined(component: str) -> None:
    spec = NODE.yaml(f"manifests/{component}.yaml")["spec"]
    assert spec["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": UIDS[component],
        "runAsGroup": UIDS[component],
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["imagePullPolicy"] == "Never"
    for mount in container["volumeMounts"]:
        assert mount["readOnly"] or mount["name"] in ("data", "audit", "tmp"), mount


def test_components_see_only_their_own_keys() -> None:
    for component in CONTROL_PLANE:
        for volume in NODE.yaml(f"manifests/{component}.yaml")["spec"]["volumes"]:
            path = volume.get("hostPath", {}).get("path", "")
            assert "/pki" not in path or path.endswith(f"/pki/{component}")
    assert len({UIDS[component] for component in CONTROL_PLANE}) == len(CONTROL_PLANE)


@pytest.mark.parametrize(("name", "added"), [("kube-proxy", ["NET_ADMIN"]), ("coredns", [])])
def test_add_ons_have_no_more_rights_than_they_need(name: str, added: list[str]) -> None:
    spec = NODE.addon("DaemonSet", name)["spec"]["template"]["spec"]
    context = spec["containers"][0]["securityContext"]
    assert context["capabilities"] == {"drop": ["ALL"], **({"add": added} if added else {})}
    assert (context["readOnlyRootFilesystem"], context["allowPrivilegeEscalation"]) == (True, False)
    assert not context.get("privileged")
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["containers"][0]["imagePullPolicy"] == "Never"


def test_5_1_1_nobody_is_cluster_admin_but_the_admins() -> None:
    bound = [item for item in NODE.addons if item.get("roleRef", {}).get("name") == "cluster-admin"]
    assert [subject["name"] for item in bound for subject in item["subjects"]] == ["kubermesh:admins"]


def test_names_outside_the_cluster_go_to_the_upstreams() -> None:
    assert "forward . 9.9.9.9 {" in NODE.addon("ConfigMap", "coredns")["data"]["Corefile"]
    assert NODE.files["resolv.conf"].content == "nameserver 9.9.9.9\n"

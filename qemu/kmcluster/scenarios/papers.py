"""Faults of certificates: those that ended while nobody renewed them."""

import datetime
import shlex
import time

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from kmcluster.scenario import Scenario, Scene, leader, worker
from kmplan.errors import UserError

PKI = "/run/kubermesh/pki"
# What servers of the control plane show, and the authority that signed it.
SERVERS = {
    f"{PKI}/etcd/server.crt": "etcd-ca",
    f"{PKI}/etcd/peer.crt": "etcd-ca",
    f"{PKI}/kube-apiserver/server.crt": "cluster-ca",
    f"{PKI}/kube-apiserver/etcd-client.crt": "etcd-ca",
}
KUBELET = "/var/lib/kubermesh/kubelet/client.crt"
# Since when they have ended, and for how long an agent may stand still without being missed (kmagent/hello.py, HOLD_S).
ENDED_S, STILL_S = 60.0, 5.0
RENEWED_S = 60.0


def ended(certificate: str, authority_key: bytes) -> bytes:
    """The same certificate for the same key, PEM, but over since a minute."""
    old = x509.load_pem_x509_certificate(certificate.encode())
    end = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=ENDED_S)
    builder = (
        x509.CertificateBuilder()
        .subject_name(old.subject)
        .issuer_name(old.issuer)
        .public_key(old.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(end - datetime.timedelta(days=90))
        .not_valid_after(end)
    )
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    key = load_pem_private_key(authority_key, None)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)  # type: ignore[arg-type]


def expire(scene: Scene, number: int, path: str, authority: str) -> None:
    """Put a certificate that has ended in the place of a good one, owner and mode as they are."""
    key = (scene.cluster.directory / f"pki/{authority}.key").read_bytes()
    over = ended(scene.run(number, ["cat", path]), key)
    scene.run(number, ["sh", "-c", f"cat > {shlex.quote(path)}"], over)
    scene.tell(f"expired: {path.removeprefix(f'{PKI}/')} of {scene.machine(number).name}")


def starts(scene: Scene, number: int) -> str:
    """When etcd and the API server of a machine were started, and how often."""
    pods = [f"pod/{name}-{scene.machine(number).name}" for name in ("etcd", "kube-apiserver")]
    status = "{.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].state.running.startedAt}"
    return scene.kubectl("-n", "kube-system", "get", *pods, f"--output=jsonpath={{range .items[*]}}{status} {{end}}")


def expire_servers(scene: Scene, chosen: list[int]) -> None:
    """Have the certificates of etcd and the API server end while the agent stands still; one that is started renews them.

    UserError when it starts a server anew for that.
    """
    number = chosen[0]
    before = starts(scene, number)
    scene.signal(number, "kmagent", "STOP")
    for path, authority in SERVERS.items():
        expire(scene, number, path, authority)
    over = {path: scene.run(number, ["cat", path]) for path in SERVERS}
    time.sleep(STILL_S)
    scene.signal(number, "kmagent")

    def missing() -> str:
        left = [path for path, text in over.items() if scene.run(number, ["cat", path]) == text]
        return f"not renewed: {', '.join(left)}" if left else ""

    scene.wait(missing, RENEWED_S)
    scene.tell("renewed")
    if starts(scene, number) != before:
        raise UserError(f"etcd or the API server of {scene.machine(number).name} was started anew")


def expire_while_off(scene: Scene, chosen: list[int]) -> None:
    """Have the certificate of a kubelet end while its machine is off."""
    scene.power(chosen[0], "cut")
    expire(scene, chosen[0], KUBELET, "cluster-ca")


SCENARIOS = [
    Scenario("certificates-expired", "the servers' certificates on the leading node end, and are renewed", ("certificates",),
             leader, expire_servers, outage_s=15, silence_s=5),
    Scenario("kubelet-expired", "a worker is off when its kubelet's certificate ends, and returns", ("certificates", "power"),
             worker, expire_while_off, lambda scene, chosen: scene.power(chosen[0], "on"), after_s=10, silence_s=30, evicts=True),
]  # fmt: skip

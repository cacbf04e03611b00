"""`python3 -m kmagent sign`: the child that holds the authorities. Reads requests, one JSON object per line; answers each."""

import base64
import json
import sys
from typing import Any

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from kmagent import identity
from kmagent.identity import IDENTITY_DAYS
from kmagent.paths import Paths
from kmplan import pki, seal
from kmplan.pki import Subject

NODES = "system:nodes"


def main() -> int:
    """Serve until the end of the input."""
    paths = Paths()
    for line in sys.stdin:
        try:
            answer = perform(paths, json.loads(line))
        except Exception as error:
            # A request comes from a stranger: whatever is wrong with it must not end this process.
            answer = {"refused": f"{error}"}
        print(json.dumps(answer), flush=True)
    return 0


def perform(paths: Paths, request: dict[str, Any]) -> dict[str, Any]:
    """Do one request; ValueError says why not."""
    match request["do"]:
        case "inspect":
            return {"fingerprint": pki.key_fingerprint(pki.load_request(request["csr"]).public_key())}
        case "identify":
            certificate = pki.certify(
                identity.read_authority(paths, "node-ca"), node_subject(request["name"]), request["csr"], IDENTITY_DAYS
            )
            return {"certificate": certificate, "digest": pki.fingerprint(certificate)}
        case "kubelet":
            subject = Subject(f"system:node:{request['name']}", (NODES,))
            days = identity.read_tuning(paths).certificate_days
            return {
                "certificate": pki.certify(identity.read_authority(paths, "cluster-ca"), subject, request["csr"], days)
            }
        case "serving":
            check_serving(request["csr"], request["name"], request["addresses"])
            return {}
        case "sign":
            key = identity.read_authority(paths, "node-ca").key
            return {"signature": pki.sign_text(key, request["text"])}
        case "seal":
            return {"sealed": seal.seal(base64.b64decode(request["data"]), request["certificate"])}
    raise ValueError(f"unknown request {request['do']}")


def node_subject(name: str) -> Subject:
    """Return whom an identity certificate names."""
    return Subject(f"kubermesh:node:{name}", ("kubermesh:nodes",), ("client", "server"))


def check_serving(csr: str, name: str, addresses: list[str]) -> None:
    """Check a kubelet-serving request: it may name its own node and that node's addresses, and nothing else.

    The rules of kubernetes.io/kubelet-serving (Kubernetes documentation, Certificate Signing Requests), and that the
    names are the registry's. Raises ValueError with the reason.
    """
    request = pki.load_request(csr)
    common = [str(part.value) for part in request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    groups = [str(part.value) for part in request.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]
    if common != [f"system:node:{name}"] or groups != [NODES] or len(list(request.subject)) != 2:
        raise ValueError(f"its subject is {request.subject.rfc4514_string()}")
    try:
        names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise ValueError("it names no address") from None
    if not list(names):
        raise ValueError("it names no address")
    for entry in names:
        known = (isinstance(entry, x509.DNSName) and entry.value == name) or (
            isinstance(entry, x509.IPAddress) and str(entry.value) in addresses
        )
        if not known:
            raise ValueError(f"it names {entry.value}, which is not the node's")
    check_usages(request)


def check_usages(request: x509.CertificateSigningRequest) -> None:
    """Refuse a request that asks for more than serving."""
    for extension in request.extensions:
        value = extension.value
        if isinstance(value, x509.ExtendedKeyUsage) and set(value) != {ExtendedKeyUsageOID.SERVER_AUTH}:
            raise ValueError("it asks for other uses than serving")
        if isinstance(value, x509.BasicConstraints) and value.ca:
            raise ValueError("it asks to be an authority")

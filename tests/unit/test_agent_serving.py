"""What the cluster signs: serving certificates for the nodes they are of, and nothing that a stranger slips in."""

import asyncio
import base64
import ipaddress
import json
from pathlib import Path
from typing import Any

import pytest
from agent_fakes import FACTS, FIRST, KubernetesApi, Machine, Shop
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from kmagent import serving, sign
from kmagent.registry import Registry
from kmplan import pki

NAME = "shop-2"
ADDRESSES = ["fd12:3456:789a::2", "10.0.2.1"]
OWN = [x509.DNSName(NAME), *(x509.IPAddress(ipaddress.ip_address(address)) for address in ADDRESSES)]
SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
KEY = ec.generate_private_key(ec.SECP256R1())

Subject = list[tuple[ObjectIdentifier, str]]
SUBJECT: Subject = [(NameOID.ORGANIZATION_NAME, "system:nodes"), (NameOID.COMMON_NAME, f"system:node:{NAME}")]


def named(*names: x509.GeneralName) -> list[x509.ExtensionType]:
    return [x509.SubjectAlternativeName(names)]


def request(
    subject: Subject = SUBJECT, extensions: list[x509.ExtensionType] | None = None, key: Any = KEY
) -> x509.CertificateSigningRequest:
    """A certificate request; as it stands, what kubelet on shop-2 sends."""
    name = x509.Name([x509.NameAttribute(oid, value) for oid, value in subject])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    for extension in named(*OWN) if extensions is None else extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(key, hashes.SHA256())


def pem(csr: x509.CertificateSigningRequest) -> str:
    return csr.public_bytes(Encoding.PEM).decode()


def changed(old: bytes, new: bytes, csr: x509.CertificateSigningRequest) -> str:
    """A request with some bytes changed, and signed anew where its key is the one that we know."""
    assert len(old) == len(new) and old in csr.tbs_certrequest_bytes
    body = csr.tbs_certrequest_bytes.replace(old, new)
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")
    signature = KEY.sign(body, ec.ECDSA(hashes.SHA256()))
    whole = body + algorithm + b"\x03" + bytes([len(signature) + 1]) + b"\0" + signature
    encoded = base64.encodebytes(b"\x30\x82" + len(whole).to_bytes(2, "big") + whole).decode()
    return f"-----BEGIN CERTIFICATE REQUEST-----\n{encoded}-----END CERTIFICATE REQUEST-----\n"


SERVING_USE = x509.ExtendedKeyUsage([SERVER])
GOOD = {
    "as kubelet sends it": request(),
    "with its use": request(extensions=[*named(*OWN), SERVING_USE]),
    "one address is enough": request(extensions=named(OWN[2])),
    "no authority": request(extensions=[*named(*OWN), x509.BasicConstraints(ca=False, path_length=None)]),
}


@pytest.mark.parametrize("csr", GOOD.values(), ids=GOOD.keys())
def test_a_node_may_serve_under_its_own_name_and_addresses(csr: x509.CertificateSigningRequest) -> None:
    sign.check_serving(pem(csr), NAME, ADDRESSES)


COMMON_NAME, GROUP = (NameOID.COMMON_NAME, f"system:node:{NAME}"), (NameOID.ORGANIZATION_NAME, "system:nodes")
TWO_OF_A_KIND = [x509.UnrecognizedExtension(ObjectIdentifier(f"1.2.3.{last}"), b"\5\0") for last in (4, 5)]
BAD: dict[str, tuple[str, str]] = {
    "another node": (pem(request([GROUP, (NameOID.COMMON_NAME, "system:node:shop-3")])), "its subject is"),
    "no node": (pem(request([GROUP, (NameOID.COMMON_NAME, NAME)])), "its subject is"),
    "two names": (pem(request([GROUP, COMMON_NAME, COMMON_NAME])), "its subject is"),
    "no group": (pem(request([COMMON_NAME])), "its subject is"),
    "a wrong group": (pem(request([(NameOID.ORGANIZATION_NAME, "system:masters"), COMMON_NAME])), "its subject is"),
    "one group more": (
        pem(request([GROUP, (NameOID.ORGANIZATION_NAME, "system:masters"), COMMON_NAME])),
        "its subject is",
    ),
    "a place": (pem(request([GROUP, COMMON_NAME, (NameOID.LOCALITY_NAME, "shop")])), "its subject is"),
    "no address": (pem(request(extensions=[])), "it names no address"),
    "an empty list of addresses": (pem(request(extensions=named())), "it names no address"),
    "a foreign name": (pem(request(extensions=named(*OWN, x509.DNSName("kubernetes")))), "names kubernetes, which is not"),
    "a pattern": (pem(request(extensions=named(*OWN, x509.DNSName("*")))), "names *, which is not the node's"),
    "a foreign address": (
        pem(request(extensions=named(*OWN, x509.IPAddress(ipaddress.ip_address("fd12:3456:789a::a:1"))))),
        "it names fd12:3456:789a::a:1, which is not the node's",
    ),
    "an address as a name": (pem(request(extensions=named(x509.DNSName("10.0.2.1")))), "it names 10.0.2.1, which is not"),
    "a URI": (
        pem(request(extensions=named(*OWN, x509.UniformResourceIdentifier(f"https://{NAME}")))),
        "which is not the node's",
    ),
    "e-mail": (pem(request(extensions=named(*OWN, x509.RFC822Name(NAME)))), "which is not the node's"),
    "a registered id": (pem(request(extensions=named(x509.RegisteredID(SERVER)))), "which is not the node's"),
    "also as a client": (
        pem(request(extensions=[*named(*OWN), x509.ExtendedKeyUsage([SERVER, CLIENT])])),
        "it asks for other uses than serving",
    ),
    "any use": (
        pem(request(extensions=[*named(*OWN), x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE])])),
        "it asks for other uses than serving",
    ),
    "an authority": (
        pem(request(extensions=[*named(*OWN), x509.BasicConstraints(ca=True, path_length=None)])),
        "it asks to be an authority",
    ),
    "RSA": (pem(request(key=rsa.generate_private_key(65537, 2048))), "the key is not an ECDSA P-256 key"),
    "another curve": (pem(request(key=ec.generate_private_key(ec.SECP384R1()))), "the key is not an ECDSA P-256 key"),
    "another's key": (
        changed(b"", b"", request(key=ec.generate_private_key(ec.SECP256R1()))),
        "the request is not signed by its own key",
    ),
    "an extension twice": (
        changed(bytes.fromhex("06032a0305"), bytes.fromhex("06032a0304"), request(extensions=[*named(*OWN), *TWO_OF_A_KIND])),
        "Duplicate",
    ),
    "no request": ("hello", "PEM"),
}  # fmt: skip


@pytest.mark.parametrize(("csr", "reason"), BAD.values(), ids=BAD.keys())
def test_a_node_that_asks_for_more_is_refused_with_the_reason(tmp_path: Path, csr: str, reason: str) -> None:
    asked = {"do": "serving", "csr": csr, "name": NAME, "addresses": ADDRESSES}
    assert reason in signed(tmp_path, asked)[0]["refused"]


def signed(tmp_path: Path, *asked: Any) -> list[dict[str, Any]]:
    """What the signing child answers to these lines."""
    lines = [one if isinstance(one, str) else json.dumps(one) for one in asked]
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr(sign, "Paths", lambda: Shop.paths_of(tmp_path))
        patch.setattr("sys.stdin", lines)
        patch.setattr("builtins.print", lambda text, flush: said.append(text))
        assert sign.main() == 0
    return [json.loads(text) for text in said]


CURVE, OTHER_CURVE = bytes.fromhex("06082a8648ce3d030107"), bytes.fromhex("06082a8648ce3d030106")
KEY_KIND, OTHER_KIND = bytes.fromhex("06072a8648ce3d0201"), bytes.fromhex("06072a8648ce3d0202")
STRANGE: dict[str, Any] = {
    "no JSON": "hello",
    "deep": "[" * 100_000,
    "no object": "[]",
    "no wish": "{}",
    "unknown": {"do": "dance"},
    "no request": {"do": "inspect"},
    "a number": {"do": "inspect", "csr": 5},
    "an unknown curve": {"do": "inspect", "csr": changed(CURVE, OTHER_CURVE, request())},
    "an unknown kind of key": {"do": "inspect", "csr": changed(KEY_KIND, OTHER_KIND, request())},
}


@pytest.mark.parametrize("asked", STRANGE.values(), ids=STRANGE.keys())
def test_whatever_a_stranger_sends_the_signing_process_goes_on(tmp_path: Path, asked: Any) -> None:
    machine = Machine()
    first, second = signed(tmp_path, asked, {"do": "inspect", "csr": machine.csr})
    assert first["refused"]
    assert second == {"fingerprint": machine.fingerprint}


def spec(csr: str = "", **changes: Any) -> dict[str, Any]:
    """A CertificateSigningRequest of kubelet on shop-2, as Kubernetes has it."""
    sender = {"username": f"system:node:{NAME}", "groups": ["system:nodes", "system:authenticated"]}
    return {
        "signerName": serving.SIGNER,
        "request": base64.b64encode((csr or pem(request())).encode()).decode(),
        "usages": ["digital signature", "server auth"],
        **sender,
        **changes,
    }


KNOWN = Registry("shop").put(FIRST).put(Shop.node(2))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"username": "system:node:shop-9"}, "no node shop-9 in the registry"),
        ({"username": "shop-2"}, "shop-2 is not a node"),
        ({"username": "system:serviceaccount:default:x"}, "system:serviceaccount:default:x is not a node"),
        ({"username": ""}, " is not a node"),
        ({"username": "system:node:"}, "no node  in the registry"),
        ({"groups": ["system:authenticated"]}, "system:node:shop-2 is not a node"),
        ({"groups": []}, "system:node:shop-2 is not a node"),
        ({"usages": ["server auth", "client auth"]}, "it asks for client auth, server auth"),
        ({"usages": ["digital signature"]}, "it asks for digital signature"),
        ({"usages": []}, "it asks for "),
    ],
)
def test_only_a_node_of_the_registry_may_ask_and_only_to_serve(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError) as caught:
        serving.expected(spec(**change), KNOWN, FACTS)
    assert str(caught.value) == reason


def test_a_node_may_name_what_the_registry_gives_it() -> None:
    assert serving.expected(spec(), KNOWN, FACTS) == (NAME, ADDRESSES)


def test_every_waiting_request_is_decided_once_whatever_the_others_are_like(tmp_path: Path) -> None:
    shop, api = Shop(tmp_path / "shop"), KubernetesApi()
    decided = {"conditions": [{"type": "Denied", "status": "True"}]}
    asked = {
        "broken": {"spec": spec(request="no base64")},
        "double": {"spec": spec(BAD["an extension twice"][0])},
        "foreign": {"spec": spec(BAD["a foreign name"][0])},
        "good": {"spec": spec()},
        "old": {"spec": spec(), "status": decided},
        "stranger": {"spec": spec(username="admin")},
    }
    for name, item in asked.items():
        api.objects[f"{serving.REQUESTS}/{name}"] = {"metadata": {"name": name}, **item}
    for _ in range(2):
        asyncio.run(serving.approve(api, shop.ledger.authority, KNOWN, FACTS))  # type: ignore[arg-type]
    conditions = {name: api.objects[f"{serving.REQUESTS}/{name}"]["status"]["conditions"] for name in asked}
    verdicts = {name: one["type"] for name, (one,) in conditions.items()}
    assert verdicts == {**dict.fromkeys(asked, "Denied"), "good": "Approved"}
    assert conditions["foreign"][0]["message"] == "it names kubernetes, which is not the node's"
    assert sorted(api.writes) == sorted(f"PUT {serving.REQUESTS}/{name}/approval" for name in asked if name != "old")


def test_an_identity_says_what_the_cluster_says_and_not_what_the_machine_asked_for(tmp_path: Path) -> None:
    shop = Shop(tmp_path / "shop")
    csr = pem(
        request([(NameOID.ORGANIZATION_NAME, "system:masters")], [x509.BasicConstraints(ca=True, path_length=None)])
    )
    certificate, digest = asyncio.run(shop.ledger.authority.identify(csr, "shop-7"))
    leaf = x509.load_pem_x509_certificate(certificate.encode())
    assert leaf.subject.rfc4514_string() == "CN=kubermesh:node:shop-7,O=kubermesh:nodes"
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert digest == pki.fingerprint(certificate)

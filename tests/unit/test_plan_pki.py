"""Keys and certificates: chains that independent verifiers accept."""

import datetime
import hashlib
import shutil
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from kmplan import pki
from kmplan.run import run

NOW = datetime.datetime(2027, 5, 1, tzinfo=datetime.UTC)
NAMES = ("kubernetes", "::1", "10.255.0.1")


@pytest.fixture(scope="module")
def authority() -> pki.Pair:
    return pki.create_authority("test cluster-ca", NOW)


@pytest.fixture(scope="module")
def server(authority: pki.Pair) -> pki.Pair:
    return pki.issue(authority, pki.Subject("kube-apiserver", usages=("server",), names=NAMES), 90, NOW)


def parsed(pair: pki.Pair) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pair.certificate.encode())


@pytest.mark.parametrize("name", NAMES)
def test_a_server_certificate_is_verified_for_each_name(authority: pki.Pair, server: pki.Pair, name: str) -> None:
    try:
        subject: x509.GeneralName = x509.IPAddress(ip_address(name))
    except ValueError:
        subject = x509.DNSName(name)
    policy = PolicyBuilder().store(Store([parsed(authority)])).time(NOW)
    assert policy.build_server_verifier(subject).verify(parsed(server), [])  # type: ignore[arg-type]


def test_another_authority_does_not_vouch(server: pki.Pair) -> None:
    store = Store([parsed(pki.create_authority("another", NOW))])
    with pytest.raises(VerificationError):
        PolicyBuilder().store(store).time(NOW).build_server_verifier(x509.DNSName("kubernetes")).verify(
            parsed(server), []
        )


def test_an_authority_signs_leaves_only(authority: pki.Pair) -> None:
    constraints = parsed(authority).extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical and (constraints.value.ca, constraints.value.path_length) == (True, 0)


def test_a_client_certificate_carries_its_groups(authority: pki.Pair) -> None:
    leaf = parsed(pki.issue(authority, pki.Subject("system:node:one-1", ("system:nodes",)), 90, NOW))
    assert leaf.subject.rfc4514_string() == "CN=system:node:one-1,O=system:nodes"
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [x509.ExtendedKeyUsageOID.CLIENT_AUTH]


def test_a_leaf_never_outlives_its_authority(authority: pki.Pair) -> None:
    leaf = pki.issue(authority, pki.Subject("x"), 365 * 50, NOW)
    assert pki.validity(leaf.certificate)[1] == pki.validity(authority.certificate)[1]


def test_validity_is_what_was_asked_for(server: pki.Pair) -> None:
    start, end = pki.validity(server.certificate)
    assert (start, end) == (NOW - pki.SKEW, NOW + datetime.timedelta(days=90))


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
def test_openssl_accepts_the_chain(authority: pki.Pair, server: pki.Pair, tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text(authority.certificate)
    (tmp_path / "leaf.crt").write_text(server.certificate)
    (tmp_path / "leaf.key").write_text(server.key)
    verify = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-attime", str(int(NOW.timestamp()))]
    done = run([*verify, "-CAfile", tmp_path / "ca.crt", tmp_path / "leaf.crt"])
    assert done.stdout.endswith("leaf.crt: OK\n")
    of_key = run(["openssl", "pkey", "-in", tmp_path / "leaf.key", "-pubout"]).stdout
    assert of_key == run(["openssl", "x509", "-in", tmp_path / "leaf.crt", "-noout", "-pubkey"]).stdout


KEY = pki.create_key()
REQUEST = pki.create_request(KEY, "kubermesh machine")


def test_a_request_proves_that_its_sender_has_the_key() -> None:
    request = pki.load_request(REQUEST)
    assert request.subject.rfc4514_string() == "CN=kubermesh machine"
    assert pki.key_fingerprint(request.public_key()) == pki.private_key_fingerprint(KEY)
    assert pki.private_key_fingerprint(pki.create_key()) != pki.private_key_fingerprint(KEY)


def test_a_fingerprint_is_the_one_that_openssl_shows(tmp_path: Path) -> None:
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    (tmp_path / "key").write_text(KEY)
    run(["openssl", "pkey", "-in", tmp_path / "key", "-pubout", "-outform", "DER", "-out", tmp_path / "der"])
    assert hashlib.sha256((tmp_path / "der").read_bytes()).hexdigest() == pki.private_key_fingerprint(KEY)


NO_REQUEST = {
    "nothing": "",
    "no PEM": "hello",
    "a key": KEY,
    "cut short": REQUEST[:-40],
    "changed on the way": REQUEST.replace("a3ViZXJtZXNo", "a3ViZXJtZXNi"),
    "no text": "\ud800",
}


@pytest.mark.parametrize("text", NO_REQUEST.values(), ids=NO_REQUEST.keys())
def test_what_is_no_request_is_a_valueerror(text: str) -> None:
    assert text != REQUEST
    with pytest.raises(ValueError):
        pki.load_request(text)


def test_of_a_request_only_the_key_is_taken(authority: pki.Pair) -> None:
    """The machine asks to be an admin with every name; it becomes what the cluster says."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "system:masters")])
    key = ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName([x509.DNSName("*")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).add_extension(names, critical=False)
    text = request.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()
    certificate = pki.certify(authority, pki.Subject("one-1", ("nodes",)), text, 90)
    leaf = x509.load_pem_x509_certificate(certificate.encode())
    assert leaf.subject.rfc4514_string() == "CN=one-1,O=nodes"
    assert leaf.public_key() == key.public_key()
    with pytest.raises(x509.ExtensionNotFound):
        leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_a_certificate_matches_its_own_key_only(authority: pki.Pair) -> None:
    certificate = pki.certify(authority, pki.Subject("one-1"), REQUEST, 90)
    assert pki.matches(certificate, KEY)
    assert not pki.matches(certificate, pki.create_key())


def test_who_issued_a_certificate_is_told(authority: pki.Pair) -> None:
    certificate = pki.certify(authority, pki.Subject("one-1"), REQUEST, 90)
    namesake = pki.create_authority("test cluster-ca")
    assert pki.is_issued_by(certificate, authority.certificate)
    assert not pki.is_issued_by(certificate, namesake.certificate)
    assert not pki.is_issued_by(certificate, pki.create_authority("another").certificate)
    assert not pki.is_issued_by("hello", authority.certificate)
    assert not pki.is_issued_by(authority.certificate, certificate)


@pytest.mark.parametrize("text", ["", '{"serial":7}', "ä" * 1000])
def test_a_signature_is_for_one_text_and_one_signer(authority: pki.Pair, text: str) -> None:
    signature = pki.sign_text(authority.key, text)
    assert pki.verify_text(authority.certificate, text, signature)
    assert not pki.verify_text(authority.certificate, text + " ", signature)
    assert not pki.verify_text(pki.create_authority("another").certificate, text, signature)
    for wrong in ("", "a", "aGVsbG8=", signature[:-8], "ä"):
        assert not pki.verify_text(authority.certificate, text, wrong)

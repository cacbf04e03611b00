"""Keys and certificates: chains that independent verifiers accept."""

import datetime
import shutil
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
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

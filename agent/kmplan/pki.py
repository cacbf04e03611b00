"""Keys and certificates: ECDSA P-256 throughout, with `cryptography`."""

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_YEARS = 20
# Clocks of freshly booted machines differ: a certificate is valid from a little before it was made.
SKEW = datetime.timedelta(minutes=5)
USAGES = {"server": ExtendedKeyUsageOID.SERVER_AUTH, "client": ExtendedKeyUsageOID.CLIENT_AUTH}

Usage = Literal["server", "client"]


@dataclass(frozen=True)
class Pair:
    """A certificate and its private key, both PEM."""

    certificate: str
    key: str


@dataclass(frozen=True)
class Subject:
    """Whom a leaf certificate names: common name, organizations (Kubernetes' groups), and what it may be used for.

    `names` are DNS names and IP addresses it serves under.
    """

    common_name: str
    organizations: tuple[str, ...] = ()
    usages: tuple[Usage, ...] = ("client",)
    names: tuple[str, ...] = field(default=())


def create_authority(common_name: str, now: datetime.datetime | None = None) -> Pair:
    """Make a self-signed certificate authority that may sign leaves only."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(common_name, ())
    start = (now or _now()) - SKEW
    builder = (
        _builder(name, name, key, start, start + datetime.timedelta(days=365 * AUTHORITY_YEARS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
    )
    return _signed(builder, key, key)


def issue(authority: Pair, subject: Subject, days: float, now: datetime.datetime | None = None) -> Pair:
    """Make a key and a leaf certificate for it, signed by `authority`, valid for `days` from `now`."""
    issuer_key = load_pem_private_key(authority.key.encode(), None)
    assert isinstance(issuer_key, ec.EllipticCurvePrivateKey)  # noqa: S101 - we make no others
    issuer = x509.load_pem_x509_certificate(authority.certificate.encode())
    key = ec.generate_private_key(ec.SECP256R1())
    moment = now or _now()
    end = min(moment + datetime.timedelta(days=days), issuer.not_valid_after_utc)
    name = _name(subject.common_name, subject.organizations)
    builder = (
        _builder(name, issuer.subject, key, moment - SKEW, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([USAGES[usage] for usage in subject.usages]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
    )
    if subject.names:
        builder = builder.add_extension(x509.SubjectAlternativeName(_alternatives(subject.names)), critical=False)
    return _signed(builder, key, issuer_key)


def create_signing_key() -> tuple[str, str]:
    """Make a key for signing service-account tokens: (private, public), PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return _private_pem(key), public.decode()


def validity(certificate: str) -> tuple[datetime.datetime, datetime.datetime]:
    """Return the moments from and until which a PEM certificate is valid."""
    parsed = x509.load_pem_x509_certificate(certificate.encode())
    return parsed.not_valid_before_utc, parsed.not_valid_after_utc


def fingerprint(certificate: str) -> str:
    """Return the SHA-256 of a PEM certificate's DER form, in hex."""
    return x509.load_pem_x509_certificate(certificate.encode()).fingerprint(hashes.SHA256()).hex()


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    start: datetime.datetime,
    end: datetime.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _signed(builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey, by: ec.EllipticCurvePrivateKey) -> Pair:
    certificate = builder.sign(by, hashes.SHA256())
    return Pair(certificate.public_bytes(Encoding.PEM).decode(), _private_pem(key))


def _private_pem(key: ec.EllipticCurvePrivateKey) -> str:
    # "EC PRIVATE KEY": the form that Kubernetes, etcd and openssl all read.
    return key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()).decode()


def _name(common_name: str, organizations: Sequence[str]) -> x509.Name:
    parts = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization) for organization in organizations]
    return x509.Name([*parts, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _alternatives(names: Sequence[str]) -> list[x509.GeneralName]:
    result: list[x509.GeneralName] = []
    for name in names:
        try:
            result.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            result.append(x509.DNSName(name))
    return result


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True, key_cert_sign=authority, crl_sign=authority, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)

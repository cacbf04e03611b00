"""Keys and certificates: ECDSA P-256 throughout, with `cryptography`."""

import base64
import datetime
import hashlib
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature
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
# Clocks of freshly booted machines differ, where they have no battery by what was noted an hour ago: a certificate is valid from
# before it was made.
SKEW = datetime.timedelta(hours=2)
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
        _builder(name, name, key.public_key(), start, start + datetime.timedelta(days=365 * AUTHORITY_YEARS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
    )
    return Pair(_signed(builder, key), _private_pem(key))


def issue(authority: Pair, subject: Subject, days: float, now: datetime.datetime | None = None) -> Pair:
    """Make a key and a leaf certificate for it, signed by `authority`, valid for `days` from `now`."""
    key = ec.generate_private_key(ec.SECP256R1())
    return Pair(_certify(authority, subject, key.public_key(), days, now), _private_pem(key))


def create_key() -> str:
    """Make a private key, PEM."""
    return _private_pem(ec.generate_private_key(ec.SECP256R1()))


def create_request(key: str, common_name: str) -> str:
    """Return a certificate signing request (PKCS #10, PEM) for a private key."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(_name(common_name, ()))
    return builder.sign(_load_key(key), hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def load_request(request: str) -> x509.CertificateSigningRequest:
    """Parse a request and check that its sender holds the key; ValueError when it is not one for a P-256 key."""
    parsed = x509.load_pem_x509_csr(request.encode())
    key = parsed.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("the key is not an ECDSA P-256 key")
    if not parsed.is_signature_valid:
        raise ValueError("the request is not signed by its own key")
    return parsed


def certify(authority: Pair, subject: Subject, request: str, days: float) -> str:
    """Sign a request; of it only the key is taken. Raises ValueError when it is not acceptable."""
    key = load_request(request).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)  # noqa: S101 - checked
    return _certify(authority, subject, key, days, None)


def key_fingerprint(key: object) -> str:
    """Return the SHA-256 (hex) of a public key's DER form (SubjectPublicKeyInfo)."""
    assert isinstance(key, ec.EllipticCurvePublicKey)  # noqa: S101 - we make no others
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def private_key_fingerprint(key: str) -> str:
    """Return the fingerprint of the public half of a private key."""
    return key_fingerprint(_load_key(key).public_key())


def sign_text(key: str, text: str) -> str:
    """Sign text with ECDSA and SHA-256; returns the signature, base64."""
    return base64.b64encode(_load_key(key).sign(text.encode(), ec.ECDSA(hashes.SHA256()))).decode()


def verify_text(certificate: str, text: str, signature: str) -> bool:
    """Tell whether the holder of a certificate signed a text."""
    key = x509.load_pem_x509_certificate(certificate.encode()).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)  # noqa: S101 - we make no others
    try:
        key.verify(base64.b64decode(signature), text.encode(), ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError):
        return False
    return True


def matches(certificate: str, key: str) -> bool:
    """Tell whether a certificate is for a private key."""
    public = x509.load_pem_x509_certificate(certificate.encode()).public_key()
    return key_fingerprint(public) == private_key_fingerprint(key)


def is_issued_by(certificate: str, authority: str) -> bool:
    """Tell whether one certificate signed the other."""
    try:
        x509.load_pem_x509_certificate(certificate.encode()).verify_directly_issued_by(
            x509.load_pem_x509_certificate(authority.encode())
        )
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _load_key(key: str) -> ec.EllipticCurvePrivateKey:
    loaded = load_pem_private_key(key.encode(), None)
    assert isinstance(loaded, ec.EllipticCurvePrivateKey)  # noqa: S101 - we make no others
    return loaded


def _certify(
    authority: Pair, subject: Subject, key: ec.EllipticCurvePublicKey, days: float, now: datetime.datetime | None
) -> str:
    issuer_key = _load_key(authority.key)
    issuer = x509.load_pem_x509_certificate(authority.certificate.encode())
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
    return _signed(builder, issuer_key)


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
    key: ec.EllipticCurvePublicKey,
    start: datetime.datetime,
    end: datetime.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _signed(builder: x509.CertificateBuilder, by: ec.EllipticCurvePrivateKey) -> str:
    return builder.sign(by, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


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

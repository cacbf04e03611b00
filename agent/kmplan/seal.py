"""Data that only the holder of one key can read: ECDH P-256, HKDF and AES-256-GCM, as in HPKE's base mode (RFC 9180)."""

import base64
import os

from cryptography import x509
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

INFO = b"kubermesh seal 1"
POINT_BYTES, NONCE_BYTES = 65, 12


def seal(data: bytes, certificate: str) -> str:
    """Encrypt `data` to the key of a PEM certificate; returns ephemeral point, nonce and ciphertext, base64."""
    recipient = x509.load_pem_x509_certificate(certificate.encode()).public_key()
    assert isinstance(recipient, ec.EllipticCurvePublicKey)  # noqa: S101 - we make no others
    ephemeral = ec.generate_private_key(ec.SECP256R1())
    point, nonce = _point(ephemeral.public_key()), os.urandom(NONCE_BYTES)
    cipher = AESGCM(_derive(ephemeral, recipient, point + _point(recipient)))
    return base64.b64encode(point + nonce + cipher.encrypt(nonce, data, INFO)).decode()


def unseal(sealed: str, key: str) -> bytes:
    """Decrypt with the private key, PEM; ValueError when it was not sealed to it or was changed."""
    raw = base64.b64decode(sealed)
    point, nonce, data = (
        raw[:POINT_BYTES],
        raw[POINT_BYTES : POINT_BYTES + NONCE_BYTES],
        raw[POINT_BYTES + NONCE_BYTES :],
    )
    private = load_pem_private_key(key.encode(), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)  # noqa: S101 - we make no others
    sender = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    try:
        cipher = AESGCM(_derive(private, sender, point + _point(private.public_key())))
        return cipher.decrypt(nonce, data, INFO)
    except InvalidTag:
        raise ValueError("not sealed to this key, or changed on the way") from None


def _derive(private: ec.EllipticCurvePrivateKey, public: ec.EllipticCurvePublicKey, context: bytes) -> bytes:
    shared = private.exchange(ec.ECDH(), public)
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=context, info=INFO).derive(shared)


def _point(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)

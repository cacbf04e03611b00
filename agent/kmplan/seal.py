"""Data that only the holder of one key can read.

To a node's key: ECDH P-256, HKDF and AES-256-GCM, as in HPKE's base mode (RFC 9180). Files, with a key that several hold:
AES-256-GCM in chunks (STREAM, Hoang et al., https://eprint.iacr.org/2015/189), as age does: none can be left out or moved.
"""

import base64
import os
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from kmplan.files import whole

INFO = b"kubermesh seal 1"
POINT_BYTES, NONCE_BYTES = 65, 12
FILE_MAGIC, SALT_BYTES, CHUNK_BYTES, TAG_BYTES = b"kubermesh sealed file 1\n", 16, 1 << 20, 16


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


def seal_file(source: Path, target: Path, secret: bytes) -> None:
    """Encrypt a file; `target` is written as a whole or not at all, and readable by its owner only."""
    salt = os.urandom(SALT_BYTES)
    cipher = AESGCM(_file_key(secret, salt))
    with source.open("rb") as plain, whole(target) as sealed:
        sealed.write(FILE_MAGIC + salt)
        chunk, number = plain.read(CHUNK_BYTES), 0
        while chunk or number == 0:
            following = plain.read(CHUNK_BYTES)
            sealed.write(cipher.encrypt(_file_nonce(number, last=not following), chunk, None))
            chunk, number = following, number + 1


def unseal_file(source: Path, target: Path, secret: bytes) -> None:
    """Decrypt it; `target` is whole or not there. Raises ValueError when it was not sealed with this or was changed."""
    with source.open("rb") as sealed, whole(target) as plain:
        head = sealed.read(len(FILE_MAGIC) + SALT_BYTES)
        if not head.startswith(FILE_MAGIC):
            raise ValueError(f"{source}: not a sealed file")
        cipher = AESGCM(_file_key(secret, head[len(FILE_MAGIC) :]))
        chunk, number = sealed.read(CHUNK_BYTES + TAG_BYTES), 0
        while chunk or number == 0:
            following = sealed.read(CHUNK_BYTES + TAG_BYTES)
            try:
                plain.write(cipher.decrypt(_file_nonce(number, last=not following), chunk, None))
            except InvalidTag:
                raise ValueError(f"{source}: not sealed with this key, or changed since") from None
            chunk, number = following, number + 1


def _file_key(secret: bytes, salt: bytes) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=salt, info=FILE_MAGIC).derive(secret)


def _file_nonce(number: int, *, last: bool) -> bytes:
    return number.to_bytes(NONCE_BYTES - 1, "big") + (b"\1" if last else b"\0")


def _derive(private: ec.EllipticCurvePrivateKey, public: ec.EllipticCurvePublicKey, context: bytes) -> bytes:
    shared = private.exchange(ec.ECDH(), public)
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=context, info=INFO).derive(shared)


def _point(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)

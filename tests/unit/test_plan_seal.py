"""Sealed data: the holder of the key reads it, and nobody else."""

import base64

import pytest

from kmplan import pki, seal

AUTHORITY = pki.create_authority("ca")
KEY = pki.create_key()
CERTIFICATE = pki.certify(AUTHORITY, pki.Subject("node"), pki.create_request(KEY, "node"), 90)
REFUSED = "^not sealed to this key, or changed on the way$"


@pytest.mark.parametrize("data", [b"", b"{}", bytes(range(256)) * 400])
def test_the_holder_of_the_key_reads_what_was_sealed(data: bytes) -> None:
    sealed = seal.seal(data, CERTIFICATE)
    assert seal.unseal(sealed, KEY) == data
    assert not data or data not in base64.b64decode(sealed)


def test_the_same_is_never_sealed_the_same_way_twice() -> None:
    one, two = (base64.b64decode(seal.seal(b"secret", CERTIFICATE)) for _ in range(2))
    assert one[: seal.POINT_BYTES] != two[: seal.POINT_BYTES]
    assert one[seal.POINT_BYTES :] != two[seal.POINT_BYTES :]


@pytest.mark.parametrize("key", [pki.create_key(), AUTHORITY.key], ids=["another machine", "the authority"])
def test_another_key_reads_nothing(key: str) -> None:
    with pytest.raises(ValueError, match=REFUSED):
        seal.unseal(seal.seal(b"secret", CERTIFICATE), key)


PARTS = {"point": 1, "nonce": seal.POINT_BYTES, "text": seal.POINT_BYTES + seal.NONCE_BYTES, "tag": -1}


@pytest.mark.parametrize("at", PARTS.values(), ids=PARTS.keys())
def test_what_was_changed_on_the_way_is_refused(at: int) -> None:
    raw = bytearray(base64.b64decode(seal.seal(b"secret", CERTIFICATE)))
    raw[at] ^= 1
    with pytest.raises(ValueError):
        seal.unseal(base64.b64encode(raw).decode(), KEY)


def test_another_point_of_the_curve_does_not_open_it() -> None:
    """The point is part of what the key is made from: one seal's text does not go with another's point."""
    one, two = (base64.b64decode(seal.seal(b"secret", CERTIFICATE)) for _ in range(2))
    mixed = one[: seal.POINT_BYTES] + two[seal.POINT_BYTES :]
    with pytest.raises(ValueError, match=REFUSED):
        seal.unseal(base64.b64encode(mixed).decode(), KEY)


@pytest.mark.parametrize("length", [0, 1, 64, 65, 70, 77, 80, 92])
def test_what_is_cut_short_is_refused(length: int) -> None:
    raw = base64.b64decode(seal.seal(b"secret", CERTIFICATE))
    with pytest.raises(ValueError):
        seal.unseal(base64.b64encode(raw[:length]).decode(), KEY)


@pytest.mark.parametrize("sealed", ["", "a", "ä", "{}", "AAAA" * 40])
def test_what_is_not_sealed_is_refused(sealed: str) -> None:
    with pytest.raises(ValueError):
        seal.unseal(sealed, KEY)

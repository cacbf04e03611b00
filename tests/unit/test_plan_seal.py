"""Sealed data: the holder of the key reads it, and nobody else."""

import base64
from pathlib import Path

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


SECRET = b"k" * 32
CHUNK = seal.CHUNK_BYTES


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_a_sealed_file_is_read_with_the_secret_and_with_no_other(tmp_path: Path, size: int) -> None:
    plain, sealed, back = (tmp_path / name for name in ("plain", "sealed", "back"))
    plain.write_bytes(bytes(range(251)) * (size // 251 + 1))
    with plain.open("r+b") as file:
        file.truncate(size)
    seal.seal_file(plain, sealed, SECRET)
    assert sealed.stat().st_mode & 0o777 == 0o600
    seal.unseal_file(sealed, back, SECRET)
    assert back.read_bytes() == plain.read_bytes()
    back.unlink()
    with pytest.raises(ValueError, match="not sealed with this key"):
        seal.unseal_file(sealed, back, b"l" * 32)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain", "sealed"]


def test_a_sealed_file_that_was_changed_cut_or_put_together_anew_is_refused(tmp_path: Path) -> None:
    plain, sealed, back = (tmp_path / name for name in ("plain", "sealed", "back"))
    plain.write_bytes(b"a" * CHUNK + b"b" * CHUNK + b"c")
    seal.seal_file(plain, sealed, SECRET)
    whole = sealed.read_bytes()
    head, part = len(seal.FILE_MAGIC) + seal.SALT_BYTES, CHUNK + seal.TAG_BYTES
    one, two = whole[head : head + part], whole[head + part : head + 2 * part]
    for wrong in (
        b"",
        whole[:-1],
        whole[: head + part],
        whole[: head + 2 * part],
        whole[:head],
        whole[:head] + two + one + whole[head + 2 * part :],
        whole[: head + 9] + bytes([whole[head + 9] ^ 1]) + whole[head + 10 :],
        whole + b"x",
    ):
        sealed.write_bytes(wrong)
        with pytest.raises(ValueError):
            seal.unseal_file(sealed, back, SECRET)
        assert not back.exists()

"""Damaged and foreign images are refused in one line before anything is started."""

import json
from pathlib import Path
from typing import Any

import pytest

from kmcluster.image import Image, check_image
from kmplan.errors import UserError

DISK = bytes(3584) + b"EFI PART" + bytes(504)


def make_image(folder: Path, **changes: Any) -> Image:
    manifest = {
        "version": "0.1.0",
        "architecture": "x86_64",
        "roothash": "abc",
        "artefacts": {"raw": {"size": len(DISK)}, "erofs": {"size": 5}},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))
    (folder / "k.raw").write_bytes(DISK)
    (folder / "k.erofs").write_bytes(b"erofs")
    return Image(folder / "k.raw", folder / "k.erofs", folder / "manifest.json", folder, folder)


def refused(image: Image) -> str:
    with pytest.raises(UserError) as raised:
        check_image(image)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_whole_image_passes(tmp_path: Path) -> None:
    assert check_image(make_image(tmp_path))["roothash"] == "abc"


def test_a_truncated_image(tmp_path: Path) -> None:
    image = make_image(tmp_path)
    image.raw.write_bytes(DISK[:-512])
    assert "k.raw: truncated: 3584 bytes, the manifest says 4096" in refused(image)


def test_an_image_whose_end_is_blank(tmp_path: Path) -> None:
    image = make_image(tmp_path)
    image.raw.write_bytes(bytes(len(DISK)))
    assert "k.raw: truncated: no backup partition table at its end" in refused(image)


def test_a_truncated_root(tmp_path: Path) -> None:
    image = make_image(tmp_path)
    image.erofs.write_bytes(b"ero")
    assert "k.erofs: truncated" in refused(image)


def test_another_architecture(tmp_path: Path) -> None:
    assert "k.raw: is for aarch64" in refused(make_image(tmp_path, architecture="aarch64"))


def test_no_manifest(tmp_path: Path) -> None:
    image = make_image(tmp_path)
    image.manifest.unlink()
    assert "manifest.json: No such file or directory; `make image`" in refused(image)


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 1}'])
def test_a_damaged_manifest(tmp_path: Path, text: str) -> None:
    image = make_image(tmp_path)
    image.manifest.write_text(text)
    assert "manifest.json: not " in refused(image)


def test_no_image(tmp_path: Path) -> None:
    image = make_image(tmp_path)
    image.raw.unlink()
    assert "k.raw: no such file" in refused(image)

"""The container images of the image, given to containerd."""

from pathlib import Path

import pytest

from kmagent.containerd_seed import SNAPSHOTS, install


@pytest.fixture
def seed(tmp_path: Path) -> Path:
    folder = tmp_path / "seed"
    (folder / "seed/io.containerd.metadata.v1.bolt").mkdir(parents=True)
    (folder / "seed/io.containerd.metadata.v1.bolt/meta.db").write_text("images")
    for layer in ("1", "2"):
        (folder / "snapshots" / layer / "fs").mkdir(parents=True)
    (folder / "id").write_text("first")
    return folder


def test_databases_are_copied_and_layers_linked(seed: Path, tmp_path: Path) -> None:
    root = tmp_path / "containerd"
    assert install(seed, root)
    assert (root / "io.containerd.metadata.v1.bolt/meta.db").read_text() == "images"
    assert (root / SNAPSHOTS / "2").readlink() == seed / "snapshots/2"
    assert (root / ".seed").read_text() == "first"


def test_the_same_seed_is_not_installed_twice(seed: Path, tmp_path: Path) -> None:
    root = tmp_path / "containerd"
    install(seed, root)
    (root / "kept").write_text("")
    assert not install(seed, root)
    assert (root / "kept").exists()


def test_a_new_image_replaces_everything(seed: Path, tmp_path: Path) -> None:
    root = tmp_path / "containerd"
    install(seed, root)
    (root / "old").mkdir()
    (seed / "id").write_text("second")
    assert install(seed, root)
    assert not (root / "old").exists()
    assert (seed / "snapshots/1/fs").is_dir()


def test_an_interrupted_installation_is_done_again(seed: Path, tmp_path: Path) -> None:
    root = tmp_path / "containerd"
    install(seed, root)
    (root / ".seed").unlink()
    (root / "io.containerd.metadata.v1.bolt/meta.db").write_text("half")
    assert install(seed, root)
    assert (root / "io.containerd.metadata.v1.bolt/meta.db").read_text() == "images"


def test_an_image_without_containers_is_no_failure(tmp_path: Path) -> None:
    assert not install(tmp_path / "none", tmp_path / "containerd")

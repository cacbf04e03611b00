"""The built image: its papers, and its root file system extracted once for all tests of the folder."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import testinfra
import testinfra.host

from kmbuild import sandbox
from kmbuild.config import Config
from kmplan.run import run

IMAGE = Path(os.environ.get("KUBERMESH_IMAGE", "out")).resolve()


@pytest.fixture(scope="session")
def image() -> Path:
    """The output folder of `kmbuild image`."""
    if not (IMAGE / "manifest.json").exists():
        pytest.fail(f"{IMAGE}: no image here; build one with `make image`")
    return IMAGE


@pytest.fixture(scope="session")
def manifest(image: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((image / "manifest.json").read_text())
    return document


@pytest.fixture(scope="session")
def tools(manifest: dict[str, Any]) -> Path:
    """Root of the tools tree that the image was made with."""
    return Config(version=1).cache_path / "stages/tools" / manifest["stages"]["tools"] / "root"


@pytest.fixture(scope="session")
def root(image: Path, manifest: dict[str, Any], tools: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root file system, extracted with its owners, modes and hard links."""
    folder = tmp_path_factory.mktemp("image")
    name = manifest["artefacts"]["erofs"]["name"]
    argv = ["fsck.erofs", "--extract=/build/root", "--preserve", "--xattrs", f"/input/{name}"]
    run(sandbox.in_tree(tools, argv, binds={folder: "/build"}, read_only={image: "/input"}))
    return folder / "root"


@pytest.fixture(scope="session")
def host(root: Path) -> testinfra.host.Host:
    """The root as a testinfra host: commands run in a chroot."""
    return testinfra.get_host(str(root), connection="chroot")

"""Two builds of one lock, shared by all tests of the folder: `built` with the machine's own cache, `rebuilt` without."""

import shutil
from pathlib import Path

import builds
import pytest
from builds import Project, Tree

from kmbuild.config import Config

NOWHERE = "file:///nonexistent/debian"
ROOM_GB = 20
FAR_AWAY = {"TZ": "Pacific/Kiritimati", "LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8"}


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """A copy of the checkout that nobody else writes to, on a disk with room for all that is built of it."""
    place = tmp_path_factory.getbasetemp()
    if (free := shutil.disk_usage(place).free) < ROOM_GB * 10**9:
        pytest.exit(
            f"{place}: {free / 1e9:.1f} GB free, and builds need {ROOM_GB}: make room there, or set TMPDIR",
            returncode=1,
        )
    return builds.copy_checkout(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="session")
def normal_cache() -> Path:
    """The machine's own build cache."""
    return Config(version=1).cache_path


@pytest.fixture(scope="session")
def built(tree: Tree, tmp_path_factory: pytest.TempPathFactory, normal_cache: Path) -> Project:
    """The image as everybody builds it, out of the normal cache."""
    settings = {"cache": {"path": str(normal_cache), "size_limit_gib": 500}}
    project = builds.make_project(tree, tmp_path_factory.mktemp("first"), settings)
    project.build()
    return project


@pytest.fixture(scope="session")
def rebuilt(tree: Tree, built: Project, tmp_path_factory: pytest.TempPathFactory, normal_cache: Path) -> Project:
    """The same image made anew: nothing but downloads and Go's cache is shared, and no archive can be reached."""
    copy = builds.copy_checkout(tmp_path_factory.mktemp("another") / "place/of-a-longer-name", tree.path)
    settings = {"debian": {"mirror": NOWHERE, "security_mirror": NOWHERE}}
    project = builds.make_project(copy, tmp_path_factory.mktemp("second"), settings)
    builds.lend(normal_cache, project.cache, {})
    project.build(env=FAR_AWAY, wrap=["sh", "-c", 'umask 077; exec "$@"', "sh"])
    return project


@pytest.fixture
def project(tree: Tree, built: Project, tmp_path: Path) -> Project:
    """An empty project whose cache is still to be filled with `lend`."""
    return builds.make_project(tree, tmp_path / "project")

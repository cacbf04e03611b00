"""Only what changed is made again, and -v says why; a damaged cache heals itself."""

import json
import shutil
from pathlib import Path

import builds
import pytest
from builds import Project, Tree

pytestmark = pytest.mark.turn(2)


@pytest.fixture
def own_tree(tree: Tree, tmp_path: Path) -> Tree:
    """A copy of the checkout that the test may edit."""
    shutil.copytree(tree.path, tmp_path / "tree", symlinks=True)
    return Tree(tmp_path / "tree")


def flip_byte(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        value = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([value ^ 1]))


def roothash(project: Project) -> str:
    return str(json.loads((project.out / "manifest.json").read_text())["roothash"])


def test_nothing_changed_makes_no_stage(built: Project) -> None:
    before = {path.name: path.stat().st_ino for path in built.out.iterdir()}
    output = built.build("-v")
    assert builds.made(output) == []
    assert len(output.splitlines()) == 1
    assert {path.name: path.stat().st_ino for path in built.out.iterdir()} == before


def test_a_changed_overlay_makes_the_disk_stage_alone_and_is_named(
    own_tree: Tree, built: Project, normal_cache: Path, tmp_path: Path
) -> None:
    project = builds.make_project(own_tree, tmp_path / "project")
    builds.lend(normal_cache, project.cache, built.ids())
    with (own_tree.path / "overlays/root/etc/ssh/sshd_config.d/50-kubermesh.conf").open("a") as file:
        file.write("# changed\n")
    output = project.build("-v")
    reasons = [line for line in output.splitlines() if " -> " in line]
    assert builds.made(output) == ["disk"]
    assert [line.rpartition(": ")[0] for line in reasons] == ["disk: overlays/root"]
    assert roothash(project) != roothash(built)


def test_a_touched_overlay_makes_nothing(own_tree: Tree, built: Project, normal_cache: Path, tmp_path: Path) -> None:
    project = builds.make_project(own_tree, tmp_path / "project")
    builds.lend(normal_cache, project.cache, built.ids())
    (own_tree.path / "overlays/root/etc/ssh/sshd_config.d/50-kubermesh.conf").touch()
    assert builds.made(project.build()) == []


def test_a_changed_byte_in_what_the_disk_is_made_of_is_noticed_and_mended(
    project: Project, built: Project, normal_cache: Path
) -> None:
    ids = built.ids()
    builds.lend(normal_cache, project.cache, ids, without=["root", "disk"])
    place = builds.copy_entry(normal_cache, project.cache, "root", ids["root"])
    flip_byte(place / "base.erofs", 100 << 20)
    done = project.run("image")
    damage = f"cache entry root/{ids['root'][:12]} was damaged (base.erofs) and is removed; run the command again"
    assert (done.returncode, done.stderr) == (1, f"kmbuild: {damage}\n")
    assert not place.exists()
    assert builds.made(project.build()) == ["root", "disk"]
    assert (project.out / "SHA256SUMS").read_text() == (built.out / "SHA256SUMS").read_text()


@pytest.mark.parametrize("damage", ["truncated record", "truncated file", "missing file"])
def test_a_torn_entry_is_made_again(project: Project, built: Project, normal_cache: Path, damage: str) -> None:
    ids = built.ids()
    builds.lend(normal_cache, project.cache, ids, without=["disk"])
    place = builds.copy_entry(normal_cache, project.cache, "disk", ids["disk"])
    if damage == "truncated record":
        (place / "entry.json").write_text((place / "entry.json").read_text()[:100])
    elif damage == "truncated file":
        (place / "manifest.json").write_text("{")
    else:
        (place / "sbom.cdx.json").unlink()
    assert builds.made(project.build()) == ["disk"]
    assert (project.out / "SHA256SUMS").read_text() == (built.out / "SHA256SUMS").read_text()

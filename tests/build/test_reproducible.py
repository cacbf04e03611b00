"""Two builds of one lock give the same bytes, wherever, whenever and by whomever they are made."""

import json
import subprocess
from pathlib import Path

import builds
import pytest
from builds import Project

from kmbuild.cache import Cache
from kmbuild.stages import ALL

pytestmark = pytest.mark.turn(2)


def first_difference(left: Path, right: Path, ids: dict[str, str]) -> str:
    """Name the first file of the first stage, in the order of the build, that differs between two caches."""
    for stage in ALL:
        entries = [Cache(cache).find(stage.name, ids[stage.name]) for cache in (left, right)]
        if entries[0] is None or entries[1] is None:
            return f"stage {stage.name}: not in both caches"
        for name in sorted({*entries[0].files, *entries[1].files}):
            if entries[0].files.get(name) != entries[1].files.get(name):
                return f"stage {stage.name}: {name}"
    return "no stage"


def test_a_second_build_makes_everything_anew(built: Project, rebuilt: Project) -> None:
    stages = {path.parent.name for path in (rebuilt.cache / "stages").glob("*/*") if not path.is_symlink()}
    assert stages == {stage.name for stage in ALL}


def test_folder_umask_time_zone_locale_and_mirror_are_no_inputs(built: Project, rebuilt: Project) -> None:
    assert rebuilt.ids() == built.ids()


def test_the_disk_image_is_the_same_byte_for_byte(built: Project, rebuilt: Project, normal_cache: Path) -> None:
    name = json.loads((built.out / "manifest.json").read_text())["artefacts"]["raw"]["name"]
    done = subprocess.run(["cmp", built.out / name, rebuilt.out / name], capture_output=True, text=True, check=False)
    where = first_difference(normal_cache, rebuilt.cache, built.ids())
    assert done.returncode == 0, f"{done.stdout}{done.stderr}first difference: {where}"


def test_every_artefact_is_the_same(built: Project, rebuilt: Project) -> None:
    assert (rebuilt.out / "SHA256SUMS").read_text() == (built.out / "SHA256SUMS").read_text()


def test_every_stage_gives_the_same_files(built: Project, rebuilt: Project, normal_cache: Path) -> None:
    assert first_difference(normal_cache, rebuilt.cache, built.ids()) == "no stage"


def test_a_build_from_a_lock_reads_no_package_index(rebuilt: Project) -> None:
    assert not (rebuilt.cache / "apt").exists()


def test_a_package_that_is_nowhere_is_named(project: Project, rebuilt: Project) -> None:
    (project.path / "kubermesh.yaml").write_text((rebuilt.path / "kubermesh.yaml").read_text())
    text = (project.path / "kubermesh.yaml").read_text().replace(str(rebuilt.cache), str(project.cache))
    (project.path / "kubermesh.yaml").write_text(text)
    done = project.run("image", "--until", "tools")
    assert done.returncode == 1
    assert "kmbuild: packages adduser, apt, " in done.stderr
    assert done.stderr.rstrip().endswith("run `kmbuild lock` for today's versions")
    assert builds.leftovers(project) == {}

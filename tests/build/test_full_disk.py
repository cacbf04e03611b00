"""A full disk, in whichever stage it happens, is one line, and nothing of the attempt stays."""

import subprocess
from pathlib import Path

import builds
import pytest
from builds import Project

pytestmark = pytest.mark.turn(3)

# On a small file system of its own at $2, filled from $2.seed; what is left there afterwards goes to left.txt.
SMALL_DISK = """\
set -eu
mount -t tmpfs -o "size=$1m" tmpfs "$2"
cp -a "$2.seed/." "$2"
place=$2
shift 2
status=0
"$@" || status=$?
[ ! -d "$place/tmp" ] || find "$place/tmp" -mindepth 1 > left.txt
find "$place" -name '.*' >> left.txt
awk -v place="$place/" 'index($2, place) == 1' /proc/self/mounts >> left.txt
exit $status
"""


def run_on_small_disk(project: Project, place: Path, size_mib: int, *words: str) -> subprocess.CompletedProcess[str]:
    """Run kmbuild with `place` on a file system of its own, in a mount namespace that ends with it."""
    place.mkdir(exist_ok=True)
    Path(f"{place}.seed").mkdir(exist_ok=True)
    wrap = ["unshare", "--mount", "--propagation", "private", "sh", "-c", SMALL_DISK, "sh", str(size_mib), str(place)]
    return project.run("image", *words, wrap=wrap)


@pytest.mark.parametrize(
    ("stage", "size_mib"),
    [
        pytest.param("tools", 64, id="tools: laying the repository"),
        pytest.param("tools", 400, id="tools: unpacking"),
        pytest.param("components-etcd", 24, id="components: linking"),
        pytest.param("tree", 64, id="tree: laying the repository"),
        pytest.param("tree", 450, id="tree: unpacking"),
        pytest.param("containers", 40, id="containers: importing"),
        pytest.param("root", 100, id="root: joining"),
        pytest.param("root", 900, id="root: compressing"),
        pytest.param("initrd", 40, id="initrd: extracting modules"),
        pytest.param("disk", 100, id="disk: packing overlays"),
        pytest.param("disk", 350, id="disk: writing partitions"),
    ],
)
def test_a_full_cache_disk_is_one_line(
    project: Project, built: Project, normal_cache: Path, stage: str, size_mib: int
) -> None:
    builds.lend(normal_cache, Path(f"{project.cache}.seed"), built.ids(), without=[stage])
    done = run_on_small_disk(project, project.cache, size_mib, "--until", stage)
    expected = f"{stage}: no space left on the disk of {project.cache}; free some, or set cache.path elsewhere"
    assert done.stderr == f"kmbuild: {expected}\n", done.stdout
    assert done.returncode == 1
    assert (project.path / "left.txt").read_text() == ""
    assert builds.leftovers(project) == {}


def test_a_full_output_disk_is_one_line(project: Project, built: Project, normal_cache: Path) -> None:
    builds.lend(normal_cache, project.cache, built.ids())
    done = run_on_small_disk(project, project.out, 64)
    hint = "set output in kubermesh.yaml to a folder with room"
    assert done.stderr == f"kmbuild: {project.out}: No space left on device; {hint}\n"
    assert done.returncode == 1
    assert (project.path / "left.txt").read_text() == ""
    assert builds.leftovers(project) == {}

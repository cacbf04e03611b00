"""An interrupted build leaves no mount, no process and no half-written file, and the next one succeeds."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import builds
import pytest
from builds import Project

pytestmark = pytest.mark.turn(3)


@pytest.fixture
def unfinished(project: Project, built: Project, normal_cache: Path) -> Project:
    """A project whose tree is still to be made."""
    builds.lend(normal_cache, project.cache, built.ids(), without=["tree", "containers", "root", "initrd", "disk"])
    return project


def start(project: Project, *words: str) -> subprocess.Popen[str]:
    # Who starts the tests in the background has it ignored, and children would as well.
    return subprocess.Popen(
        ["env", "--default-signal=INT", *project.argv("image", *words)],
        cwd=project.path,
        env=project.tree.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.fixture
def in_the_tree_stage(unfinished: Project) -> Iterator[subprocess.Popen[str]]:
    """A build in the midst of the tree stage: packages are being configured in the chroot."""
    process = start(unfinished, "--until", "tree")
    work = f"*/tree.{process.pid}/*/dib_build.*/mnt/usr/bin/dpkg"
    builds.wait_for("dpkg in the tree", lambda: process.poll() is not None or list(unfinished.cache.glob(work)))
    assert process.poll() is None, process.communicate()
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate()


def test_ctrl_c_ends_in_one_line_and_leaves_nothing(
    unfinished: Project, in_the_tree_stage: subprocess.Popen[str]
) -> None:
    os.killpg(in_the_tree_stage.pid, signal.SIGINT)  # as a terminal does: to the whole foreground group
    _, error = in_the_tree_stage.communicate(timeout=60)
    assert error.strip() == "kmbuild: interrupted"
    assert in_the_tree_stage.returncode != 0
    assert builds.leftovers(unfinished) == {}
    assert not unfinished.out.exists()


def test_a_signal_to_the_tool_alone_ends_the_build_too(
    unfinished: Project, in_the_tree_stage: subprocess.Popen[str]
) -> None:
    in_the_tree_stage.send_signal(signal.SIGINT)
    _, error = in_the_tree_stage.communicate(timeout=60)
    assert error.strip() == "kmbuild: interrupted"
    assert builds.leftovers(unfinished) == {}


def test_after_a_kill_only_the_work_folder_stays_and_the_next_build_succeeds(
    unfinished: Project, in_the_tree_stage: subprocess.Popen[str]
) -> None:
    in_the_tree_stage.kill()
    in_the_tree_stage.communicate(timeout=60)
    builds.wait_for("end of all processes", lambda: not builds.processes_of(unfinished.path), 20)
    left = builds.leftovers(unfinished)
    assert set(left) == {"work"}
    assert {Path(path).name.removesuffix(".lock") for path in left["work"]} == {f"tree.{in_the_tree_stage.pid}"}
    assert builds.made(unfinished.build("--until", "tree")) == ["tree"]
    assert builds.leftovers(unfinished) == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_build_stopped_while_it_writes_the_output_leaves_no_half_image(
    project: Project, built: Project, normal_cache: Path, number: signal.Signals
) -> None:
    builds.lend(normal_cache, project.cache, built.ids())
    process = start(project)
    builds.wait_for("start of the copy", lambda: process.poll() is not None or list(project.out.glob(".*")))
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert not (project.out / "SHA256SUMS").exists()
    if number == signal.SIGINT:
        assert builds.leftovers(project) == {}
    project.build()
    assert builds.leftovers(project) == {}
    assert (project.out / "SHA256SUMS").read_text() == (built.out / "SHA256SUMS").read_text()
    subprocess.run(["sha256sum", "--quiet", "--check", "SHA256SUMS"], cwd=project.out, check=True)

"""Builds for the tests: a copy of the checkout, caches that lend finished stages from another, and what a build may leave."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
PARTS = ("agent", "builder", "components", "elements", "overlays", "qemu")
DEADLINE_S = 900


@dataclass(frozen=True)
class Tree:
    """A copy of the checkout."""

    path: Path

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """The caller's environment, with this copy before the installed one."""
        paths = ":".join(str(self.path / name) for name in ("builder", "agent", "qemu"))
        return {**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", **(extra or {})}


@dataclass(frozen=True)
class Project:
    """A folder with a lock and a configuration, built from a tree into a cache of its own."""

    tree: Tree
    path: Path

    @property
    def cache(self) -> Path:
        return self.path / "cache"

    @property
    def out(self) -> Path:
        return self.path / "out"

    def argv(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "kmbuild", *words]

    def run(
        self, *words: str, env: Mapping[str, str] | None = None, wrap: Iterable[str] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Run kmbuild here, `wrap` before it; returns when it ends, whatever its status."""
        return subprocess.run(
            [*wrap, *self.argv(*words)],
            cwd=self.path,
            env=self.tree.environment(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )

    def build(self, *words: str, env: Mapping[str, str] | None = None, wrap: Iterable[str] = ()) -> str:
        """Run `kmbuild image` and expect success; returns its output."""
        done = self.run("image", *words, env=env, wrap=wrap)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def ids(self) -> dict[str, str]:
        """Content ids of the image in the output folder."""
        stages: dict[str, str] = json.loads((self.out / "manifest.json").read_text())["stages"]
        return stages


def copy_checkout(target: Path, source: Path = CHECKOUT) -> Tree:
    """Copy what a build reads."""
    for name in PARTS:
        ignore = shutil.ignore_patterns("__pycache__", ".*_cache")
        shutil.copytree(source / name, target / name, symlinks=True, ignore=ignore)
    shutil.copyfile(source / "kubermesh.lock", target / "kubermesh.lock")
    return Tree(target)


def make_project(tree: Tree, path: Path, settings: Mapping[str, object] | None = None) -> Project:
    """Make a project folder with the tree's lock; its cache is `path`/cache unless `settings` say otherwise."""
    path.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(tree.path / "kubermesh.lock", path / "kubermesh.lock")
    config = {"version": 1, "cache": {"path": str(path / "cache"), "size_limit_gib": 500}, **(settings or {})}
    (path / "kubermesh.yaml").write_text(yaml.safe_dump(config))
    return Project(tree, path)


def lend(source: Path, target: Path, ids: Mapping[str, str], without: Iterable[str] = ()) -> None:
    """Make a cache that has another's downloads and, by link, its finished stages `ids` but those in `without`."""
    for name in ("debs", "go"):
        target.mkdir(exist_ok=True)
        if not (target / name).exists():
            (target / name).symlink_to(source / name)
    for stage, content in ids.items():
        if stage not in without:
            (target / "stages" / stage).mkdir(parents=True, exist_ok=True)
            (target / "stages" / stage / content).symlink_to(source / "stages" / stage / content)


def copy_entry(source: Path, target: Path, stage: str, content: str) -> Path:
    """Copy one finished stage, so that a test may damage it."""
    place = target / "stages" / stage / content
    shutil.copytree(source / "stages" / stage / content, place, symlinks=True)
    return place


def made(output: str) -> list[str]:
    """Names of the stages that a build made, in the order in which they were done."""
    return [line.partition(":")[0] for line in output.splitlines() if ": done in " in line]


def mounts_below(folder: Path) -> list[str]:
    """Mount points of this namespace below a folder."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return [line for line in lines if line.split()[1].startswith(f"{folder}/")]


def processes_of(folder: Path) -> list[str]:
    """Command lines of processes that name a folder, or stand in it, or have it as their root."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            links = [str((place / name).readlink()) for name in ("cwd", "root")]
        except OSError:
            continue
        if place.name != str(os.getpid()) and any(str(folder) in text for text in (words, *links)):
            found.append(f"{place.name} {words}")
    return found


def wait_for(what: str, look: Callable[[], object], timeout_s: float = 180) -> None:
    """Wait until `look` returns something true; the failure shows what was seen last."""
    deadline = time.monotonic() + timeout_s
    seen = look()
    while not seen:
        assert time.monotonic() < deadline, f"no {what} within {timeout_s:g} s; seen last: {seen!r}"
        time.sleep(0.05)
        seen = look()


def leftovers(project: Project) -> dict[str, list[str]]:
    """Mounts, processes and half-written files of a build that has ended; empty when it was clean."""
    out = sorted(project.out.glob(".*")) if project.out.exists() else []
    found = {
        "mounts": mounts_below(project.path),
        "processes": processes_of(project.path),
        "work": [str(path) for path in sorted((project.cache / "tmp").glob("*"))],
        "out": [str(path) for path in out],
    }
    return {kind: rows for kind, rows in found.items() if rows}

"""Content ids: they change with every input and nothing else, and a rebuild says which input it was."""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from kmbuild import build, source
from kmbuild.archive import Package
from kmbuild.cache import Cache
from kmbuild.config import Config, Kernel
from kmbuild.lock import Lock
from kmbuild.stage import Context, Inputs, Stage, content_id
from kmbuild.stages import ALL

DEB = Package("bash", "5.2", "main", "pool/bash.deb", 9, "ab" * 32)
LOCK = Lock(1, "trixie", 1700000000, {"tools": ["go"], "tree": ["bash"]}, {"tools": [DEB], "tree": [DEB]})


def context(tmp_path: Path, config: Config | None = None, lock: Lock = LOCK) -> Context:
    return Context(config or Config(version=1), lock, Cache(tmp_path / "cache"))


def all_ids(tmp_path: Path, config: Config | None = None, lock: Lock = LOCK) -> dict[str, str]:
    here = context(tmp_path, config, lock)
    build.compute_ids(ALL, here)
    return here.ids


def changed(tmp_path: Path, config: Config | None = None, lock: Lock = LOCK) -> set[str]:
    before, after = all_ids(tmp_path), all_ids(tmp_path, config, lock)
    return {name for name in before if before[name] != after[name]}


AFTER_TREE = {"tree", "containers", "root", "initrd", "disk"}
COMPONENTS = {stage.name for stage in ALL if stage.name.startswith("components-")}


def test_the_same_inputs_give_the_same_ids(tmp_path: Path) -> None:
    assert changed(tmp_path) == set()


@pytest.mark.parametrize(
    ("config", "stages"),
    [
        (Config(version=1, compression="small"), {"root", "disk"}),
        (Config(version=1, kernel=Kernel(arguments=("quiet",))), {"disk"}),
        (Config(version=1, image_version="0.2.0"), {"initrd", "disk"}),
        (Config(version=1, components={"cni": "9.9.9"}), {"components-cni", "containers", "root", "disk"}),
        (
            Config(version=1, components={"coredns": "9.9.9"}),
            {"components-coredns", "containers", "root", "disk"},
        ),
        (Config(version=1, components={"go": "9.9.9"}), {*COMPONENTS, "containers", "root", "initrd", "disk"}),
        (Config(version=1, output="elsewhere"), set()),
    ],
    ids=["compression", "kernel arguments", "image version", "cni", "coredns", "go", "output"],
)
def test_a_setting_reaches_the_stages_that_it_feeds(tmp_path: Path, config: Config, stages: set[str]) -> None:
    assert changed(tmp_path, config) == stages


def test_a_package_of_the_tree_leaves_the_tools_alone(tmp_path: Path) -> None:
    newer = Package("bash", "5.3", "main", "pool/bash.deb", 9, "cd" * 32)
    lock = Lock(1, "trixie", LOCK.epoch, LOCK.requested, {"tools": [DEB], "tree": [newer]})
    assert changed(tmp_path, lock=lock) == AFTER_TREE


def test_a_package_of_the_tools_leaves_tree_and_compiled_programs_alone(tmp_path: Path) -> None:
    lock = Lock(1, "trixie", LOCK.epoch, LOCK.requested, {"tools": [], "tree": [DEB]})
    assert changed(tmp_path, lock=lock) == {"tools", "containers", "root", "initrd", "disk"}


def test_the_epoch_of_the_lock_is_an_input(tmp_path: Path) -> None:
    lock = Lock(1, "trixie", LOCK.epoch + 1, LOCK.requested, LOCK.packages)
    assert changed(tmp_path, lock=lock) == AFTER_TREE


def test_stages_come_after_what_they_need() -> None:
    seen: set[str] = set()
    for stage in ALL:
        assert {*stage.needs, *stage.runs_in} <= seen
        seen.add(stage.name)


@pytest.mark.parametrize("key", ["a", "b"])
def test_every_input_counts_and_so_does_the_name_of_the_stage(key: str) -> None:
    inputs = {"a": "1", "b": "1"}
    assert content_id("x", inputs) == content_id("x", dict(reversed(inputs.items())))
    assert content_id("x", {**inputs, key: "2"}) != content_id("x", inputs)
    assert content_id("y", inputs) != content_id("x", inputs)


def make_module(folder: Path, text: str) -> ModuleType:
    path = folder / "stage_code.py"
    path.write_text(text)
    module = ModuleType("stage_code")
    module.__file__ = str(path)
    return module


def test_the_code_of_a_stage_is_an_input(tmp_path: Path) -> None:
    ids = []
    for number, text in enumerate(("x = 1\n", "x = 2\n")):
        folder = tmp_path / str(number)
        folder.mkdir()
        stage = Stage("one", (), lambda _context: {}, lambda _context, _work: None, (make_module(folder, text),))
        ids.append(content_id("one", stage.all_inputs(context(tmp_path))))
    assert ids[0] != ids[1]


def explained(here: Context, inputs: Inputs) -> list[str]:
    return build.explain(here, "one", inputs)


def test_a_rebuild_names_what_changed_came_and_went(tmp_path: Path) -> None:
    here = context(tmp_path)
    assert explained(here, {"a": "1"}) == ["no earlier result"]
    with here.cache.workspace("one") as work:
        here.cache.store("one", "aa", {"a": "1", "b": "1"}, work, time.monotonic(), {})
    assert explained(here, {"a": "2", "b": "1"}) == ["a: 1 -> 2"]
    assert explained(here, {"b": "1", "c": "3"}) == ["a: 1 -> absent", "c: absent -> 3"]
    assert explained(here, {"a": "1", "b": "1"}) == ["its result is gone or was damaged"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "folder"
    (root / "sub").mkdir(parents=True)
    (root / "sub/file").write_text("text")
    (root / "link").symlink_to("sub/file")
    return root


def test_a_folder_s_digest_sees_names_contents_links_and_the_executable_bit(folder: Path) -> None:
    seen = [source.digest(folder)]
    (folder / "sub/file").write_text("Text")
    seen.append(source.digest(folder))
    (folder / "sub/file").chmod(0o755)
    seen.append(source.digest(folder))
    (folder / "link").unlink()
    (folder / "link").symlink_to("sub")
    seen.append(source.digest(folder))
    (folder / "sub/file").rename(folder / "sub/other")
    seen.append(source.digest(folder))
    assert len(set(seen)) == len(seen)


def test_a_folder_s_digest_is_blind_to_times_other_modes_place_and_caches(folder: Path, tmp_path: Path) -> None:
    before = source.digest(folder)
    os.utime(folder / "sub/file", (1, 1))
    (folder / "sub/file").chmod(0o600)
    (folder / "sub/__pycache__").mkdir()
    (folder / "sub/__pycache__/x.pyc").write_text("x")
    (folder / "y.pyc").write_text("y")
    assert source.digest(folder.rename(tmp_path / "elsewhere")) == before


SPARSE = {
    "empty": (0, {}),
    "one hole": (10 << 20, {}),
    "data in the middle": (20 << 20, {9 << 20: b"middle"}),
    "data at both ends": ((8 << 20) + 5, {0: b"start", 8 << 20: b"close"}),
    "no hole": (6 << 20, {0: b"ab" * (3 << 20)}),
    "hole of no whole chunk": ((5 << 20) + 4097, {(4 << 20) + 4096: b"x" * 4096}),
}


@pytest.mark.parametrize("name", SPARSE)
def test_the_digest_of_a_sparse_file_is_that_of_sha256sum(tmp_path: Path, name: str) -> None:
    size, pieces = SPARSE[name]
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(size)
        for offset, data in pieces.items():
            file.seek(offset)
            file.write(data)
    known = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]
    assert source.file_digest(path) == known == hashlib.sha256(path.read_bytes()).hexdigest()


def test_data_ranges_cover_all_data_and_no_more_than_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(64 << 20)
        for offset in (8 << 20, 32 << 20):
            file.seek(offset)
            file.write(b"data")
    with path.open("rb") as file:
        ranges = list(source.data_ranges(file.fileno(), 64 << 20))
    for offset in (8 << 20, 32 << 20):
        assert any(start <= offset and offset + 4 <= end for start, end in ranges)
    assert sum(end - start for start, end in ranges) < 1 << 20


def test_code_of_the_checkout_is_found_from_anywhere(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", "from kmbuild.source import folder; print(folder('elements'))"]
    found = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()
    assert (Path(found) / "kubermesh-tree").is_dir()

"""The build cache: entries whole or absent, damage noticed, the least recently used evicted, dead builds swept."""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kmbuild.cache import Cache, Entry, disk_usage
from kmplan.errors import UserError


def put(cache: Cache, stage: str, content: str, size: int = 5) -> Entry:
    with cache.workspace(stage) as work:
        (work / "file").write_bytes(b"x" * size)
        return cache.store(stage, content, {"input": content}, work, time.monotonic(), {})


def age(cache: Cache, entry: Entry, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(cache.place(entry.stage, entry.id) / "entry.json", (then, then))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def test_what_is_stored_is_found_with_inputs_sizes_and_hashes(cache: Cache) -> None:
    entry = put(cache, "tree", "aa")
    assert cache.find("tree", "aa") == entry
    assert entry.inputs == {"input": "aa"}
    assert entry.files["file"].size == 5
    assert entry.files["file"].sha256 == hashlib.sha256(b"xxxxx").hexdigest()


def test_another_id_is_not_found(cache: Cache) -> None:
    put(cache, "tree", "aa")
    assert cache.find("tree", "bb") is None
    assert cache.find("root", "aa") is None


def test_a_hash_that_is_known_is_not_computed_again(cache: Cache) -> None:
    with cache.workspace("disk") as work:
        (work / "raw").write_bytes(b"")
        entry = cache.store("disk", "aa", {}, work, time.monotonic(), {"raw": "known"})
    assert entry.files["raw"].sha256 == "known"


@pytest.mark.parametrize("damage", ["gone", "shorter", "record cut", "record empty"])
def test_a_damaged_entry_counts_as_absent_and_goes(cache: Cache, damage: str) -> None:
    put(cache, "tree", "aa")
    folder = cache.place("tree", "aa")
    record = (folder / "entry.json").read_text()
    match damage:
        case "gone":
            (folder / "file").unlink()
        case "shorter":
            (folder / "file").write_bytes(b"xxxx")
        case "record cut":
            (folder / "entry.json").write_text(record[:-20])
        case "record empty":
            (folder / "entry.json").write_text("")
    assert cache.find("tree", "aa") is None
    assert not folder.exists()


def test_changed_bytes_of_the_same_length_are_named(cache: Cache) -> None:
    entry = put(cache, "tree", "aa")
    assert cache.damaged(entry) == []
    (cache.place("tree", "aa") / "file").write_bytes(b"xxxxy")
    assert cache.damaged(entry) == ["file"]


def test_a_work_folder_that_was_not_stored_is_gone_and_no_entry_appears(cache: Cache) -> None:
    with pytest.raises(RuntimeError), cache.workspace("tree") as work:
        (work / "half").write_text("half")
        raise RuntimeError
    assert list(cache.tmp.iterdir()) == []
    assert cache.entries() == []


def test_a_failing_store_leaves_no_entry(cache: Cache) -> None:
    (cache.stages / "tree").write_text("in the way")
    with pytest.raises(OSError, match="tree"):
        put(cache, "tree", "aa")
    assert list(cache.tmp.iterdir()) == []
    assert cache.entries() == []


def test_the_least_recently_used_goes_first(cache: Cache) -> None:
    entries = [put(cache, "tree", name, 100_000) for name in ("aa", "bb", "cc")]
    for entry, seconds in zip(entries, (30, 20, 10), strict=True):
        age(cache, entry, seconds)
    later = Cache(cache.path)  # another build: it has used nothing yet
    assert [entry.id for entry in later.evict(entries[0].disk_bytes * 2)] == ["aa"]
    assert [entry.id for entry in later.entries()] == ["bb", "cc"]


def test_looking_an_entry_up_makes_it_recently_used(cache: Cache) -> None:
    first, second = put(cache, "tree", "aa", 100_000), put(cache, "tree", "bb", 100_000)
    age(cache, first, 30)
    age(cache, second, 20)
    Cache(cache.path).find("tree", "aa")
    assert [entry.id for entry in Cache(cache.path).evict(first.disk_bytes)] == ["bb"]


def test_what_this_build_used_stays_whatever_the_limit(cache: Cache) -> None:
    put(cache, "tree", "aa", 100_000)
    assert cache.evict(0) == []
    assert cache.find("tree", "aa")


def test_within_the_limit_nothing_goes(cache: Cache) -> None:
    entry = put(cache, "tree", "aa", 100_000)
    assert Cache(cache.path).evict(entry.disk_bytes) == []


def test_disk_usage_leaves_holes_out(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 30)
        file.write(b"x" * 8192)
    assert 8192 <= disk_usage(tmp_path) < 1 << 20


def test_the_newest_entry_is_the_one_used_last(cache: Cache) -> None:
    age(cache, put(cache, "tree", "aa"), 5)
    age(cache, put(cache, "tree", "bb"), 50)
    newest = cache.newest("tree")
    assert newest is not None
    assert newest.id == "aa"
    assert cache.newest("root") is None


HOLD = """
import sys
from pathlib import Path
from kmbuild.cache import Cache
with Cache(Path(sys.argv[1])).workspace("tree") as work:
    (work / "half").write_text("half")
    print(work, flush=True)
    sys.stdin.read()
"""


def test_sweep_removes_the_work_of_a_killed_build_and_not_that_of_a_live_one(cache: Cache) -> None:
    argv = [sys.executable, "-c", HOLD, str(cache.path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as build:
        assert build.stdout is not None
        work = Path(build.stdout.readline().strip())
        cache.sweep()
        assert (work / "half").exists()
        build.kill()
        build.wait()
        assert (work / "half").exists()
        cache.sweep()
        assert list(cache.tmp.iterdir()) == []


def test_a_cache_that_cannot_be_made_is_one_line_with_the_key_to_set(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as raised:
        Cache(tmp_path / "file")
    assert str(raised.value).endswith("; set cache.path in kubermesh.yaml to a folder you can write")
    assert "\n" not in str(raised.value)

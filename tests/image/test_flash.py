"""The built image on a stick: what is there in the end, and what a drive that is no good comes to."""

import errno
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from kmbuild import bmap, esp, sandbox
from kmbuild import stick as engine
from kmbuild.cli import kmbuild
from kmbuild.init import create
from kmbuild.locate import locate_image
from kmcluster.image import Image
from kmcluster.tools import tool
from kmplan.addresses import random_prefix
from kmplan.cluster import ClusterFile
from kmplan.drives import Drive
from kmplan.errors import UserError
from kmplan.run import run
from kmplan.seed import parse_bundle, parse_join

GIB = 1 << 30


@pytest.fixture(scope="module")
def built(image: Path) -> Image:
    return locate_image(image)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cluster") / "shop"
    create(folder, ClusterFile(version=1, name="shop", prefix=str(random_prefix())))
    return folder


def stick(folder: Path, size: int = 4 * GIB) -> Path:
    path = folder / "stick.img"
    with path.open("wb") as file:
        file.truncate(size)
    return path


def flash(built: Image, target: Path, shop: Path, *more: str) -> Result:
    return CliRunner().invoke(kmbuild, ["flash", str(built.raw), str(target), "--cluster", str(shop), *more])


def credential(built: Image, target: Path, name: str) -> bytes:
    """What systemd would find on the stick."""
    place = f"{target}@@{esp.find(built.raw)}"
    sealed = run(tool(built.tools, "mcopy", "-i", place, f"::{esp.FOLDER}/{name}.cred", "-")).stdout
    argv = ["systemd-creds", "decrypt", "--allow-null", f"--name={name}", "-", "-"]
    return run(sandbox.in_tree(built.tools, argv), input=sealed).stdout.encode()


def test_a_seeds_stick_has_the_image_and_all_keys(built: Image, shop: Path, tmp_path: Path) -> None:
    target = stick(tmp_path)
    result = flash(built, target, shop, "--seed", "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["credentials"] == ["kubermesh.seed"] and said["written_bytes"] < said["image_bytes"] / 4
    bundle = parse_bundle(credential(built, target, "kubermesh.seed"))
    assert (bundle.cluster.name, bundle.node.number, bundle.node.name) == ("shop", 1, "shop-1")
    # All but the partition with the credentials is the image.
    block_map = bmap.read(built.raw.with_name(f"{built.raw.name}.bmap"))
    start = esp.find(built.raw)
    with target.open("rb") as written, built.raw.open("rb") as source:
        for one in block_map.ranges:
            if one.start == start:
                continue
            written.seek(one.start)
            source.seek(one.start)
            assert written.read(one.size) == source.read(one.size)


def test_any_other_stick_has_no_secret(built: Image, shop: Path, tmp_path: Path) -> None:
    target = stick(tmp_path)
    result = flash(built, target, shop)
    assert result.exit_code == 0, result.output
    assert "kubermesh.join. You may pull it out." in result.output
    assert parse_join(credential(built, target, "kubermesh.join")).name == "shop"
    listing = run(tool(built.tools, "mdir", "-b", "-i", f"{target}@@{esp.find(built.raw)}", f"::{esp.FOLDER}")).stdout
    assert listing.split() == [f"::/{esp.FOLDER}/kubermesh.join.cred"]
    # Once more: what was there is replaced.
    assert flash(built, target, shop, "--seed").exit_code == 0
    assert parse_bundle(credential(built, target, "kubermesh.seed"))


def test_an_image_without_its_map_is_written_whole(built: Image, shop: Path, tmp_path: Path) -> None:
    """Holes of a copy are where it has zeros: on a used stick they have to be written. Its manifest says whether it is right."""
    raw, target = tmp_path / built.raw.name, stick(tmp_path)
    run(["cp", "--sparse=always", built.raw, raw])
    shutil.copy(built.manifest, tmp_path)
    alone, esp_start = msgspec.structs.replace(built, raw=raw), esp.find(raw)
    known = bmap.read(bmap.beside(built.raw))
    with target.open("r+b") as file:
        for one in known.ranges:
            file.seek(one.start)
            file.write(b"\xee" * one.size)
    result = flash(alone, target, shop, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["written_bytes"] == raw.stat().st_size
    assert parse_join(credential(built, target, "kubermesh.join")).name == "shop"
    with target.open("rb") as written:
        for one in known.ranges:
            if one.start != esp_start:
                written.seek(one.start)
                assert hashlib.sha256(written.read(one.size)).hexdigest() == one.sha256
    with raw.open("r+b") as file:
        file.seek(esp_start)
        file.write(b"altered")
    assert "altered or damaged" in refusal(flash(alone, target, shop))


def test_the_bench_makes_such_a_stick(built: Image, tmp_path: Path) -> None:
    made = tmp_path / "stick"
    engine.make_file(built, made, {"kubermesh.join": b"whom to ask"})
    assert credential(built, made, "kubermesh.join") == b"whom to ask"
    assert run(["cmp", "-n", str(1 << 20), built.raw, made]).stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["stick"]


def test_a_disk_that_cannot_be_pulled_out_is_named_by_its_serial(
    built: Image, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = stick(tmp_path)
    disk = Drive(path=target, size=target.stat().st_size, serial="S3YB", removable=False)
    monkeypatch.setattr("kmbuild.drives.find", lambda _: disk)
    assert "--force S3YB" in refusal(flash(built, target, shop, "--yes"))
    assert "--force S3YB" in refusal(flash(built, target, shop, "--yes", "--force", "S3YC"))
    assert target.stat().st_blocks == 0
    assert flash(built, target, shop, "--yes", "--force", "S3YB").exit_code == 0
    assert parse_join(credential(built, target, "kubermesh.join")).name == "shop"


def test_a_terminal_sees_how_far_it_is(built: Image, shop: Path, tmp_path: Path) -> None:
    """A bar for each of the two steps, up to its end; a log has a line for each."""
    target = stick(tmp_path)
    argv = [sys.executable, "-m", "kmbuild", "flash", built.raw, target, "--cluster", shop]
    mapped = bmap.read(bmap.beside(built.raw)).mapped
    in_log = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert f"writing {mapped >> 20} MiB" in in_log.stderr and "\x1b" not in in_log.stderr
    typescript = ["script", "--quiet", "--return", "--command", shlex.join(map(str, argv)), "/dev/null"]
    shown = subprocess.run(typescript, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True).stdout
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    for step in ("writing", "verifying"):
        assert re.search(rf"{step} .* ([0-9.]+)/\1 MB +[0-9.]+ .B/s", shown), shown
    assert "You may pull it out." in shown


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("step", ["writing", "verifying"])
def test_a_flash_that_is_ended_leaves_nothing_that_boots(
    built: Image, shop: Path, tmp_path: Path, step: str, number: signal.Signals
) -> None:
    """Also on a device that is just as large as the image, where the table's copy has its place."""
    target = stick(tmp_path, built.raw.stat().st_size)
    # Whoever runs the tests in the background has it ignored.
    argv = [
        "env",
        "--default-signal=INT",
        sys.executable,
        "-m",
        "kmbuild",
        "flash",
        built.raw,
        target,
        "--cluster",
        shop,
    ]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout and child.stderr
        shown = next((line for line in child.stderr if line.startswith(step)), "")
        child.send_signal(number)
        rest, said = child.stderr.read(), child.stdout.read()
    assert shown and child.returncode != 0 and said == "", rest
    if number == signal.SIGINT:
        assert f"{target}: interrupted, nothing on it boots now; flash it again" in rest
    with target.open("rb") as file:
        assert not any(file.read(1 << 20))
        file.seek(-(1 << 20), os.SEEK_END)
        assert not any(file.read())


def test_a_dry_run_writes_nothing(built: Image, shop: Path, tmp_path: Path) -> None:
    target = stick(tmp_path)
    result = flash(built, target, shop, "--dry-run")
    assert result.exit_code == 0 and "would be written" in result.output
    assert target.stat().st_blocks == 0


@contextmanager
def loop_device(path: Path, *options: str) -> Iterator[Path]:
    done = subprocess.run(["losetup", "--find", "--show", *options, path], capture_output=True, text=True, check=True)
    device = Path(done.stdout.strip())
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@contextmanager
def mounted(*words: str | Path) -> Iterator[None]:
    subprocess.run(["mount", *words], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", words[-1]], check=True)


def refusal(result: Result) -> str:
    assert isinstance(result.exception, UserError), result.output
    return str(result.exception)


def test_drives_that_must_not_be_written_are_refused(built: Image, shop: Path, tmp_path: Path) -> None:
    path = stick(tmp_path)
    with loop_device(path, "--read-only") as device:
        assert f"{device}: read-only" in refusal(flash(built, device, shop, "--yes"))
    with loop_device(path) as device:
        assert f"{device}: no removable drive; it has no serial" in refusal(flash(built, device, shop, "--yes"))
        subprocess.run(["mkfs.ext4", "-q", device], check=True)
        (tmp_path / "mnt").mkdir()
        with mounted(device, tmp_path / "mnt"):
            assert f"{device}: in use at {tmp_path / 'mnt'}" in refusal(flash(built, device, shop, "--yes"))
    small = stick(tmp_path, GIB)
    assert f"{small}: 1024 MiB, the image needs" in refusal(flash(built, small, shop))


def test_a_drive_that_is_full_or_fails_is_one_line_and_does_not_boot(built: Image, shop: Path, tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    with mounted("-t", "tmpfs", "-o", "size=64m", "tmpfs", tmp_path / "mnt"):
        path = stick(tmp_path / "mnt")
        assert f"{path}: No space left on device; it is full" in refusal(flash(built, path, shop))
        with path.open("rb") as file:
            assert not any(file.read(1 << 20))


@contextmanager
def failing(built: Image, path: Path, kind: str) -> Iterator[Path]:
    """A file system of one file, which QEMU serves (qemu-storage-daemon(1)): it fails where the
    image has most, as a dying stick does.
    """
    most = max(bmap.read(bmap.beside(built.raw)).ranges, key=lambda one: one.size)
    rule = {"event": "none", "iotype": kind, "errno": errno.EIO, "sector": (most.start + most.end) // 2 // 512}
    dying = {"driver": "blkdebug", "node-name": "dying", "image": "file", "inject-error": [rule]}
    export = path.with_suffix(".fuse")
    export.touch()
    argv = tool(
        built.tools, "qemu-storage-daemon",
        "--blockdev", f"driver=file,node-name=file,filename={path}",
        "--blockdev", json.dumps(dying),
        "--export", f"type=fuse,id=fuse,node-name=dying,mountpoint={export},writable=on,allow-other=off",
    )  # fmt: skip
    with subprocess.Popen(argv) as daemon:
        try:
            deadline = time.monotonic() + 30
            while export.stat().st_size == 0:
                assert daemon.poll() is None and time.monotonic() < deadline, "nothing is served"
                time.sleep(0.05)
            yield export
        finally:
            daemon.terminate()


@pytest.mark.parametrize("kind", ["write", "read"])
def test_a_drive_that_fails_is_one_line(built: Image, shop: Path, tmp_path: Path, kind: str) -> None:
    with failing(built, stick(tmp_path), kind) as file, loop_device(file, "--direct-io=on") as device:
        for target in (file, device):
            with pytest.raises(UserError, match=rf"{target}: Input/output error; it fails: take another drive"):
                engine.write(built.raw, bmap.read(bmap.beside(built.raw)), target, lambda _: None, lambda *_: None)
            with target.open("rb") as reader:
                assert not any(reader.read(1 << 20))


def test_a_block_device_is_written_and_read_back_past_the_cache(
    built: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stick(tmp_path)
    block_map, start = bmap.read(bmap.beside(built.raw)), esp.find(built.raw)
    last = max(one.end for one in block_map.ranges if start < one.start and one.end < block_map.size) - 1

    def finish(target: Path) -> None:
        esp.put(built.tools, target, start, {"kubermesh.join": b"whom to ask"})

    def spoil(what: str, done: int, total: int) -> None:
        """Below the device, once: what the kernel has in memory of it stays as it was written."""
        if what == "verifying" and done == min(total, engine.CHUNK):
            with path.open("r+b") as file:
                file.seek(last)
                byte = file.read(1)[0]
                file.seek(last)
                file.write(bytes([byte ^ 1]))

    def alter(target: Path) -> None:
        """Have something else there than was written when the credentials are read back."""
        other = tmp_path / "other"
        other.write_text("of another cluster")
        run(tool(built.tools, "mcopy", "-o", "-i", f"{target}@@{start}", other, f"::{esp.FOLDER}/kubermesh.join.cred"))

    with loop_device(path) as device:
        with monkeypatch.context() as patch, pytest.raises(UserError, match="does not keep what is written"):
            patch.setattr(esp, "forget", alter)
            engine.write(built.raw, block_map, device, finish, lambda *_: None)
        with device.open("rb") as file:
            assert not any(file.read(1 << 20))
        engine.write(built.raw, block_map, device, finish, lambda *_: None)
        assert run(["cmp", "-n", str(1 << 20), built.raw, path]).stdout == ""
        assert credential(built, path, "kubermesh.join") == b"whom to ask"
        with pytest.raises(UserError, match="something else than was written; it is broken: take another drive"):
            engine.write(built.raw, block_map, device, finish, spoil)
    with path.open("rb") as file:
        assert not any(file.read(1 << 20))

"""A machine that moves to a disk or to memory while it runs: what is copied, what is checked, and what it says."""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from agent_disks import OURS, drive, found, wish

from kmagent import (
    disk_copy,
    disk_look,
    disk_state,
    home_disk,
    install,
    machine,
    memory_disk,
    memory_root,
    verity,
)
from kmagent.disk_choice import Found
from kmagent.paths import Paths
from kmplan import boot_images
from kmplan.drives import Drive, Partition
from kmplan.errors import UserError
from kmplan.seed import JoinBundle


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    (tmp_path / "run").mkdir()
    return Paths(run=tmp_path / "run", state=tmp_path / "state")


ROOT_HASH = "11" * 16 + "22" * 16
ROOT, HASHES = "11111111-1111-1111-1111-111111111111", "22222222-2222-2222-2222-222222222222"
TABLE = ["0", "1572864", "verity", "1", "8:18", "8:19", "4096", "4096", "196608", "1", "sha256", ROOT_HASH, "bb"]


def test_the_root_moves_with_all_else_of_its_table() -> None:
    moved = verity.elsewhere(TABLE, "259:2", "259:3")
    assert moved == "0 1572864 verity 1 259:2 259:3 4096 4096 196608 1 sha256 " + ROOT_HASH + " bb"


def parts(device: str) -> list[Partition]:
    labels = ("kubermesh-esp", "kubermesh-a", "kubermesh-a-verity")
    return [
        Partition(path=Path(f"/dev/sdb{number}"), device=f"{device}:{16 + number}", label=label, uuid=uuid)
        for number, (label, uuid) in enumerate(zip(labels, ("u1", ROOT, HASHES), strict=True), 1)
    ]


def test_what_runs_is_what_is_copied(paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = disk_copy.parts_of(drive("sdb", partitions=parts("8")), ROOT, HASHES)
    assert [part.uuid for part in (copied.esp, copied.root, copied.hashes)] == ["u1", ROOT, HASHES]
    with pytest.raises(UserError, match="the system that runs is not on it"):
        disk_copy.parts_of(drive("sdc", partitions=parts("9")), ROOT, "u9")
    definitions = tmp_path / "definitions"
    definitions.mkdir()
    monkeypatch.setattr(home_disk, "DEFINITIONS", definitions)
    folder = disk_copy.define(paths, copied)
    drop_ins = {path.parent.name: path.read_text() for path in folder.glob("*.conf.d/*.conf")}
    assert drop_ins["20-root-a.conf.d"] == "[Partition]\nCopyBlocks=/dev/sdb2\nUUID=" + f"{ROOT}\n"
    assert sorted(drop_ins) == ["10-esp.conf.d", "20-root-a.conf.d", "21-root-a-verity.conf.d"]


class Disks:
    """The machine's disks as lsblk shows them, and where the root was moved to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.drives: list[Drive] = []
        self.moved: list[str] = []
        # Which the firmware was told to boot from.
        self.first: list[str] = []
        self.readable = True
        monkeypatch.setattr(install, "boot_first", lambda target: self.first.append(target.path.name))
        for module in (install, disk_copy):
            monkeypatch.setattr(module, "lsblk", lambda path=None: path)
            monkeypatch.setattr(module, "listed", self.listed)
        for module in (install, disk_copy, machine):
            monkeypatch.setattr(module, "run", lambda *_, **__: None)
        monkeypatch.setattr(verity, "move", self.moved.append)
        monkeypatch.setattr(verity, "check", self.check)
        monkeypatch.setattr(home_disk, "complete", lambda name: f"{name}6")
        monkeypatch.setattr(machine, "is_removable", lambda name: name in ("sdb", "sdc"))

    def listed(self, path: Path | None) -> list[Drive]:
        return [one for one in self.drives if path in (None, one.path)]

    def check(self, table: str) -> None:
        if not self.readable:
            raise UserError("what was written is not what the root hash says")


@pytest.fixture
def disks(monkeypatch: pytest.MonkeyPatch) -> Disks:
    return Disks(monkeypatch)


def with_root(name: str, major: str, **changes: Any) -> Drive:
    own = [
        msgspec.structs.replace(part, device=part.device.replace("8:", f"{major}:"), **changes) for part in parts("8")
    ]
    return drive(name, partitions=own)


def test_memory_goes_when_udev_knows_the_disk_and_systemd_looks_when_it_is_gone(
    disks: Disks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link of the root that leads nowhere for a moment would have systemd stop the root's unit."""
    done: list[str] = disks.moved
    monkeypatch.setattr(machine, "name_of", lambda device: {"8:18": "zram1", "8:19": "zram0"}.get(device, "vda2"))
    monkeypatch.setattr(machine, "settle", lambda: done.append("settled"))
    monkeypatch.setattr(memory_disk, "release", done.append)
    memory_root.leave(TABLE, "moved")
    assert done == ["moved", "settled", "zram1", "zram0", "settled"]
    done.clear()
    memory_root.leave(verity.elsewhere(TABLE, "254:2", "254:3").split(), "moved")
    assert done == ["moved"]


def test_a_disk_that_was_the_machines_own_is_kept(paths: Paths, disks: Disks) -> None:
    stick, disk = with_root("sdb", "8"), with_root("nvme0n1", "259")
    disks.drives = [stick, disk]
    assert verity.root_uuids(TABLE) == (ROOT, HASHES) and install.find_stick(TABLE) == stick
    assert install.keep(paths, stick, disk, TABLE) == "nvme0n16"
    assert disks.moved == [verity.elsewhere(TABLE, "259:18", "259:19")]
    assert "may be pulled out" in json.loads(paths.disk.read_text())["message"]
    # The power may have been cut before the firmware knew.
    assert disks.first == ["nvme0n1"]
    # One half of it comes from the disk already.
    half = verity.elsewhere(TABLE, "8:18", "259:19").split()
    install.keep(paths, stick, disk, half)
    assert len(disks.moved) == 2
    # All of it does.
    install.keep(paths, stick, stick, TABLE)
    assert len(disks.moved) == 2


@pytest.mark.parametrize("other", [True, False])
def test_a_disk_whose_system_is_of_no_use_is_kept_and_not_run(paths: Paths, disks: Disks, other: bool) -> None:
    disk = with_root("nvme0n1", "259", **({"uuid": "another"} if other else {}))
    stick = with_root("sdb", "8")
    disks.drives, disks.readable = [stick, disk], other
    assert install.keep(paths, stick, disk, TABLE) == "nvme0n16"
    assert disks.moved == disks.first == [] and "leave the stick in" in json.loads(paths.disk.read_text())["message"]


@pytest.mark.parametrize(
    ("sda", "sdd", "own"),
    [
        # Both have the image, and the root was found on the first: the other is the one of this cluster.
        ("theirs", "ours", "sdd"),
        ("ours", "theirs", "sda"),
        ("ours", "ours", "sda"),
        # Nobody said which cluster, or neither is a node yet.
        ("theirs", "nothing", "sda"),
    ],
)
def test_of_several_disks_with_a_node_that_of_this_cluster_is_the_machines(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, sda: str, sdd: str, own: str
) -> None:
    monkeypatch.setattr(install, "wishes", lambda _: (wish(), OURS))
    monkeypatch.setattr(install, "look_around", lambda *_: [found("sda", sda), found("sdd", sdd)])
    assert install.own_of(paths, "sda") == own


def test_of_two_sticks_nobody_knows_which_one_was_booted(disks: Disks) -> None:
    disks.drives = [with_root("sdb", "8"), with_root("sdc", "9")]
    with pytest.raises(UserError, match="several sticks with the same system"):
        install.find_stick(TABLE)
    disks.drives = [with_root("sda", "8")]
    assert install.find_stick(TABLE) is None


@pytest.mark.parametrize("left", ["sdb", "sdc"])
def test_the_machine_waits_until_one_stick_is_left_in(
    paths: Paths, disks: Disks, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    both = [with_root("sdc", "9"), with_root("sdb", "8")]
    disks.drives = both
    said: list[str] = []

    def pull_one(_: float) -> None:
        said.append(disk_state.blocked(paths))
        disks.drives = [one for one in both if one.path.name == left]

    monkeypatch.setattr(verity, "table", lambda: TABLE)
    monkeypatch.setattr(install.time, "sleep", pull_one)
    found = install.the_stick(paths)
    assert found and found.path.name == left
    # Which one it runs from, and where to when that was pulled all the same.
    assert len(said) == 1 and said[0].startswith("several sticks with the same system: /dev/sdc")
    assert said[0].endswith("leave /dev/sdb (sata, 500 GB) in, and no other")
    assert disks.moved == ([verity.elsewhere(TABLE, "9:18", "9:19")] if left == "sdc" else [])
    # It is not in the way of what comes next: one that waits for a disk may take any.
    assert disk_state.read(paths) == ("", "")


@pytest.fixture
def memory(disks: Disks, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What is done with disks in memory."""
    done: list[str] = []
    monkeypatch.setattr(verity, "table", lambda: TABLE)
    monkeypatch.setattr(machine, "size", len)
    monkeypatch.setattr(machine, "number", lambda name: f"of {name}")
    monkeypatch.setattr(memory_disk, "create", lambda size: f"zram{size}")
    monkeypatch.setattr(memory_disk, "copy", lambda one, other: done.append(f"{one.name} to {other.name}"))
    monkeypatch.setattr(memory_disk, "release", done.append)
    monkeypatch.setattr(memory_disk, "make_var", lambda: "zram2")
    monkeypatch.setattr(memory_disk, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory_root, "RULES", tmp_path / "rules.d/rules")
    monkeypatch.setattr(memory_root, "run", lambda argv: done.append(argv[1]))
    monkeypatch.setattr(memory_root, "keep_boot_image", lambda *_: None)
    (tmp_path / "meminfo").write_text(f"MemTotal: 9999999 kB\nMemAvailable: {10**8 + verity.root_bytes()} kB\n")
    return done


def test_a_root_in_memory_is_found_by_the_same_links(
    paths: Paths, disks: Disks, memory: list[str], tmp_path: Path
) -> None:
    """systemd stops the root's unit when they go with the stick."""
    assert install.live_in_memory(paths, with_root("sdb", "8")) == "zram2"
    assert disks.moved == [verity.elsewhere(TABLE, "of zram4", "of zram4")]
    assert json.loads(paths.disk.read_text())["message"] == install.IN_MEMORY
    rules = (tmp_path / "rules.d/rules").read_text().splitlines()
    assert all(f"disk/by-partuuid/{uuid}" in rule for uuid, rule in zip((ROOT, HASHES), rules, strict=True))
    assert memory == ["sdb2 to zram4", "sdb3 to zram4", "control", "trigger"]


@pytest.mark.parametrize("why", ["unreadable", "no room"])
def test_a_root_that_cannot_be_loaded_stays_on_the_stick(
    paths: Paths, disks: Disks, memory: list[str], tmp_path: Path, why: str
) -> None:
    if why == "no room":
        (tmp_path / "meminfo").write_text("MemTotal: 1000000 kB\nMemAvailable: 250000 kB\n")
    disks.readable = why != "unreadable"
    assert install.live_in_memory(paths, with_root("sdb", "8")) == "zram2"
    assert memory == ([] if why == "no room" else ["sdb2 to zram4", "sdb3 to zram4", "zram4", "zram4"])
    assert disks.moved == [] and disk_state.read(paths)[0] == "ram"
    said = json.loads(paths.disk.read_text())["message"]
    assert "leave the stick in, as the system cannot be loaded: " in said
    assert ("there are 244 MB of memory" in said) == (why == "no room")


@pytest.mark.parametrize(
    ("booted_from", "to", "authority", "var", "said"),
    [
        ("stick", "disk", OURS, "a disk's", ""),
        ("stick", "stick", OURS, "sdb6", "stick"),
        ("stick", "ram", OURS, "memory's, with the root", ""),
        # Nobody said which cluster it is for.
        ("stick", "disk", "", "sdb6", "stick"),
        # A stick that was left in says nothing to a machine that boots from the network.
        ("stick and home", "disk", "", "nvme0n16", "kept"),
        # It was booted from the network, and lives on the stick.
        ("stick with a home and home", "disk", "", "sdb6", "stick"),
        ("neighbour", "disk", OURS, "a disk's", ""),
        # There is no stick to stay on.
        ("neighbour", "stick", OURS, "a disk's", ""),
        ("neighbour", "ram", OURS, "memory's", "ram"),
        ("neighbour", "disk", "", "memory's", ""),
        ("disk", "ram", OURS, "nvme0n16", ""),
    ],
)
def test_where_a_machine_lives(
    paths: Paths,
    disks: Disks,
    monkeypatch: pytest.MonkeyPatch,
    booted_from: str,
    to: str,
    authority: str,
    var: str,
    said: str,
) -> None:
    stick = with_root("sdb", "8") if booted_from.startswith("stick") else None
    home = Found(with_root("nvme0n1", "259"), "theirs", "shop")
    monkeypatch.setattr(install, "look_around", lambda *_: [home] if booted_from.endswith("and home") else [])
    stick_holds = "theirs" if "with a home" in booted_from else "nothing"
    monkeypatch.setattr(install, "look", lambda _, drive, __: Found(drive, stick_holds, ""))
    monkeypatch.setattr(verity, "table", lambda: TABLE)
    monkeypatch.setattr(home_disk, "root_drive", lambda: "nvme0n1")
    monkeypatch.setattr(install.network_boot, "was_booted", lambda *_: booted_from == "neighbour")
    disks.drives = [stick, home.drive] if stick else []
    monkeypatch.setattr(install, "wishes", lambda _: (wish(to=to), authority))
    monkeypatch.setattr(memory_disk, "make_var", lambda: "memory's")
    monkeypatch.setattr(install, "live_in_memory", lambda *_: "memory's, with the root")
    monkeypatch.setattr(install, "find_home", lambda *_: "a disk's")
    assert install.settle_on(paths) == var
    assert disk_state.read(paths)[0] == said


def test_a_machine_that_finds_no_disk_says_why_and_looks_again(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a unit that failed it would stand still in an emergency shell that nobody can use."""
    errors: list[Exception] = [UserError("/dev/vda: no partition kubermesh-var"), OSError("Input/output error")]
    said: list[str] = []

    def look(_: Paths) -> str:
        if errors:
            raise errors.pop(0)
        return "vda6"

    monkeypatch.setattr(home_disk, "Paths", lambda: paths)
    monkeypatch.setattr(home_disk, "find", look)
    monkeypatch.setattr(home_disk.time, "sleep", lambda _: said.append(disk_state.blocked(paths)))
    assert home_disk.main() == 0
    assert paths.var_device.readlink() == Path("/dev/vda6")
    assert said == [
        "no disk to live on: /dev/vda: no partition kubermesh-var",
        "no disk to live on: Input/output error",
    ]
    assert disk_state.blocked(paths) == ""


@pytest.mark.parametrize("readable", [True, False])
def test_a_disk_that_returns_something_else_than_was_written_is_given_up(
    paths: Paths, disks: Disks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, readable: bool
) -> None:
    stick, disk = with_root("sdb", "8"), found("nvme0n1")
    disks.drives, disks.readable = [stick, disk.drive], readable
    cleared: list[Path] = []

    async def copied(*_: object) -> None:
        disks.drives = [stick, with_root("nvme0n1", "259")]

    monkeypatch.setattr(verity, "table", lambda: TABLE)
    monkeypatch.setattr(machine, "name_of", lambda _: "sdb2")
    monkeypatch.setattr(disk_copy, "copy", copied)
    monkeypatch.setattr(disk_copy, "check_esp", lambda *_: None)
    monkeypatch.setattr(disk_copy, "clear", cleared.append)
    monkeypatch.setattr(home_disk, "var_of", lambda name: f"{name}6")
    var = new_var(paths, tmp_path, monkeypatch)
    if readable:
        assert install.take(paths, stick, disk) == "nvme0n16"
        assert (var / "lib/kubermesh/join.json").exists()
        assert disks.moved == [verity.elsewhere(TABLE, "259:18", "259:19")] and cleared == []
        assert disk_state.read(paths)[0] == "installed" and disks.first == ["nvme0n1"]
        return
    with pytest.raises(UserError, match="not what the root hash says"):
        install.take(paths, stick, disk)
    # The root is where it was, and the disk is one that another try may take.
    assert disks.moved == [] and cleared == [disk.drive.path] and not (var / "lib").exists()


def new_var(paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is on the new disk's partition for /var; the machine was told before whom to ask."""
    var = tmp_path / "var"
    var.mkdir()
    for module in (install, disk_look):
        monkeypatch.setattr(module, "mounted", lambda *_: contextlib.nullcontext(var))
    paths.state.mkdir()
    (paths.state / "join.json").write_bytes(msgspec.json.encode(JoinBundle(name="shop", authority=OURS)))
    return var


def test_an_installed_disk_is_the_machines_own_before_it_is_a_node(
    paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the system writes to /var at its first boot is no foreign data when the power fails then."""
    var = new_var(paths, tmp_path, monkeypatch)
    disk = drive(partitions=[Partition(path=Path("/dev/sda6"), label=home_disk.VAR)])
    # An install that lost power here begins anew.
    (var / disk_look.BEGUN / "lib").mkdir(parents=True)
    assert disk_look.look(paths, disk, OURS).holds == "nothing"
    shutil.rmtree(var / disk_look.BEGUN)
    install.claim(paths, "sda6", key="its key")
    (var / "log/journal").mkdir(parents=True)
    assert disk_look.look(paths, disk, OURS).holds == "ours"
    assert {path.name for path in var.iterdir()} == {"lib", "log"}
    assert (var / "lib/kubermesh/identity.key").read_text() == "its key"


def test_a_neighbour_is_told_what_fits_into_a_line(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(install.network_boot, "tell", lambda _, text: told.append(text))
    install.say(paths, drive("nvme0n1", model="A model of forty letters, as some have"), "installing, 60 %")
    assert told == ["installing, 60 %"]


def test_what_was_written_is_compared(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"a" * 9_000_000)
    other.write_bytes(b"a" * 9_000_000 + b"more")
    disk_copy.compare(one, other)
    other.write_bytes(b"a" * 8_999_999 + b"b")
    with pytest.raises(UserError, match="something else than was written"):
        disk_copy.compare(one, other)


@pytest.fixture
def esp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A disk's EFI system partition as it came from a stick, and the root that runs."""
    files = dict.fromkeys(disk_copy.esp.LOADERS, b"loader")
    files["EFI/Linux/kubermesh_0.1.0+2-1.efi"] = b"kernel roothash=" + ROOT_HASH.encode()
    digest = hashlib.sha256(b"kernel roothash=" + 64 * b"0").hexdigest()
    of_root = {str(disk_copy.esp.LOADER): b"loader", boot_images.DIGEST: digest.encode() + b"\n"}
    for top, all_of in (("esp", files), ("root", of_root)):
        for name, content in all_of.items():
            path = tmp_path / top / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    monkeypatch.setattr(disk_copy, "mounted", lambda *_: contextlib.nullcontext(tmp_path / "esp"))
    return tmp_path / "esp"


def test_the_disks_boot_entry_counts_no_tries(paths: Paths, tmp_path: Path, esp: Path) -> None:
    for _ in range(2):
        disk_copy.bless(paths, Path("/dev/sda1"), ROOT_HASH, tmp_path / "root")
    assert [path.name for path in (esp / "EFI/Linux").iterdir()] == ["kubermesh_0.1.0.efi"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("EFI/Linux/kubermesh_0.1.0+2-1.efi", "the stick's boot image is not that of the system on it"),
        ("EFI/Linux/kubermesh_another.efi", "the stick's boot image is not that of the system on it"),
        ("EFI/BOOT/BOOTX64.EFI", "keeps something else"),
        ("EFI/systemd/systemd-bootx64.efi", "keeps something else"),
    ],
)
def test_what_a_stick_has_outside_the_root_is_what_the_root_says(
    paths: Paths, tmp_path: Path, esp: Path, name: str, says: str
) -> None:
    (esp / name).write_bytes(b"another")
    with pytest.raises(UserError, match=says):
        disk_copy.bless(paths, Path("/dev/sda1"), ROOT_HASH, tmp_path / "root")


@pytest.fixture
def stick_booted(paths: Paths, disks: Disks, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A machine that runs from a stick with nothing to live on yet; what each look finds is given, the last one for ever."""
    looks: list[list[Found]] = []
    disks.drives = [with_root("sdb", "8")]
    monkeypatch.setattr(install, "Paths", lambda: paths)
    monkeypatch.setattr(install, "wishes", lambda _: (wish(), OURS))
    monkeypatch.setattr(install, "look_around", lambda *_: looks.pop(0) if len(looks) > 1 else looks[0])
    monkeypatch.setattr(install.home_disk, "root_drive", lambda: "sdb")
    monkeypatch.setattr(install.join, "own_key", lambda _: "its key")
    monkeypatch.setattr(install.time, "sleep", lambda _: None)
    monkeypatch.setattr(verity, "table", lambda: TABLE)
    return looks.extend


def test_a_disk_that_shows_up_first_is_not_the_one_to_take(
    paths: Paths, stick_booted: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine's own may be a slow one: an array, or a disk that has to spin up."""
    taken: list[str] = []
    monkeypatch.setattr(install, "take", lambda _, __, chosen, key="": taken.append(chosen.drive.path.name) or "var")
    empty, own = found("sda"), found("sdd", "ours")
    stick_booted([[empty], [empty], [empty, own]])
    assert install.main() == 0 and taken == ["sdd"]
    # Nor where the machine starts.
    stick_booted([[empty], [own, empty]])
    assert install.find_home(paths, None, wish(), OURS) == "var" and taken == ["sdd", "sdd"]


def test_a_disk_that_fails_is_not_written_again_and_again(
    stick_booted: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tries: list[str] = []

    def fail(*_: object, **__: object) -> str:
        tries.append("written")
        raise OSError("Input/output error")

    monkeypatch.setattr(install, "take", fail)
    stick_booted([[found("sda")]])
    with pytest.raises(UserError, match="Input/output error"):
        install.main()
    capsys.readouterr()
    assert install.main() == 0 and len(tries) == 1
    assert "cannot be used: Input/output error" in json.loads(capsys.readouterr().out)["message"]
    later = install.time.monotonic() + install.FAILED_AGAIN_S
    monkeypatch.setattr(install.time, "monotonic", lambda: later)
    with pytest.raises(UserError, match="Input/output error"):
        install.main()
    assert len(tries) == 2


def test_a_machine_says_that_it_has_no_disk(paths: Paths) -> None:
    assert disk_state.read(paths) == ("", "") and disk_state.blocked(paths) == ""
    install.say(paths, None, "runs in memory", state="ram")
    assert disk_state.read(paths)[0] == "ram" and disk_state.blocked(paths) == ""
    install.say(paths, None, "installing, 40 %")
    assert disk_state.blocked(paths) == "installing, 40 %"
    install.say(paths, None, "sda holds Fótos " + 400 * "x", state="blocked")
    assert disk_state.blocked(paths) == ("sda holds F?tos " + 400 * "x")[: disk_state.MAX_BLOCKED]
    install.say(paths, None, "holds a\tb\x1b[2J", state="blocked")
    assert disk_state.blocked(paths) == "holds a?b?[2J"


def test_a_disk_with_another_system_is_started_instead_of_the_neighbours_once(
    paths: Paths, disks: Disks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came over the network is no update of what is installed, and no way back."""
    var = tmp_path / "disk-var"
    (var / "lib/kubermesh").mkdir(parents=True)
    monkeypatch.setattr(install, "mounted", lambda *_: contextlib.nullcontext(var))
    monkeypatch.setattr(home_disk, "partition_of", lambda drive, label: f"{drive} {label}")
    started: list[str] = []
    monkeypatch.setattr(install.boot_entry, "next_time", lambda esp: started.append(esp.name) or True)
    monkeypatch.setattr(install.time, "sleep", lambda seconds: started.append(f"waits {seconds:g}"))
    disk = with_root("nvme0n1", "259", uuid="another")
    disks.drives = [disk]
    for _ in range(2):
        assert install.keep(paths, None, disk, TABLE) == "nvme0n16"
    # The second time its own system has not come up: the neighbour's has to do.
    assert started == ["nvme0n1 kubermesh-esp", "waits 600"] and disks.moved == []
    assert "not the system that runs" in json.loads(paths.disk.read_text())["message"]

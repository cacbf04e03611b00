"""What a build hands out: tar pieces, the bill of materials, and how files reach the output folder."""

import json
import os
import tarfile
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from kmbuild import artefacts, sbom, tarball
from kmbuild.archive import Package
from kmbuild.stages import tree
from kmplan.errors import UserError

EPOCH = 1700000000
PACKAGE = Package("openssh-server", "1:10.0p1-7", "main", "pool/o.deb", 9, "ab" * 32)


def write_sbom(packages: list[Package] | None = None) -> str:
    modules = [("github.com/coredns/coredns", "v1.15.0"), ("go.etcd.io/etcd/server/v3", "v3.6.16")]
    versions = {"etcd": "3.6.16"}
    return sbom.write(("kubermesh", "0.1.0"), packages or [PACKAGE], "trixie", modules, versions, EPOCH)


def test_the_bill_of_materials_is_valid_cyclonedx_1_6() -> None:
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(write_sbom()) is None


def test_the_same_image_gives_the_same_bill_byte_for_byte_and_another_one_another() -> None:
    newer = Package("openssh-server", "1:10.0p1-8", "main", "pool/o.deb", 9, "ab" * 32)
    assert write_sbom() == write_sbom()
    assert write_sbom() != write_sbom([newer])


def test_the_bill_names_packages_modules_and_programs_by_purl() -> None:
    document = json.loads(write_sbom())
    found = {part["name"]: part.get("purl") for part in document["components"]}
    assert found == {
        "openssh-server": "pkg:deb/debian/openssh-server@1:10.0p1-7?arch=amd64&distro=trixie",
        "github.com/coredns/coredns": "pkg:golang/github.com/coredns/coredns@v1.15.0",
        "go.etcd.io/etcd/server/v3": "pkg:golang/go.etcd.io/etcd/server/v3@v3.6.16",
        "etcd": None,
    }
    assert document["metadata"]["timestamp"] == "2023-11-14T22:13:20+00:00"


LISTING = """\
/build/etcd: go1.26.8
\tpath\texample.org/etcd
\tmod\texample.org/etcd\tv0.0.0
\tdep\tgolang.org/x/sys\tv0.30.0\th1:aa=
\tdep\tk8s.io/api\tv0.0.0
\t=>\tk8s.io/api\tv0.37.2\th1:bb=
\tbuild\t-trimpath=true
"""


def test_modules_are_those_linked_in_with_replacements_counted_once() -> None:
    assert sbom.parse_modules(LISTING) == {("golang.org/x/sys", "v0.30.0"), ("k8s.io/api", "v0.37.2")}


def make_piece(path: Path, name: str, data: bytes) -> Path:
    with tarball.write_piece(path) as tar:
        tarball.add_folder(tar, "usr", EPOCH)
        tarball.add_file(tar, f"usr/{name}", data, EPOCH, 0o755)
    return path


def test_joined_pieces_are_one_tar_that_ends(tmp_path: Path) -> None:
    first, second = make_piece(tmp_path / "1", "a", b"aa"), tmp_path / "2"
    with tarball.write_piece(second) as tar:
        tarball.add_link(tar, "usr/b", "usr/a", EPOCH, hard=True)
        tarball.add_link(tar, "usr/c", "a", EPOCH)
    tarball.join([first, second], tmp_path / "all.tar")
    with tarfile.open(tmp_path / "all.tar") as tar:
        assert tar.getnames() == ["usr", "usr/a", "usr/b", "usr/c"]
        data = tar.extractfile("usr/b")
        assert data is not None
        assert data.read() == b"aa"
        assert tar.getmember("usr/c").issym()
        assert {(member.uid, member.gid, member.uname, member.mtime) for member in tar} == {(0, 0, "", EPOCH)}
    assert (tmp_path / "all.tar").read_bytes().endswith(tarball.END)


def test_a_piece_has_no_end_mark_and_depends_on_its_content_alone(tmp_path: Path) -> None:
    first, second = make_piece(tmp_path / "1", "a", b"x" * 512), make_piece(tmp_path / "2", "a", b"x" * 512)
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes().endswith(b"x" * 512)


def raw_tar(path: Path, names: list[str]) -> Path:
    """A tar as diskimage-builder might leave it: any order, owners' names, times, the host's files."""
    with tarfile.open(path, "w") as tar:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(f"./{name}")
            info.mtime, info.uname, info.mode = 1800000000 + number, "somebody", 0o644
            if name.endswith("/"):
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(info)
            elif name.startswith("usr/hard"):
                info.type, info.linkname = tarfile.LNKTYPE, "./usr/zeta"
                tar.addfile(info)
            else:
                data = name.encode()
                info.size = len(data)
                with path.with_suffix(".data").open("w+b") as file:
                    file.write(data)
                    file.seek(0)
                    tar.addfile(info, file)
    return path


NAMES = ["boot/vmlinuz-6.12", "usr/", "usr/zeta", "usr/hard", "etc/", "etc/hostname", "etc/resolv.conf", "var/lib/x"]
HOST_FILES = ["etc/ssh/ssh_host_rsa_key", "root/.bash_history", "tmp/left", "run/lock", "etc/machine-id"]


def test_a_tree_is_sorted_without_times_owners_and_what_the_host_left(tmp_path: Path) -> None:
    raw = raw_tar(tmp_path / "raw.tar", NAMES + HOST_FILES)
    tree.normalise(raw, tmp_path / "tree.tar", tmp_path / "vmlinuz", EPOCH)
    with tarball.open_piece(tmp_path / "tree.tar") as tar:
        members = {member.name: member for member in tar}
    assert [name for name in members if name not in tree.FOLDERS and name != "."] == [
        "etc",
        "etc/machine-id",
        "usr",
        "usr/hard",
        "usr/zeta",
    ]
    assert members["usr/hard"].isreg()  # the first name in order holds the data
    assert members["usr/zeta"].linkname == "usr/hard"
    assert {(member.mtime, member.uname) for member in members.values()} == {(EPOCH, "")}
    assert (tmp_path / "vmlinuz").read_bytes() == b"boot/vmlinuz-6.12"


def test_the_order_in_which_a_tree_comes_does_not_matter(tmp_path: Path) -> None:
    results = []
    for number, names in enumerate(([*NAMES, *HOST_FILES], [*NAMES[:3], *HOST_FILES, *NAMES[3:]])):
        raw = raw_tar(tmp_path / f"{number}.raw", names)
        tree.normalise(raw, tmp_path / f"{number}.tar", tmp_path / "vmlinuz", EPOCH)
        results.append((tmp_path / f"{number}.tar").read_bytes())
    assert results[0] == results[1]


@pytest.mark.parametrize("kernels", [[], ["boot/vmlinuz-6.1", "boot/vmlinuz-6.12"]])
def test_a_tree_with_no_kernel_or_two_is_refused(tmp_path: Path, kernels: list[str]) -> None:
    raw = raw_tar(tmp_path / "raw.tar", ["etc/", *kernels])
    with pytest.raises(UserError, match=f"expected one kernel in /boot, found {len(kernels)}"):
        tree.normalise(raw, tmp_path / "tree.tar", tmp_path / "vmlinuz", EPOCH)


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A finished disk stage, small."""
    entry = tmp_path / "entry"
    entry.mkdir()
    for name in artefacts.file_names("1").values():
        (entry / name).write_text(name)
    with (entry / "kubermesh-1.raw").open("wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"data")
    return entry


def test_publishing_copies_everything_and_holes_stay_holes(finished: Path, tmp_path: Path) -> None:
    names, out = artefacts.file_names("1"), tmp_path / "new/out"
    artefacts.publish(finished, out, names, verify=True)
    assert sorted(path.name for path in out.iterdir()) == sorted(names.values())
    assert all((out / name).read_bytes() == (finished / name).read_bytes() for name in names.values())
    assert (out / names["raw"]).stat().st_blocks * 512 < 1 << 20


def test_publishing_again_leaves_every_file_alone(finished: Path, tmp_path: Path) -> None:
    names, out = artefacts.file_names("1"), tmp_path / "out"
    artefacts.publish(finished, out, names, verify=True)
    before = {path.name: path.stat().st_ino for path in out.iterdir()}
    artefacts.publish(finished, out, names, verify=True)
    assert {path.name: path.stat().st_ino for path in out.iterdir()} == before


def test_a_copy_that_fails_leaves_neither_sums_nor_half_a_file(finished: Path, tmp_path: Path) -> None:
    names, out = artefacts.file_names("1"), tmp_path / "out"
    artefacts.publish(finished, out, names, verify=True)
    for name in names.values():
        os.utime(finished / name, (5, 5))
    (finished / names["verity"]).unlink()
    with pytest.raises(UserError, match=r"No such file or directory; set output in kubermesh\.yaml"):
        artefacts.publish(finished, out, names, verify=True)
    assert not (out / "SHA256SUMS").exists()
    assert list(out.glob(".*")) == []


def test_a_folder_without_an_image_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        artefacts.read_manifest(tmp_path)
    assert str(raised.value) == f"{tmp_path}: no image here; build one with `make image`"

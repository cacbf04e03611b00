"""The lock, and what apt says: exact versions in, one line out for what does not fit."""

from pathlib import Path

import pytest

from kmbuild import lock as locking
from kmbuild.archive import Apt, Archives, Package, deb_path, fetch, find_archives
from kmbuild.config import Config, Debian, Kernel
from kmbuild.lock import Lock
from kmbuild.lock_command import differences
from kmplan.errors import UserError

ARCHIVES = Archives("http://mirror.example/debian", "http://mirror.example/debian-security")
HASH = "ab" * 32


def make_lock(config: Config, suite: str = "trixie") -> Lock:
    package = Package("bash", "5.2", "main", "pool/bash.deb", 9, HASH)
    return Lock(1, suite, 1700000000, locking.requested(config), {"tools": [package], "tree": [package]})


@pytest.fixture
def apt(tmp_path: Path) -> Apt:
    return Apt(tmp_path, "trixie", ARCHIVES)


@pytest.mark.parametrize(
    ("line", "package"),
    [
        (
            "'http://mirror.example/debian/pool/main/b/bash/bash_5.2.37-2%2bb5_amd64.deb' "
            f"bash_5.2.37-2+b5_amd64.deb 1498488 SHA256:{HASH}",
            Package("bash", "5.2.37-2+b5", "main", "pool/main/b/bash/bash_5.2.37-2%2bb5_amd64.deb", 1498488, HASH),
        ),
        (
            "'http://mirror.example/debian/pool/main/o/openssh/openssh-server_10.0p1-7_amd64.deb' "
            f"openssh-server_1%3a10.0p1-7_amd64.deb 7 SHA256:{HASH}",
            Package(
                "openssh-server", "1:10.0p1-7", "main", "pool/main/o/openssh/openssh-server_10.0p1-7_amd64.deb", 7, HASH
            ),
        ),
        (
            f"'http://mirror.example/debian-security/pool/updates/l/linux_6_amd64.deb' linux_6_amd64.deb 7 SHA256:{HASH}",
            Package("linux", "6", "security", "pool/updates/l/linux_6_amd64.deb", 7, HASH),
        ),
    ],
    ids=["plus", "epoch", "security"],
)
def test_a_line_of_print_uris_is_parsed_and_its_address_found_again(apt: Apt, line: str, package: Package) -> None:
    assert apt._parse(line) == package
    assert ARCHIVES.url(package) == line.split("'")[1]


def test_a_package_without_sha256_is_refused(apt: Apt) -> None:
    with pytest.raises(UserError, match="the archive gives no SHA-256 of it"):
        apt._parse("'http://mirror.example/debian/pool/b.deb' b_1_amd64.deb 7 MD5Sum:abc")


def test_apt_s_own_sources_name_suite_updates_and_security(apt: Apt) -> None:
    rows = [line.split(" trixie")[1] for line in (apt.root / "sources.list").read_text().splitlines()]
    assert rows == [f"{part} main non-free-firmware" for part in ("", "-updates", "-security")]


def test_the_security_archive_lies_beside_the_mirror_unless_given() -> None:
    mirror = Config(version=1, debian=Debian(mirror="http://mirror.example/debian/"))
    assert find_archives(mirror) == ARCHIVES
    both = Config(version=1, debian=Debian(mirror="file:///srv/debian", security_mirror="file:///srv/sec/"))
    assert find_archives(both) == Archives("file:///srv/debian", "file:///srv/sec")


def test_what_is_in_the_store_is_not_fetched(tmp_path: Path) -> None:
    package = Package("bash", "5.2", "main", "bash.deb", 4, HASH)
    deb_path(tmp_path, package).write_bytes(b"1234")
    said: list[str] = []
    fetch(tmp_path, [package], Archives("file:///nonexistent", "file:///nonexistent"), said.append)
    assert said == []


def test_a_lock_reads_back_as_it_was_written(tmp_path: Path) -> None:
    config = Config(version=1)
    locking.write(make_lock(config), tmp_path / "kubermesh.lock")
    assert locking.read(tmp_path / "kubermesh.lock", config) == make_lock(config)


def test_a_lock_of_another_release_is_one_line(tmp_path: Path) -> None:
    config, path = Config(version=1), tmp_path / "kubermesh.lock"
    locking.write(make_lock(config, suite="forky"), path)
    with pytest.raises(UserError) as raised:
        locking.read(path, config)
    assert str(raised.value) == f"{path}: locks Debian forky, the configuration says trixie; run `kmbuild lock`"


@pytest.mark.parametrize(
    ("locked", "wanted", "error"),
    [
        (Config(version=1), Config(version=1, packages=("htop", "vim-tiny")), "lacks htop, vim-tiny"),
        (Config(version=1, packages=("htop",)), Config(version=1), "has htop that nobody asks for now"),
        (Config(version=1), Config(version=1, kernel=Kernel(flavour="cloud")), "lacks linux-image-cloud-amd64"),
    ],
)
def test_a_lock_of_other_packages_is_one_line(tmp_path: Path, locked: Config, wanted: Config, error: str) -> None:
    path = tmp_path / "kubermesh.lock"
    locking.write(make_lock(locked), path)
    with pytest.raises(UserError) as raised:
        locking.read(path, wanted)
    assert str(raised.value) == f"{path}: {error}; run `kmbuild lock`"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("version: 2", "version: Invalid enum value 2"),
        ("{", ":1: not YAML: "),
        ("{version: 1, suite: trixie, epoch: soon, requested: {}, packages: {}}", "epoch: Expected `int`, got `str`"),
        (
            "{version: 1, suite: trixie, epoch: 1, requested: {}, packages: {}, mirror: x}",
            "Object contains unknown field `mirror`",
        ),
    ],
)
def test_a_broken_lock_is_one_line(tmp_path: Path, text: str, error: str) -> None:
    path = tmp_path / "kubermesh.lock"
    path.write_text(text)
    with pytest.raises(UserError) as raised:
        locking.read(path, Config(version=1))
    assert str(raised.value).startswith(str(path))
    assert error in str(raised.value)
    assert "\n" not in str(raised.value)


def test_differences_of_two_locks_name_packages_that_came_went_or_changed() -> None:
    def lock(*packages: tuple[str, str]) -> Lock:
        rows = [Package(name, version, "main", f"{name}.deb", 1, HASH) for name, version in packages]
        return Lock(1, "trixie", 1, {}, {"tree": rows})

    assert differences(None, lock(("a", "1"))) == []
    assert differences(lock(("a", "1"), ("b", "1")), lock(("a", "2"), ("c", "1"))) == [
        "tree: a 1 -> 2",
        "tree: b 1 -> absent",
        "tree: c absent -> 1",
    ]

"""The configuration file: what is taken, and one line for each mistake: file, place in it, what was expected."""

from pathlib import Path

import msgspec
import pytest

from kmbuild import config
from kmbuild.config import Config
from kmplan import document
from kmplan.errors import UserError


def refused(path: Path) -> str:
    with pytest.raises(UserError) as raised:
        config.load(path)
    return str(raised.value)


def parse(text: str) -> Config:
    return document.parse(text, Config, "k.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "version: 1",
        "version: 1\ndebian: {suite: forky, mirror: 'http://mirror.example/debian'}",
        "version: 1\ndebian: {mirror: 'file:///srv/debian', security_mirror: 'https://security.example/debian-security'}",
        "version: 1\npackages: [vim-tiny, libstdc++6]",
        "version: 1\nkernel: {flavour: cloud, arguments: [quiet, 'a=\"b\"']}",
        "version: 1\ncomponents: {kubernetes: 1.37.3, go: 1.26.9}",
        "version: 1\ncompression: small",
        "version: 1\nimage_version: 1.2.3~rc1",
        "version: 1\ncache: {path: null, size_limit_gib: 0.5}",
    ],
)
def test_good_configurations_are_taken(text: str) -> None:
    assert parse(text).version == 1


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (
            "version: 1\ncolour: red",
            "Object contains unknown field `colour`; known here: version, debian, packages, kernel, components, "
            "compression, image_version, output, cache",
        ),
        (
            "version: 1\ndebian: {release: trixie}",
            "debian: Object contains unknown field `release`; known here: suite, mirror, security_mirror",
        ),
        (
            "version: 1\nkernel: {args: []}",
            "kernel: Object contains unknown field `args`; known here: flavour, arguments",
        ),
        ("version: 2", "version: Invalid enum value 2; expected one of: 1"),
        ("packages: []", "Object missing required field `version`"),
        ("", "Expected `object`, got `null`"),
        ("[]", "Expected `object`, got `array`"),
        ("version: 1\npackages: vim", "packages: Expected `array`, got `str`"),
        ("version: 1\npackages: [1]", "packages[0]: Expected `str`, got `int`"),
        (
            "version: 1\npackages: [ok, -y]",
            "packages[1]: Expected `str` matching regex '^[a-z0-9][a-z0-9+.-]+$'; expected: A Debian package.",
        ),
        ("version: 1\ndebian: {suite: 13}", "debian.suite: Expected `str`, got `int`"),
        (
            "version: 1\ndebian: {suite: Trixie}",
            "debian.suite: Expected `str` matching regex '^[a-z][a-z0-9-]*$'; expected: A Debian release by its code name.",
        ),
        (
            "version: 1\ndebian: {mirror: 'ftp://mirror.example/debian'}",
            "debian.mirror: Expected `str` matching regex '^(https?|file|copy)://?[^ ]+$'; "
            "expected: Debian archive. Unset: the host's own apt sources.",
        ),
        (
            "version: 1\nkernel: {flavour: rt}",
            "kernel.flavour: Invalid enum value 'rt'; expected one of: cloud, generic",
        ),
        (
            "version: 1\nkernel: {arguments: ['two words']}",
            "kernel.arguments[0]: Expected `str` matching regex '^[!-~]+$'; expected: One word of the kernel command line.",
        ),
        ("version: 1\ncompression: zip", "compression: Invalid enum value 'zip'; expected one of: fast, small"),
        ("version: 1\nimage_version: 1.0", "image_version: Expected `str`, got `float`"),
        (
            "version: 1\nimage_version: ../x",
            "image_version: Expected `str` matching regex '^[0-9][0-9A-Za-z.~]*$'; expected: Version of the image.",
        ),
        ("version: 1\noutput: [out]", "output: Expected `str`, got `array`"),
        ("version: 1\ncache: null", "cache: Expected `object`, got `null`"),
        ("version: 1\ncache: {size_limit_gib: 0}", "cache.size_limit_gib: Expected `float` > 0.0"),
        ("version: 1\ncache: {size_limit_gib: -1}", "cache.size_limit_gib: Expected `float` > 0.0"),
        ("version: 1\ncache: {size_limit_gib: .inf}", "cache.size_limit_gib: Expected `float` <= 1000000.0"),
        ("version: 1\ncache: {size_limit_gib: 30G}", "cache.size_limit_gib: Expected `float`, got `str`"),
    ],
)
def test_a_bad_configuration_is_one_exact_line(tmp_path: Path, text: str, error: str) -> None:
    path = tmp_path / "k.yaml"
    path.write_text(text)
    assert refused(path) == f"{path}: {error}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("version: 1\ncomponents: {kubernetes: v1.37.2}", ["components", "matching regex"]),
        ("version: 1\ncomponents: {kubernetes: 1.37}", ["components", "Expected `str`, got `float`"]),
        ("version: 1\ncomponents: {linux: 6.12.1}", ["components", "'linux'"]),
    ],
)
def test_a_bad_component_names_the_table(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "k.yaml"
    path.write_text(text)
    error = refused(path)
    assert error.startswith(f"{path}: ")
    assert all(word in error for word in words)
    assert "\n" not in error


@pytest.mark.parametrize(
    ("text", "line"),
    [("version: [\n", 2), ("version: 1\n\tpackages: []\n", 2), ("a: b: c\n", 1), ("version: 1\n---\nversion: 1\n", 2)],
)
def test_what_is_not_yaml_is_one_line_with_its_number(tmp_path: Path, text: str, line: int) -> None:
    path = tmp_path / "k.yaml"
    path.write_text(text)
    error = refused(path)
    assert error.startswith(f"{path}:{line}: not YAML: ")
    assert "\n" not in error


def test_a_missing_file_a_folder_and_bytes_that_are_no_text_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    assert refused(tmp_path / "none") == f"{tmp_path}/none: cannot be read: No such file or directory"
    assert refused(tmp_path) == f"{tmp_path}: cannot be read: Is a directory"
    assert refused(tmp_path / "bytes").startswith(f"{tmp_path}/bytes: cannot be read: 'utf-8' codec can't decode")


def test_a_file_in_the_folder_is_found_before_the_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert config.load(None)[1] == "the shipped default.yaml"
    (tmp_path / "kubermesh.yaml").write_text("version: 1\nimage_version: 0.9.0\n")
    loaded, place = config.load(None)
    assert (loaded.image_version, place) == ("0.9.0", "kubermesh.yaml")


def test_the_shipped_file_documents_every_key_at_its_default() -> None:
    shipped = config.load(None)[0]
    assert shipped == Config(version=1)
    text = config.shipped("default.yaml")
    for table in (Config, config.Debian, config.Kernel, config.Cache):
        for field in msgspec.structs.fields(table):
            assert f"{field.name}:" in text


def test_show_gives_a_file_that_means_the_same() -> None:
    loaded = parse("version: 1\npackages: [vim-tiny]\nkernel: {flavour: cloud}\ncomponents: {etcd: 3.6.17}")
    assert parse(config.as_yaml(loaded)) == loaded


def test_versions_come_from_the_file_and_then_from_the_configuration() -> None:
    loaded = parse("version: 1\ncomponents: {etcd: 9.9.9}")
    assert loaded.versions["etcd"] == "9.9.9"
    assert {**loaded.versions, "etcd": ""} == {**Config(version=1).versions, "etcd": ""}


def test_the_flavour_chooses_the_kernel_package() -> None:
    packages = {name: parse(f"version: 1\nkernel: {{flavour: {name}}}").kernel.package for name in ("generic", "cloud")}
    assert packages == {"generic": "linux-image-amd64", "cloud": "linux-image-cloud-amd64"}


def test_the_cache_follows_xdg_unless_the_file_says_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Config(version=1).cache_path == tmp_path / "kubermesh"
    assert parse("version: 1\ncache: {path: /srv/cache}").cache_path == Path("/srv/cache")

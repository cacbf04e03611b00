"""Facts that are written down in two places agree: versions, partition sizes, elements."""

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from kmbuild import config
from kmbuild.config import Config
from kmbuild.lock import package_list
from kmbuild.stages import components, disk, tree

CHECKOUT = Path(__file__).resolve().parents[2]
VERSIONS = yaml.safe_load(config.shipped("versions.yaml"))
UNITS = {"M": 1 << 20, "G": 1 << 30}
ELEMENTS = sorted(path.name for path in (CHECKOUT / "elements").iterdir() if path.is_dir())


@pytest.mark.parametrize("name", components.COMPONENTS)
def test_versions_yaml_and_go_mod_agree(name: str) -> None:
    component = components.COMPONENTS[name]
    folder = CHECKOUT / "components" / name
    for module in (component.module, *component.siblings):
        assert components.requires(folder, module, VERSIONS[name]), module
    assert (folder / "go.sum").is_file()


@pytest.mark.parametrize("name", components.COMPONENTS)
def test_no_component_asks_for_a_newer_go_than_the_pinned_one(name: str) -> None:
    text = (CHECKOUT / "components" / name / "go.mod").read_text()
    asked = re.search(r"^go (\S+)$", text, re.MULTILINE)
    assert asked is not None
    assert [int(part) for part in asked[1].split(".")] <= [int(part) for part in VERSIONS["go"].split(".")]


def test_kubernetes_staging_modules_are_those_of_its_version() -> None:
    text = (CHECKOUT / "components/kubernetes/go.mod").read_text()
    staging = set(re.findall(r"=> k8s\.io/\S+ v(\S+)", text))
    assert staging == {f"{components.STAGING_MAJOR}.{VERSIONS['kubernetes'].partition('.')[2]}"}


def test_every_version_is_of_a_component_that_can_be_configured() -> None:
    assert set(VERSIONS) == {*components.COMPONENTS, "go"}
    assert Config(version=1, components=VERSIONS).versions == VERSIONS


def test_the_package_and_the_image_have_the_same_version() -> None:
    assert Config(version=1).image_version == version("kubermesh")


def partition(name: str) -> dict[str, str]:
    text = (CHECKOUT / "overlays/root/usr/lib/kubermesh/repart.d" / f"{name}.conf").read_text()
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))


def size(text: str) -> int:
    return int(text[:-1]) * UNITS[text[-1]]


def test_both_slots_have_the_size_that_the_build_checks() -> None:
    for name in ("20-root-a", "30-root-b"):
        assert size(partition(name)["SizeMinBytes"]) == size(partition(name)["SizeMaxBytes"]) == disk.SLOT_BYTES


def test_the_hash_partitions_hold_the_hashes_of_a_full_slot() -> None:
    blocks, hashes = disk.SLOT_BYTES // 4096, 0
    while blocks > 1:  # 128 SHA-256 sums in a block
        blocks = -(-blocks // 128)
        hashes += blocks * 4096
    for name in ("21-root-a-verity", "31-root-b-verity"):
        assert size(partition(name)["SizeMinBytes"]) >= hashes + 4096


def test_what_fills_partitions_at_build_time_belongs_to_partitions_that_exist() -> None:
    for name in disk.BUILD_DROP_INS:
        assert partition(name)["Type"] in {"esp", "root", "root-verity"}


def test_the_build_uses_every_element_there_is() -> None:
    assert sorted(tree.ELEMENTS) == ELEMENTS


@pytest.mark.parametrize("name", ELEMENTS)
def test_every_element_explains_itself(name: str) -> None:
    text = (CHECKOUT / "elements" / name / "README.rst").read_text()
    assert text.splitlines()[1] == name
    assert len(text) > 150


@pytest.mark.parametrize("name", ELEMENTS)
def test_hooks_are_executable_short_and_stop_at_the_first_error(name: str) -> None:
    hooks = [path for path in (CHECKOUT / "elements" / name).glob("*.d/[0-9]*") if path.parent.name != "environment.d"]
    for hook in hooks:
        text = hook.read_text()
        assert os.access(hook, os.X_OK), hook
        assert "set -eu\nset -o pipefail\n" in text, hook
        assert len(text.splitlines()) <= 50, hook


def test_dib_lint_passes() -> None:
    tools = Path(sys.executable).parent
    env = {**os.environ, "ELEMENTS_DIR": "elements", "LIB_DIR": "elements", "PATH": f"{tools}:{os.environ['PATH']}"}
    done = subprocess.run([tools / "dib-lint"], cwd=CHECKOUT, env=env, capture_output=True, text=True, check=False)
    assert "Checking elements/kubermesh-node/finalise.d/" in done.stdout
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["kubermesh-debian/packages", "tools.packages"])
def test_package_lists_are_sorted_and_without_doubles(name: str) -> None:
    packages = package_list(name)
    assert packages == sorted(set(packages))

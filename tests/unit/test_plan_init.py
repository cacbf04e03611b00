"""`kmbuild init`: a whole cluster directory, or nothing."""

import base64
import json
import stat
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from cryptography import x509

from kmbuild import init as module
from kmbuild.init import init
from kmplan.cluster import read_cluster
from kmplan.errors import UserError

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAqk me@desk"


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(init, [str(argument) for argument in arguments])


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_it_makes_everything_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    result = invoke(tmp_path / "shop")
    assert result.exit_code == 0, result.output
    assert "Next: " in result.output
    authorities = ("cluster-ca", "front-proxy-ca", "etcd-ca", "node-ca", "break-glass")
    pairs = [f"pki/{name}.{kind}" for name in authorities for kind in ("crt", "key")]
    secrets = ["pki/service-account.key", "pki/service-account.pub", "encryption.key", "babel.key", "admin.kubeconfig"]
    assert names(tmp_path / "shop") == sorted(["cluster.yaml", "pki", *pairs, *secrets])
    for path in (tmp_path / "shop", *(tmp_path / "shop").rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert read_cluster(tmp_path / "shop").name == "shop"


def test_the_keys_have_the_right_sizes(tmp_path: Path) -> None:
    invoke(tmp_path / "shop")
    assert len(base64.b64decode((tmp_path / "shop/encryption.key").read_text())) == 32
    assert len(bytes.fromhex((tmp_path / "shop/babel.key").read_text())) == 32


def test_the_admin_is_bound_by_rights_not_above_them(tmp_path: Path) -> None:
    invoke(tmp_path / "shop", "--prefix", "fd12:3456:789a::/48")
    config = yaml.safe_load((tmp_path / "shop/admin.kubeconfig").read_text())
    assert config["clusters"][0]["cluster"]["server"] == "https://[fd12:3456:789a::a:1]:6443"
    data = base64.b64decode(config["users"][0]["user"]["client-certificate-data"])
    subject = x509.load_pem_x509_certificate(data).subject.rfc4514_string()
    assert subject == "CN=admin,O=kubermesh:admins"


def test_an_existing_directory_is_left_alone(tmp_path: Path) -> None:
    invoke(tmp_path / "shop")
    before = {path: path.read_bytes() for path in (tmp_path / "shop").rglob("*") if path.is_file()}
    result = invoke(tmp_path / "shop")
    assert isinstance(result.exception, UserError)
    assert str(result.exception) == f"{tmp_path}/shop: exists already; choose another name, or move it away"
    assert {path: path.read_bytes() for path in before} == before
    assert names(tmp_path) == ["shop", *(f"shop/{name}" for name in names(tmp_path / "shop"))]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prefix", "fd00::/64"), "cluster file: prefix: expected an IPv6 /48 in fd00::/8, got `fd00::/64`"),
        (("--ssh-key", "/nowhere.pub"), "/nowhere.pub: cannot be read: No such file or directory"),
    ],
)
def test_bad_options_make_nothing(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    result = invoke(tmp_path / "shop", *arguments)
    assert str(result.exception) == message
    assert names(tmp_path) == []


def test_a_private_key_is_not_taken_for_a_public_one(tmp_path: Path) -> None:
    (tmp_path / "id").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    result = invoke(tmp_path / "shop", "--ssh-key", tmp_path / "id")
    assert str(result.exception) == f"{tmp_path}/id: this is a private key; give {tmp_path}/id.pub"


def test_public_keys_are_taken_over(tmp_path: Path) -> None:
    (tmp_path / "a.pub").write_text(f"# mine\n{KEY}\n")
    result = invoke(tmp_path / "shop", "--ssh-key", tmp_path / "a.pub", "--voters", "1", "--json")
    assert json.loads(result.output)["ssh"] is True
    cluster = read_cluster(tmp_path / "shop")
    assert (cluster.ssh_authorized_keys, cluster.voters) == ([KEY], 1)


def test_an_interruption_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> dict[str, str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "secret_files", interrupt)
    invoke(tmp_path / "shop")
    assert names(tmp_path) == []


def test_a_missing_parent_folder_is_named(tmp_path: Path) -> None:
    assert str(invoke(tmp_path / "a/shop").exception) == f"{tmp_path}/a: no such folder"

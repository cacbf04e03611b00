"""The cluster file and the seed bundle: what is accepted, and the one line that tells what is wrong."""

from pathlib import Path

import msgspec
import pytest

from kmbuild.init import create
from kmplan import document
from kmplan.cluster import ClusterFile, read_cluster
from kmplan.errors import UserError
from kmplan.secret_files import SECRET_FILES
from kmplan.seed import make_bundle, parse_bundle

GOOD = "version: 1\nname: shop\nprefix: fd12:3456:789a::/48\n"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAqk me@desk"


def read(text: str) -> ClusterFile:
    return document.parse(text, ClusterFile, "cluster.yaml")


def test_the_shortest_file_has_defaults() -> None:
    cluster = read(GOOD)
    assert (cluster.voters, cluster.ssh_authorized_keys, cluster.dns_upstreams) == (3, [], [])
    assert str(cluster.plan.node(1)) == "fd12:3456:789a::1"


def test_every_key_may_be_given() -> None:
    text = GOOD + f"voters: 5\nssh_authorized_keys: ['{KEY}']\ndns_upstreams: [9.9.9.9, '2620:fe::fe']\n"
    assert read(text).dns_upstreams == ["9.9.9.9", "2620:fe::fe"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "votes: 3\n",
         "cluster.yaml: Object contains unknown field `votes`; known here: version, name, prefix, voters, "
         "ssh_authorized_keys, dns_upstreams, admission, egress"),
        (GOOD.replace("version: 1", "version: 2"), "cluster.yaml: version: Invalid enum value 2; expected one of: 1"),
        (GOOD + "voters: 2\n", "cluster.yaml: voters: Invalid enum value 2; expected one of: 1, 3, 5"),
        (GOOD + "voters: many\n", "cluster.yaml: voters: Expected `int`, got `str`"),
        (
            GOOD.replace("/48", "/56"),
            "cluster.yaml: prefix: expected an IPv6 /48 in fd00::/8, got `fd12:3456:789a::/56`",
        ),
        (
            GOOD.replace("name: shop", "name: My Shop"),
            "cluster.yaml: name: Expected `str` matching regex '^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$'; "
            "expected: Name of the cluster: lower-case letters, digits and dashes, at most 40.",
        ),
        ("version: 1\nname: shop\n", "cluster.yaml: Object missing required field `prefix`"),
        (
            GOOD + "ssh_authorized_keys: [hello]\n",
            "cluster.yaml: ssh_authorized_keys[0]: expected one public key as in id_ed25519.pub",
        ),
        (GOOD + "dns_upstreams: [dns.example]\n",
         "cluster.yaml: dns_upstreams[0]: expected an IP address, got `dns.example`"),
        ("[1, 2]", "cluster.yaml: Expected `object`, got `array`"),
        ("a: b: c", "cluster.yaml:1: not YAML: mapping values are not allowed here"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read(text)
    assert str(caught.value) == message


def test_a_folder_that_is_no_cluster_directory_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_cluster(tmp_path)
    hint = "make one with `kmbuild init NAME`"
    assert str(caught.value) == f"{tmp_path}: not a cluster directory (no cluster.yaml); {hint}"


def test_a_bundle_has_everything_but_the_admins_keys(tmp_path: Path) -> None:
    create(tmp_path / "shop", read(GOOD))
    bundle = parse_bundle(make_bundle(tmp_path / "shop", 7, "shop-7"))
    assert (bundle.node.number, bundle.node.name, bundle.cluster.name) == (7, "shop-7", "shop")
    assert set(bundle.files) == set(SECRET_FILES)


def test_a_bundle_of_an_incomplete_directory_names_the_file(tmp_path: Path) -> None:
    create(tmp_path / "shop", read(GOOD))
    (tmp_path / "shop/pki/etcd-ca.key").unlink()
    with pytest.raises(UserError, match=r"pki/etcd-ca\.key: cannot be read: No such file or directory"):
        make_bundle(tmp_path / "shop", 1, "shop-1")


def test_a_broken_bundle_is_refused_in_one_line(tmp_path: Path) -> None:
    create(tmp_path / "shop", read(GOOD))
    data = msgspec.json.decode(make_bundle(tmp_path / "shop", 1, "shop-1"))
    del data["files"]["babel.key"]
    with pytest.raises(UserError, match=r"^credential kubermesh.seed: files: babel.key missing$"):
        parse_bundle(msgspec.json.encode(data))
    with pytest.raises(UserError, match=r"^credential kubermesh.seed: "):
        parse_bundle(b"{")


def test_the_schema_explains_every_key() -> None:
    properties = document.schema(ClusterFile)["$defs"]["ClusterFile"]["properties"]
    assert [name for name, part in properties.items() if "description" not in part] == []

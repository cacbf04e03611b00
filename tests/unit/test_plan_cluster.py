"""The cluster file and the seed bundle: what is accepted, and the one line that tells what is wrong."""

from pathlib import Path

import msgspec
import pytest

from kmbuild.init import create
from kmplan import document
from kmplan.cluster import ClusterFile, read_cluster
from kmplan.errors import UserError
from kmplan.secret_files import SECRET_FILES
from kmplan.seed import make_bundle, make_join, parse_bundle, parse_join
from kmplan.voters import AUTO

GOOD = "version: 1\nname: shop\nprefix: fd12:3456:789a::/48\n"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAqk me@desk"


def read(text: str) -> ClusterFile:
    return document.parse(text, ClusterFile, "cluster.yaml")


def test_the_shortest_file_has_defaults() -> None:
    cluster = read(GOOD)
    assert (cluster.voters, cluster.wanted_voters, cluster.voter_grace_s) == ("auto", AUTO, 600)
    assert (cluster.ssh_authorized_keys, cluster.dns_upstreams) == ([], [])
    assert (cluster.admission.policy, cluster.egress.gateways, cluster.egress.discover) == ("approve", [], False)
    assert str(cluster.plan.node(1)) == "fd12:3456:789a::1"


def test_every_key_may_be_given() -> None:
    text = GOOD + f"voters: 5\nssh_authorized_keys: ['{KEY}']\ndns_upstreams: [9.9.9.9, '2620:fe::fe']\n"
    text += "admission: {policy: allowlist, allowlist: [4C4C4544-0042-3510-8052-B4C04F4E3132]}\n"
    text += (
        "egress: {discover: true, gateways: [{node: shop-1, port: eth0, addresses: ['2001:db8::7/64'], routers: []}]}\n"
    )
    cluster = read(text)
    assert cluster.dns_upstreams == ["9.9.9.9", "2620:fe::fe"]
    assert (cluster.admission.policy, cluster.egress.discover) == ("allowlist", True)
    assert cluster.egress.gateways[0].addresses == ["2001:db8::7/64"]


@pytest.mark.parametrize(("text", "offers"), [("off", False), ("false", False), ("on", True)])
def test_provisioning_is_switched_off_as_people_write_it(text: str, offers: bool) -> None:
    assert read(GOOD + f"provision: {text}\n").provision == offers


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "votes: 3\n",
         "cluster.yaml: Object contains unknown field `votes`; known here: version, name, prefix, voters, "
         "voter_grace_s, auto_recover, auto_recover_after_s, ssh_authorized_keys, dns_upstreams, admission, install, "
         "provision, egress"),
        (GOOD.replace("version: 1", "version: 2"), "cluster.yaml: version: Invalid enum value 2; expected one of: 1"),
        (GOOD + "voters: 2\n", "cluster.yaml: voters: Invalid enum value 2; expected one of: 1, 3, 5, auto"),
        (GOOD + "voters: many\n",
         "cluster.yaml: voters: Invalid enum value 'many'; expected one of: 1, 3, 5, auto"),
        (GOOD + "auto_recover: always\n",
         "cluster.yaml: auto_recover: Invalid enum value 'always'; expected one of: off, witness"),
        (GOOD + "auto_recover_after_s: 30\n",
         "cluster.yaml: auto_recover_after_s: Expected `float` >= 60.0"),
        (GOOD + "voter_grace_s: 1\n",
         "cluster.yaml: voter_grace_s: Expected `float` >= 10.0"),
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
        (
            GOOD + "admission: {policy: none}\n",
            "cluster.yaml: admission.policy: Invalid enum value 'none'; expected one of: allowlist, approve, auto",
        ),
        (
            GOOD + "admission: {policy: allowlist, allowlist: [4c4c4544-0042-3510-8052-b4c04f4e3132, desk]}\n",
            "cluster.yaml: admission: allowlist[1]: expected a UUID as firmware shows it, got `desk`",
        ),
        (
            GOOD + "admission: {allow: []}\n",
            "cluster.yaml: admission: Object contains unknown field `allow`; known here: policy, allowlist",
        ),
        (
            GOOD + "egress: {gateways: [{node: shop-1}]}\n",
            "cluster.yaml: egress.gateways[0]: Object missing required field `port`",
        ),
        (
            GOOD + "egress: {gateways: [{node: shop-1, port: eth0, addresses: [192.0.2.7/24, 192.0.2.300/24]}]}\n",
            "cluster.yaml: egress.gateways[0]: addresses[1]: expected an address with prefix length, got `192.0.2.300/24`",
        ),
        (
            GOOD + "egress: {gateways: [{node: shop-1, port: eth0, routers: [192.0.2.0/24]}]}\n",
            "cluster.yaml: egress.gateways[0]: routers[0]: expected an IP address, got `192.0.2.0/24`",
        ),
        (GOOD + "egress: {discover: perhaps}\n", "cluster.yaml: egress.discover: Expected `bool`, got `str`"),
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
    # A cluster's name may have forty characters.
    assert parse_bundle(make_bundle(tmp_path / "shop", 32767, f"{'s' * 40}-32767")).node.number == 32767
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


def test_a_blank_machine_is_given_whom_to_trust_and_no_secret(tmp_path: Path) -> None:
    create(tmp_path / "shop", read(GOOD))
    data = make_join(tmp_path / "shop", 7)
    join = parse_join(data)
    assert (join.name, join.number) == ("shop", 7)
    assert join.authority == (tmp_path / "shop/pki/node-ca.crt").read_text()
    assert b"PRIVATE KEY" not in data
    assert parse_join(make_join(tmp_path / "shop")).number == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "My Shop"}, "Expected `str` matching regex"),
        ({"number": 32768}, "Expected `int` <= 32767"),
        ({"number": "7"}, "Expected `int`, got `str`"),
        ({"version": 2}, "Invalid enum value 2"),
        ({"key": ""}, "Object contains unknown field `key`"),
        ({"authority": None}, "Expected `str`, got `null`"),
    ],
)
def test_a_wrong_join_credential_is_refused_in_one_line(change: dict[str, object], message: str) -> None:
    data = {"version": 1, "name": "shop", "authority": "", "number": 0, **change}
    with pytest.raises(UserError) as caught:
        parse_join(msgspec.json.encode(data))
    assert str(caught.value).startswith(f"credential kubermesh.join: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b'{"name": "\xff"}'])
def test_what_is_no_join_credential_is_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(UserError, match=r"^credential kubermesh.join: "):
        parse_join(data)


def test_a_join_credential_of_an_incomplete_directory_names_the_file(tmp_path: Path) -> None:
    create(tmp_path / "shop", read(GOOD))
    (tmp_path / "shop/pki/node-ca.crt").unlink()
    with pytest.raises(UserError, match=r"pki/node-ca\.crt: cannot be read: No such file or directory"):
        make_join(tmp_path / "shop")


def test_the_schema_explains_every_key() -> None:
    kinds = document.schema(ClusterFile)["$defs"]
    assert {"ClusterFile", "Admission", "Egress", "Gateway"} <= set(kinds)
    properties = {f"{kind}.{name}": part for kind, whole in kinds.items() for name, part in whole["properties"].items()}
    assert [name for name, part in properties.items() if "description" not in part] == []

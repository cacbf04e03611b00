"""`kmbuild recover`: from what a cluster is begun anew, when that is refused, and what the order says."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from kmagent import keep_order
from kmagent.identity import Role, write_role
from kmagent.paths import Paths
from kmbuild import recover
from kmbuild.cli import kmbuild
from kmbuild.init import create
from kmbuild.node_api import Etcd, Node, State, Survey
from kmplan import pki, seal
from kmplan.cluster import ClusterFile
from kmplan.errors import UserError

OLD, NEW = "1-700-1000.sealed", "1-900-2000.sealed"


def node(number: int, role: str, *, revision: int | None = 0, leader: bool = False, **more: Any) -> Node:
    """A node; with the revision 0 it has no data of etcd, with None etcd does not say."""
    etcd = None if revision == 0 else Etcd(revision, leader)
    state = State(**{"role": role, "epoch": 1, "own_epoch": 1, "certificate": "", "etcd": etcd, **more})
    return Node(number, f"shop-{number}", role, state)


def silent(number: int, role: str = "voter") -> Node:
    return Node(number, f"shop-{number}", role)


LOST = [silent(1), silent(2), node(3, "voter", revision=800), node(4, "worker", snapshots=[OLD]), node(5, "worker")]


@pytest.mark.parametrize(
    ("nodes", "wanted", "found"),
    [
        (LOST, None, ("shop-3", "data")),
        # A snapshot that is newer than the data of a voter that was cut off for long.
        ([*LOST[:3], node(4, "worker", snapshots=[OLD, NEW]), LOST[4]], None, ("shop-4", NEW)),
        ([*LOST[:3], node(4, "worker", snapshots=[OLD, NEW]), LOST[4]], "shop-3", ("shop-3", "data")),
        ([*LOST[:3], node(4, "worker", snapshots=[OLD, NEW]), LOST[4]], OLD, ("shop-4", OLD)),
        (LOST, "3", ("shop-3", "data")),
        # A later epoch goes further than any revision of an earlier one.
        ([node(1, "voter", revision=5, epoch=2, own_epoch=2), *LOST[1:]], None, ("shop-1", "data")),
        ([silent(1), silent(2), silent(3), LOST[3], LOST[4]], None, ("shop-4", OLD)),
        ([silent(1), node(2, "voter", revision=None), LOST[2]], None, ("shop-3", "data")),
        ([silent(1), node(2, "voter", revision=None), LOST[4]], None, ("shop-2", "data")),
    ],
)
def test_what_goes_furthest_is_taken(nodes: list[Node], wanted: str | None, found: tuple[str, str]) -> None:
    source = recover.choose(Survey("shop", nodes), wanted)
    assert (source.node.name, source.name) == found


@pytest.mark.parametrize("wanted", [None, "shop-1", "1-2-3.sealed"])
def test_nothing_to_begin_from_is_said(wanted: str | None) -> None:
    with pytest.raises(UserError, match="no node that answers has"):
        recover.choose(Survey("shop", [silent(1), node(2, "worker")]), wanted)


def test_a_cluster_that_works_is_not_begun_anew() -> None:
    works = Survey("shop", [node(1, "voter", revision=8, leader=True), node(2, "worker"), node(3, "worker")])
    with pytest.raises(UserError, match="etcd has a leader, says shop-1: there is nothing"):
        recover.check(works, force=False)
    recover.check(works, force=True)
    # A standby does not notice that the leader is gone.
    recover.check(
        Survey("shop", [silent(1), node(2, "standby", revision=8, leader=True), node(3, "worker")]), force=False
    )


def test_a_minority_is_not_enough_unless_it_is_forced() -> None:
    few = Survey("shop", [silent(1), silent(2), node(3, "voter", revision=8)])
    with pytest.raises(UserError, match="1 of 3 nodes answer, a majority has to know"):
        recover.check(few, force=False)
    recover.check(few, force=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    create(tmp_path / "shop", ClusterFile(version=1, name="shop", prefix="fd12:3456:789a::/48"))
    return tmp_path / "shop"


def test_a_node_takes_the_order_and_a_worker_is_sent_the_secrets(folder: Path) -> None:
    authority = pki.Pair(*((folder / f"pki/node-ca.{kind}").read_text() for kind in ("crt", "key")))
    key = pki.create_key()
    certificate = pki.certify(authority, pki.Subject("node"), pki.create_request(key, "node"), 90)
    survey = Survey(
        "shop", [silent(1), node(2, "worker", epoch=4), node(4, "worker", snapshots=[OLD], certificate=certificate)]
    )
    order = recover.make_order(folder, survey, recover.choose(survey, None), force=False)
    assert (order.epoch, order.number, order.source) == (5, 4, OLD)
    assert json.loads(seal.unseal(order.sealed, key))["encryption.key"] == (folder / "encryption.key").read_text()
    paths = Paths(state=folder)
    write_role(
        paths, Role(cluster_id=pki.fingerprint((folder / "pki/cluster-ca.crt").read_text()), number=2, name="shop-2")
    )
    assert keep_order.keep(paths, recover.sign(folder, order)) == {"state": "kept", "epoch": 5}


def test_secrets_go_to_nodes_of_the_cluster_only(folder: Path) -> None:
    other = pki.create_authority("other")
    certificate = pki.certify(other, pki.Subject("node"), pki.create_request(pki.create_key(), "node"), 90)
    survey = Survey("shop", [silent(1), node(4, "worker", snapshots=[OLD], certificate=certificate)])
    with pytest.raises(UserError, match="did not sign"):
        recover.make_order(folder, survey, recover.choose(survey, None), force=False)


def test_a_voter_has_the_secrets_already(folder: Path) -> None:
    survey = Survey("shop", LOST)
    assert recover.make_order(folder, survey, recover.choose(survey, None), force=True).sealed == ""


def test_without_a_node_to_ask_it_is_one_line(folder: Path) -> None:
    result = CliRunner().invoke(kmbuild, ["recover", "--cluster", str(folder)])
    assert isinstance(result.exception, UserError) and "which node shall be asked?" in str(result.exception)
    result = CliRunner().invoke(kmbuild, ["recover", "--cluster", str(folder), "--node", "::1"])
    assert isinstance(result.exception, UserError) and "no node answers at its own API" in str(result.exception)
    result = CliRunner().invoke(kmbuild, ["recover", "--cluster", str(folder.parent), "--node", "::1"])
    assert isinstance(result.exception, UserError) and "no usable certificates" in str(result.exception)

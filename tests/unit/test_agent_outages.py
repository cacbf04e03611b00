"""Which nodes are given up when the mesh loses them, and what Kubernetes is told of it."""

import asyncio
from typing import Any

import pytest
from agent_fakes import FIRST, KubernetesApi, Shop

from kmagent.candidates import Report
from kmagent.leases import LEASES
from kmagent.outages import ALONE_S, GROUP_S, RETURN_S, TAINT, Outages, given_up, patch, returning
from kmagent.registry import Registry

RING = {1: {2, 5}, 2: {1, 3}, 3: {2, 4}, 4: {3, 5}, 5: {4, 1}}
SLOW = {"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}


@pytest.mark.parametrize(
    ("lost", "nodes", "after_s", "gone"),
    [
        ({}, 5, 1000, set()),
        ({3}, 5, ALONE_S - 0.1, set()),
        ({3}, 5, ALONE_S, {3}),
        # Each of them alone: nobody is at the other ends of their cables who could be alive with them.
        ({2, 4}, 5, ALONE_S, {2, 4}),
        # Joined by a cable: perhaps two cables were cut, and they are alive.
        ({3, 4}, 5, ALONE_S, set()),
        ({3, 4}, 5, GROUP_S, {3, 4}),
        # It is this side that is cut off.
        ({2, 3, 4}, 5, 1000, set()),
        ({2}, 2, 1000, set()),
        ({2}, 3, ALONE_S, {2}),
        # Of a node that has never said who its neighbours are nothing is known.
        ({9}, 5, ALONE_S, {9}),
    ],
)
def test_a_node_is_given_up_when_it_cannot_be_alive_with_others(
    lost: set[int], nodes: int, after_s: float, gone: set[int]
) -> None:
    assert given_up(dict.fromkeys(lost, 100.0), nodes, RING, 100.0 + after_s) == gone


def test_who_is_dead_for_long_says_nothing_of_those_that_are_lost_now() -> None:
    lost, dead = {3: 0.0, 4: 100.0}, frozenset({3})
    assert given_up(lost, 5, RING, 100.0, dead) == {3}
    assert given_up(lost, 5, RING, 100.0 + ALONE_S, dead) == {3, 4}
    # Of four, one of whom is dead, the next may go as well; then half of those that were left.
    assert given_up({3: 0.0, 1: 100.0}, 4, RING, 200.0, dead) == {1, 3}
    assert given_up({3: 0.0, 1: 0.0, 2: 100.0, 5: 100.0}, 6, RING, 200.0, frozenset({1, 3})) == {1, 3}
    # One that is back is lost no more.
    assert given_up({}, 5, RING, 200.0, dead) == frozenset()


@pytest.mark.parametrize(
    ("before", "lost", "known", "again"),
    [
        ({3, 4}, {3, 4}, set(), set()),
        # Joined to one that is back: perhaps the power is, or the cable between the two and the rest.
        ({3, 4}, {4}, set(), {4}),
        ({2, 4}, {4}, set(), set()),
        ({2, 3, 4}, {4}, set(), {4}),
        # Half or more, wherever they are.
        ({1, 2, 4}, {4}, set(), {4}),
        ({1, 2, 4}, {1, 2, 4}, set(), set()),
        # One was given up long ago; the other two are half of those that were left.
        ({3, 4}, {4}, {4}, set()),
        ({1, 3, 4}, {3, 4}, {4}, {3}),
    ],
)
def test_who_may_be_on_the_way_back_is_waited_for_anew(
    before: set[int], lost: set[int], known: set[int], again: set[int]
) -> None:
    assert returning(before, lost, 5, RING, frozenset(known)) == again


def test_who_was_lost_first_is_given_up_first() -> None:
    assert given_up({2: 0.0, 4: 6.0}, 5, RING, 6.0) == {2}


def item(*taints: dict[str, str]) -> dict[str, Any]:
    return {"metadata": {"name": "shop-2", "resourceVersion": "7"}, "spec": {"taints": [*taints]} if taints else {}}


@pytest.mark.parametrize(
    ("taints", "lost", "wanted"),
    [([], False, None), ([], True, [TAINT]), ([SLOW], True, [SLOW, TAINT]), ([SLOW, TAINT], True, None),
     ([SLOW, TAINT], False, [SLOW]), ([TAINT], False, []), ([SLOW], False, None)],
)  # fmt: skip
def test_the_taint_comes_and_goes_and_others_stay(
    taints: list[dict[str, str]], lost: bool, wanted: list[dict[str, str]] | None
) -> None:
    change = patch(item(*taints), lost=lost)
    assert (change and change["spec"]["taints"]) == wanted
    assert change is None or change["metadata"]["resourceVersion"] == "7"


class Nodes(KubernetesApi):
    """The API with three Node objects, and pods that failed."""

    def __init__(self) -> None:
        names = [f"shop-{number}" for number in (1, 2, 3)]
        super().__init__(
            {f"/api/v1/nodes/{name}": {**item(), "metadata": {"name": name, "resourceVersion": "1"}} for name in names}
        )

    def do_get(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        pods = [one for key, one in self.objects.items() if "/pods/" in key]
        return (200, {"items": pods}) if path == "/api/v1/pods" else super().do_get(path, body)

    def fail(self, name: str, reason: str, *, controlled: bool = True) -> None:
        owners = [{"kind": "ReplicaSet", "name": name, "controller": controlled}]
        metadata = {"name": name, "namespace": "default", "ownerReferences": owners}
        pod = {"metadata": metadata, "status": {"phase": "Failed", "reason": reason}}
        self.objects[f"/api/v1/namespaces/default/pods/{name}"] = pod

    def failed(self) -> set[str]:
        return {key.rpartition("/")[2] for key in self.objects if "/pods/" in key}

    def do_patch(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.objects[path] = {**self.objects[path], "spec": body["spec"]}
        return 200, self.objects[path]

    def tainted(self) -> set[str]:
        return {one["metadata"]["name"] for one in self.objects.values() if one.get("spec", {}).get("taints")}


class Leader:
    """Leads a cluster of three; node 2 has a cable to node 1."""

    def __init__(self, api: Nodes) -> None:
        self.api = api
        self.registry = Registry("shop").put(FIRST).put(Shop.node(2)).put(Shop.node(3))
        self.outages = Outages(api)  # type: ignore[arg-type]

    def turn(self, reachable: set[int], now: float) -> bool:
        objects = {name.rpartition("/")[2]: one for name, one in self.api.objects.items()}
        reports = {2: Report(frozenset({1}))}
        return asyncio.run(self.outages.reconcile(self.registry, objects, frozenset(reachable), reports, now))


def test_a_lost_node_is_tainted_until_it_is_back() -> None:
    api = Nodes()
    turn = Leader(api).turn

    assert turn({1, 2, 3}, 0) is False
    assert turn({1, 3}, 10) is True and api.tainted() == set()
    # A flap: it begins anew.
    assert turn({1, 2, 3}, 14) is False
    assert turn({1, 3}, 15) is True and turn({1, 3}, 19) is True and api.tainted() == set()
    assert turn({1, 3}, 20) is True and api.tainted() == {"shop-2"}
    assert turn({1, 3}, 100) is False and len(api.writes) == 1
    assert turn({1, 2, 3}, 101) is False and api.tainted() == set()


def test_a_dead_node_whose_object_was_deleted_says_nothing_of_the_others() -> None:
    """It would be one of half of all that are lost, for ever."""
    api = Nodes()
    leader = Leader(api)
    leader.registry = leader.registry.put(Shop.node(4))
    api.objects = {path: one for path, one in api.objects.items() if not path.endswith("shop-4")}
    leader.turn({1, 2, 3}, 0)
    leader.turn({1, 3}, 100)
    leader.turn({1, 3}, 100 + ALONE_S)
    assert api.tainted() == {"shop-2"}


@pytest.mark.parametrize("reachable", [{1, 3}, {1}], ids=["alone", "with half of all"])
def test_a_lost_node_keeps_its_taint_under_a_new_leader(reachable: set[int]) -> None:
    api = Nodes()
    old = Leader(api).turn
    old({1, 3}, 0)
    old({1, 3}, ALONE_S)
    assert api.tainted() == {"shop-2"}
    # It counts from zero, and has nothing to say of a node that is still lost.
    new = Leader(api).turn
    new(reachable, 100)
    assert api.tainted() == {"shop-2"} and len(api.writes) == 1
    new({1, 2, 3}, 101)
    assert api.tainted() == set()


def test_who_led_the_control_plane_on_a_lost_node_leads_no_more() -> None:
    api = Nodes()
    holders = {"kube-controller-manager": "shop-2_1b2c", "kube-scheduler": "shop-3_9f8e"}
    for name, holder in holders.items():
        spec = {"holderIdentity": holder, "leaseDurationSeconds": 15}
        api.objects[f"{LEASES}/{name}"] = {"metadata": {"name": name, "resourceVersion": "5"}, "spec": spec}

    def held() -> list[str]:
        return [api.objects[f"{LEASES}/{name}"]["spec"]["holderIdentity"] for name in holders]

    turn = Leader(api).turn
    turn({1, 3}, 0)
    assert held() == ["shop-2_1b2c", "shop-3_9f8e"]
    turn({1, 3}, ALONE_S)
    assert held() == ["", "shop-3_9f8e"]
    # Somebody else leads now, and is left alone.
    api.objects[f"{LEASES}/kube-controller-manager"]["spec"]["holderIdentity"] = "shop-1_77aa"
    turn({1, 3}, ALONE_S + 1)
    assert held() == ["shop-1_77aa", "shop-3_9f8e"]


def test_pods_that_a_returning_node_denied_are_deleted_and_no_others() -> None:
    api = Nodes()
    turn = Leader(api).turn
    turn({1, 3}, 0)
    turn({1, 3}, 1000)
    api.fail("early", "TaintToleration")
    turn({1, 3}, 1001)
    assert api.failed() == {"early"}
    turn({1, 2, 3}, 1002)
    assert api.failed() == set()

    api.fail("late", "TaintToleration")
    api.fail("by-hand", "TaintToleration", controlled=False)
    api.fail("evicted", "Evicted")
    turn({1, 2, 3}, 1002 + RETURN_S - 1)
    assert api.failed() == {"by-hand", "evicted"}

    api.fail("of-another-cause", "TaintToleration")
    turn({1, 2, 3}, 1002 + RETURN_S)
    assert "of-another-cause" in api.failed()
    # Who leads from now on does not know when the last one came back.
    Leader(api).turn({1, 2, 3}, 5000)
    assert api.failed() == {"by-hand", "evicted"}

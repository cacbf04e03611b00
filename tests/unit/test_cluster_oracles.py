"""What the oracles of `kmbuild verify` conclude of what they saw; each check can fail."""

from types import SimpleNamespace

import msgspec
import pytest

from kmcluster import prober, watcher, witness
from kmcluster.writer import Count, Entry, judge, outages, reason


def log(*steps: tuple[str, float, int]) -> list[Entry]:
    """Steps that took a tenth of a second: kind, when they began, value."""
    return [Entry(kind, begun, begun + 0.1, value) for kind, begun, value in steps]


GOOD = log(
    ("read", 0, 0),
    ("acked", 0.1, 1),
    ("read", 1, 1),
    ("acked", 1.1, 2),
    ("failed", 2, 0),
    ("read", 3, 3),
    ("acked", 3.1, 4),
)


def test_writes_that_are_all_there_are_none_lost() -> None:
    # What failed was written all the same: that is no loss.
    assert judge([GOOD], 4) == Count(acked=3, lost=(), failed=1)


@pytest.mark.parametrize(
    ("logs", "final", "lost"),
    [
        # The end is before what was acknowledged.
        ([GOOD], 3, (4,)),
        ([GOOD], 1, (2, 4)),
        # Somebody reads an older value, and goes on from there.
        ([log(("acked", 0, 1), ("acked", 1, 2), ("read", 2, 1), ("acked", 2.1, 2))], 2, (2,)),
        # Two writers are told the same.
        ([log(("acked", 0, 5)), log(("acked", 0.05, 5))], 5, (5,)),
        # A read that began before the write was acknowledged may see the old value.
        ([log(("acked", 1, 2)), log(("read", 0.95, 1))], 2, ()),
    ],
)
def test_a_write_that_is_gone_is_found(logs: list[list[Entry]], final: int, lost: tuple[int, ...]) -> None:
    assert judge(logs, final).lost == lost


def test_what_a_majority_says_that_the_cluster_went_on_without_does_not_count() -> None:
    logs = [log(("acked", 1, 2), ("acked", 12, 3), ("acked", 13, 4), ("acked", 21, 3))]
    assert judge(logs, 3).lost == (3, 4)
    assert judge(logs, 3, (10.0, 20.0)) == Count(acked=2, lost=(), failed=0)
    assert judge(logs, 1, (10.0, 20.0)).lost == (2, 3)


def longest(found: list[tuple[float, float]]) -> tuple[float, float]:
    return max(found, key=lambda gap: gap[1] - gap[0])


def test_the_longest_outage_is_the_worst_of_any_writer() -> None:
    steady = log(*(("acked", float(second), second) for second in range(20)))
    broken = log(*(("acked", float(second), second) for second in (0, 1, 2, 9, 10, 11, 19)))
    assert longest(outages([steady, broken], 2.5, 15)) == (2.5, 9.1)
    # One that comes too late again and again is served all the same.
    late = [Entry("conflict", one.begun, one.ended, one.value) for one in steady]
    assert longest(outages([steady, late], 2.5, 15)) == longest(outages([steady], 2.5, 15))
    # One that never comes back.
    assert longest(outages([steady, log(("acked", 1, 1))], 2.5, 15)) == (2.5, 15)


def test_an_outage_tells_why() -> None:
    failed = [Entry("failed", 3.0 + step, 3.5 + step, why=why) for step, why in enumerate(("refused", "late", "late"))]
    assert reason([failed, []], 2.0, 9.0) == "late" and reason([failed], 2.0, 4.0) == "refused"
    assert reason([failed], 7.0, 9.0) == ""


def test_a_service_that_is_silent_is_so_from_answer_to_answer() -> None:
    log = [prober.Probe(0.02 * step, 0.02 * step + 0.001, not 100 <= step < 200) for step in range(500)]
    begin, end = longest(prober.silences(log, 1.0, 8.0))
    assert (begin, end) == pytest.approx((1.981, 4.001))
    assert prober.answered(log, 0.1) and not prober.answered(log, 0.0) and not prober.answered(log[100:200], 8.0)
    # Nothing before, and nothing after, is a silence too; probes are noted in the order in which they end.
    assert prober.silences([], 1.0, 8.0) == [(1.0, 8.0)]
    assert longest(prober.silences(list(reversed(log)), 9.0, 20.0)) == pytest.approx((9.981, 20.0))


def test_the_service_is_where_the_harm_is_and_not_where_it_is_asked_from() -> None:
    one, two = (SimpleNamespace(name=f"shop-{number}") for number in (1, 2))
    spec = prober.deployment("coredns", one, [two])["spec"]["template"]["spec"]  # type: ignore[arg-type, list-item]
    affinity = spec["affinity"]["nodeAffinity"]
    (required,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert required["matchExpressions"][0]["operator"] == "NotIn"
    assert required["matchExpressions"][0]["values"] == ["shop-1"]
    (preferred,) = affinity["preferredDuringSchedulingIgnoredDuringExecution"]
    assert preferred["preference"]["matchExpressions"][0]["values"] == ["shop-2"]


def test_a_pod_that_is_gone_tells_of_its_node() -> None:
    before = {"a": "shop-1", "b": "shop-2", "c": "shop-3"}
    assert witness.evicted(before, {**before, "d": "shop-3"}) == []
    assert witness.evicted(before, {"a": "shop-1", "d": "shop-2"}) == ["shop-2", "shop-3"]


def sight(at: float, members: str, leads: str = "", term: int = 1, me: str = "1") -> watcher.Sight:
    """`members` are ids, a learner's in capitals."""
    found = {one.lower(): one.isupper() for one in members}
    return watcher.Sight(at, found, me, leads == me, term)


@pytest.mark.parametrize(
    ("log", "wrong"),
    [
        ([], []),
        ([sight(0, "abc"), sight(0.1, "abcD"), sight(0.2, "abcd"), sight(0.3, "bcd")], []),
        ([sight(0, "abc"), sight(0.1, "bcd")], ["2 members of etcd changed at once"]),
        ([sight(0, "abcD"), sight(0.1, "bcd")], ["2 members of etcd changed at once"]),
        # It did not answer for a while: whatever was between is not seen.
        ([sight(0, "abc"), sight(3.0, "bcd")], []),
        ([sight(0, "abcD"), sight(0.1, "abcDE"), sight(0.2, "abcDE")], ["etcd had two learners"]),
    ],
)
def test_members_change_one_at_a_time(log: list[watcher.Sight], wrong: list[str]) -> None:
    assert watcher.judge([log, []]) == wrong


def test_one_member_leads_in_a_term() -> None:
    def leads(me: str, *terms: int) -> list[watcher.Sight]:
        return [sight(at, "12", me, term, me) for at, term in enumerate(terms)]

    assert watcher.judge([leads("1", 4, 4, 6, 6), leads("2", 5, 5)]) == []
    assert watcher.judge([leads("1", 4, 4, 6, 6), leads("2", 4, 4)]) == ["two members of etcd led in term 4"]
    # Begun anew, etcd counts terms from the beginning again.
    again = [msgspec.structs.replace(one, cluster="another") for one in leads("2", 4, 4)]
    assert watcher.judge([leads("1", 4, 4), again]) == []
    # It was asked while it learned that another one leads now.
    assert watcher.judge([[*leads("1", 4, 4, 5), sight(9, "12", "2", 5, "1")], leads("2", 5, 5)]) == []


def test_elections_are_counted_from_the_term_before_the_fault() -> None:
    one, two = [sight(0, "12", term=4), sight(5, "12", term=4)], [sight(1, "12", term=4), sight(6, "12", term=6)]
    assert watcher.elections([one, two], 2, 9) == 2
    assert watcher.elections([one, two], 2, 6) == watcher.elections([one], 2, 9) == watcher.elections([], 0, 9) == 0
    # Nobody saw what was before: the first that is seen counts for it.
    assert watcher.elections([two[1:]], 2, 9) == 0

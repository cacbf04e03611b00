"""Of etcd's members the one that has other data than the others is removed, and the cluster takes writes again."""

import asyncio

import pytest
from agent_fakes import EtcdMember, EtcdServer

from kmagent import spoiled
from kmagent.etcd import CORRUPT, Etcd, Member


def server(corrupt: list[str], voters: int = 3, *, learner: bool = True, leader: str = "1") -> EtcdServer:
    members = [
        EtcdMember(str(number), f"https://[fd00::{number}]:2380", f"shop-{number}", number > voters)
        for number in range(1, voters + 1 + learner)
    ]
    return EtcdServer(members=members, corrupt=corrupt, leader=leader)


def mend(etcd: EtcdServer, away: str = "") -> str:
    def answers(member: Member) -> bool:
        return member.id not in away

    async def scenario() -> str:
        asked = Etcd(etcd, etcd)  # type: ignore[arg-type]
        return await spoiled.mend(asked, (await asked.alarms())[CORRUPT], answers)

    return asyncio.run(scenario())


def ids(etcd: EtcdServer) -> list[str]:
    return [member.id for member in etcd.members]


@pytest.mark.parametrize("member", ["2", "3", "4"])
def test_who_has_other_data_is_removed(member: str) -> None:
    etcd = server([member])
    assert mend(etcd) == ""
    assert member not in ids(etcd) and len(ids(etcd)) == 3 and etcd.corrupt == []
    assert mend(etcd) == "" and len(ids(etcd)) == 3


def test_an_alarm_of_one_that_was_removed_before_is_ended() -> None:
    """The agent may have been killed in between."""
    etcd = server(["9"])
    assert mend(etcd) == "" and etcd.corrupt == [] and len(ids(etcd)) == 4


def test_who_does_not_lead_does_nothing() -> None:
    etcd = server(["2"], leader="3")
    assert mend(etcd) == "" and etcd.corrupt == ["2"] and len(ids(etcd)) == 4


def test_a_leader_with_other_data_has_another_one_lead() -> None:
    etcd = server(["1"])
    assert mend(etcd, away="2") == "" and etcd.leader == "3" and len(ids(etcd)) == 4
    etcd.local = "3"
    assert mend(etcd) == "" and "1" not in ids(etcd) and etcd.corrupt == []


@pytest.mark.parametrize(("corrupt", "voters"), [(["0"], 3), (["1", "2"], 2), (["0", "1", "2"], 2)])
def test_nobody_is_removed_where_nobody_knows_whose_data_are_right(corrupt: list[str], voters: int) -> None:
    etcd = server(corrupt, voters, learner=False)
    assert "kmbuild recover --force" in mend(etcd)
    assert len(ids(etcd)) == voters and etcd.corrupt == corrupt


@pytest.mark.parametrize(("corrupt", "voters", "away"), [("2", 3, "3"), ("2", 2, "1"), ("1", 3, "23")])
def test_nobody_is_removed_where_that_would_end_the_cluster(corrupt: str, voters: int, away: str) -> None:
    """Which data are right is known: nobody has to begin anew."""
    etcd = server([corrupt], voters, learner=False)
    said = mend(etcd, away=away)
    assert f"shop-{corrupt}" in said and "recover" not in said
    assert len(ids(etcd)) == voters and etcd.corrupt == [corrupt] and etcd.leader == "1"
    assert mend(etcd) == ""


def test_two_of_five_are_removed_one_after_the_other() -> None:
    etcd = server(["2", "3"], 5)
    assert mend(etcd) == "" and len(ids(etcd)) == 5
    assert mend(etcd) == "" and ids(etcd) == ["1", "4", "5", "6"] and etcd.corrupt == []


@pytest.mark.parametrize(("corrupt", "voters", "left"), [(["0", "2"], 3, 2), (["0", "9"], 3, 3), (["0"], 1, 1)])
def test_the_alarm_of_nobody_ends_when_it_is_known_whose_data_were_others(
    corrupt: list[str], voters: int, left: int
) -> None:
    """Too few answered at first; or there is nobody any more to differ from."""
    etcd = server(corrupt, voters, learner=False)
    assert mend(etcd) == "" and etcd.corrupt == [] and len(ids(etcd)) == left


def test_the_next_one_leads_when_the_first_does_not_take_over() -> None:
    etcd = server(["1"])
    etcd.deaf = {"2"}
    assert mend(etcd) == "" and etcd.leader == "3"
    etcd.leader, etcd.deaf = "1", {"2", "3"}
    assert "shop-1" in mend(etcd) and etcd.leader == "1"

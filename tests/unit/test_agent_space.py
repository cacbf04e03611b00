"""etcd whose database has reached its quota is made writable again, as long as it is history that fills it."""

import asyncio

import pytest
from agent_fakes import EtcdServer

from kmagent import space
from kmagent.etcd import NO_SPACE, Etcd

MIB = 2**20


def server(**sizes: int) -> EtcdServer:
    return EtcdServer(
        **{"size": 100 * MIB, "used": 100 * MIB, "history": 80 * MIB, "quota": 100 * MIB, **sizes}, alarms=["1", "2"]
    )  # type: ignore[arg-type]


def mend(etcd: EtcdServer, *, leads: bool) -> str:
    async def scenario() -> str:
        asked = Etcd(etcd, etcd)  # type: ignore[arg-type]
        return await space.mend(asked, (await asked.alarms())[NO_SPACE], leads=leads)

    return asyncio.run(scenario())


def test_history_is_dropped_and_the_alarm_ended() -> None:
    etcd = server()
    assert mend(etcd, leads=True) == ""
    assert (etcd.size, etcd.used, etcd.alarms) == (20 * MIB, 20 * MIB, [])
    assert mend(etcd, leads=True) == ""


def test_a_member_that_does_not_lead_makes_its_own_database_smaller_and_no_more() -> None:
    etcd = server(used=20 * MIB, history=0)
    assert mend(etcd, leads=False) == ""
    assert (etcd.size, etcd.alarms) == (20 * MIB, ["1", "2"])


@pytest.mark.parametrize("leads", [True, False])
def test_data_that_are_in_use_are_not_dropped_and_it_is_said(leads: bool) -> None:
    etcd = server(history=0)
    assert mend(etcd, leads=leads) == "100 MiB are in use, of 100 at most: delete objects"
    assert etcd.alarms == ["1", "2"]


def test_without_an_alarm_nothing_is_done() -> None:
    etcd = server()
    etcd.alarms = []
    assert mend(etcd, leads=True) == "" and etcd.size == 100 * MIB

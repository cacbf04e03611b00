"""Settings of the control plane: what may be set, in which order nodes take it, and what is taken back."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from agent_fakes import FACTS, Shop, Told
from agent_sockets import eventually, live, until

from kmagent import apply_settings, rollout, settings
from kmagent.apply_settings import Applier
from kmagent.paths import Paths
from kmagent.rollout import Rollout, advance
from kmagent.settings import Kept, Plan, Report, Settings
from kmagent.state import State

OWN = {"kube-apiserver": frozenset({"secure-port"}), "etcd": frozenset({"data-dir"})}
WANTED = Settings({"kube-apiserver": {"event-ttl": "2h"}})
BEFORE = Settings({"kube-apiserver": {"event-ttl": "3h"}})


def test_each_key_is_an_argument_of_a_component() -> None:
    data = {"kube-apiserver.event-ttl": "2h", "etcd.snapshot-count": "20000", "kube-scheduler.v": ""}
    found = settings.parse(data, OWN)
    assert found.arguments == {
        "kube-apiserver": {"event-ttl": "2h"}, "etcd": {"snapshot-count": "20000"}, "kube-scheduler": {"v": ""},
    }  # fmt: skip
    assert found.id == settings.parse(dict(reversed(data.items())), OWN).id != WANTED.id
    assert settings.parse({}, OWN).id == ""


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("event-ttl", "2h", "expected COMPONENT.ARGUMENT"),
        ("kubelet.v", "2", "expected COMPONENT.ARGUMENT"),
        ("kube-apiserver.--v", "2", "expected COMPONENT.ARGUMENT"),
        ("kube-apiserver.secure-port", "1", "^kube-apiserver.secure-port: Kubermesh sets this itself$"),
        ("etcd.force-new-cluster", "true", "of etcd there may be"),
        ("etcd.data-dir", "/data", "Kubermesh sets this itself"),
        ("kube-apiserver.event-ttl", "2h\n- --insecure", "expected one line"),
        ("kube-apiserver.event-ttl", "x" * 1001, "expected one line"),
    ],
)
def test_what_may_not_be_set_is_refused_in_a_line(key: str, value: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        settings.parse({key: value}, OWN)


def test_what_the_manifests_have_is_kubermeshs_own_but_for_what_was_set(tmp_path: Path) -> None:
    for name in ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"):
        (tmp_path / f"{name}.yaml").write_text(
            "command:\n- /usr/bin/x\n- --a=1\n- '--b=::'\n- \"--event-ttl=2h\"\n  - --c\n"
        )
    own = settings.own_arguments(tmp_path, WANTED)
    assert own["kube-apiserver"] == {"a", "b", "c"} and own["etcd"] == {"a", "b", "c", "event-ttl"}


def test_one_voter_after_the_other_takes_the_settings() -> None:
    plan, reports, seen = Plan(), {}, []
    for _ in range(4):
        plan, said = advance(plan, WANTED, [2, 3, 1], reports)
        seen.append((plan.nodes, plan.good == WANTED, said))
        reports = {number: Report(WANTED.id) for number in plan.nodes}
    assert seen == [
        ((2,), False, "applied to 0 of 3 voters"),
        ((2, 3), False, "applied to 1 of 3 voters"),
        ((1, 2, 3), False, "applied to 2 of 3 voters"),
        ((1, 2, 3), True, "applied"),
    ]
    # A voter that came later.
    assert advance(plan, WANTED, [2, 3, 1, 4], reports)[0].nodes == (1, 2, 3, 4)


def test_nobody_begins_while_a_voter_is_away() -> None:
    """Who has begun goes on. What one that is away has refused stays refused, and what it has not tried is not proven."""
    plan = Plan(WANTED, (2,), BEFORE, WANTED.id)
    waits = "applied to 1 of 3 voters, waits for node 3"
    assert advance(plan, WANTED, [2, 3, 1], {2: Report(WANTED.id)}, {3}) == (plan, waits)
    assert advance(plan, WANTED, [2, 3, 1], {}, {3})[0].nodes == (2,)
    assert advance(Plan(BEFORE, (1, 2, 3), BEFORE), WANTED, [2, 3, 1], {}, {3})[0].nodes == ()
    reports = {2: Report(BEFORE.id, WANTED.id, "unknown flag")}
    following, said = advance(plan, WANTED, [2, 3, 1], reports, {2})
    assert following.target == BEFORE
    assert said == "refused by node 2, taken back on 1 of 3 voters, waits for node 2: unknown flag"


def test_what_one_node_refuses_is_taken_back_on_all() -> None:
    plan = Plan(WANTED, (2, 3), BEFORE)
    reports = {2: Report(WANTED.id), 3: Report(BEFORE.id, WANTED.id, "unknown flag"), 1: Report(BEFORE.id)}
    plan, said = advance(plan, WANTED, [2, 3, 1], reports)
    assert said == "refused by node 3, taken back on 2 of 3 voters: unknown flag"
    assert (plan.target, plan.nodes, plan.good, plan.wanted) == (BEFORE, (1, 2, 3), BEFORE, WANTED.id)
    other = Settings({"kube-apiserver": {"event-ttl": "9h"}})
    assert advance(plan, other, [2, 3, 1], {**reports, 2: Report(BEFORE.id)})[0] == Plan(other, (2,), BEFORE, other.id)


def test_what_is_kept_is_read_again(tmp_path: Path) -> None:
    for kept in (Kept(), Kept(BEFORE, WANTED), Kept(BEFORE, None, WANTED.id, "why")):
        settings.save(tmp_path / "settings.json", kept)
        assert settings.load(tmp_path / "settings.json") == kept
    (tmp_path / "settings.json").write_text("{")
    assert settings.load(tmp_path / "settings.json") == Kept()
    plan = Plan(WANTED, (1, 2), BEFORE)
    assert settings.plan_from_text(settings.plan_to_text(plan)) == plan and settings.plan_from_text("") == Plan()


class Voter:
    """A voter whose components are well, or not."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shop = Shop(folder / "shop")
        self.paths: Paths = self.shop.paths
        self.state = State()
        for name in ("etcd", "api"):
            self.state.conditions[name] = True
        self.complaint = ""
        self.prepared: list[str] = []
        asyncio.run(self.shop.begin())

        async def child(*_: str) -> dict[str, Any]:
            self.prepared.append(settings.load(self.paths.settings).current.id)
            return {}

        async def complain(*_: Any) -> str:
            return self.complaint

        monkeypatch.setattr(apply_settings, "child", child)
        monkeypatch.setattr(Applier, "_complaint", complain)
        for name, value in {"PERIOD_S": 0.01, "LOOK_S": 0.01, "HEALTHY_S": 10}.items():
            monkeypatch.setattr(apply_settings, name, value)

    def begin(self, told: Told) -> asyncio.Task[None]:
        applier = Applier(self.state, self.paths, FACTS, self.shop.ledger, told)  # type: ignore[arg-type]
        return asyncio.create_task(applier.run())

    def run_until(self, done: Callable[[], Awaitable[bool]]) -> None:
        async def scenario() -> None:
            task = self.begin(Told(works=False))
            await eventually(done)
            task.cancel()

        live(scenario())

    async def has_said(self, report: Report) -> bool:
        return (await self.shop.ledger.settings_reports()).get(FACTS.number) == report

    def want(self, plan: Plan) -> None:
        asyncio.run(self.shop.ledger.note_settings_plan(plan))


@pytest.fixture
def voter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Voter:
    return Voter(tmp_path, monkeypatch)


def test_a_node_applies_what_it_is_told_when_it_is_its_turn(voter: Voter) -> None:
    voter.want(Plan(WANTED, (7,)))
    voter.run_until(lambda: asyncio.sleep(0.2, True))
    assert voter.prepared == [] and asyncio.run(voter.has_said(Report()))
    voter.want(Plan(WANTED, (1, 7)))
    voter.run_until(lambda: voter.has_said(Report(WANTED.id)))
    assert settings.load(voter.paths.settings) == Kept(WANTED)


def test_a_node_that_hears_of_settings_does_not_ask_for_them(voter: Voter, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, read, ledger = 0, voter.shop.ledger.settings_plan, voter.shop.ledger

    async def count() -> Plan:
        nonlocal asked
        asked += 1
        return await read()

    monkeypatch.setattr(ledger, "settings_plan", count)

    async def scenario() -> None:
        told = Told()
        task = voter.begin(told)
        await until(lambda: asked > 0)
        await asyncio.sleep(0.1)
        assert asked == 1
        await ledger.note_settings_plan(Plan(WANTED, (1,)))
        told.tell()
        await eventually(lambda: voter.has_said(Report(WANTED.id)))
        task.cancel()

    live(scenario())


def test_a_node_takes_back_what_does_not_work_also_after_it_was_cut_off(
    voter: Voter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apply_settings, "HEALTHY_S", 0.1)
    settings.save(voter.paths.settings, Kept(BEFORE, WANTED))
    voter.complaint = "kube-apiserver does not run with them: unknown flag"
    # etcd is what the settings stopped: nobody can be asked.
    voter.state.conditions["etcd"] = False
    voter.run_until(lambda: asyncio.sleep(0, bool(voter.prepared)))
    assert settings.load(voter.paths.settings) == Kept(BEFORE, None, WANTED.id, voter.complaint)
    voter.state.conditions["etcd"] = True
    voter.want(Plan(WANTED, (1,), wanted=WANTED.id))
    voter.run_until(lambda: voter.has_said(Report(BEFORE.id, WANTED.id, voter.complaint)))
    voter.run_until(lambda: asyncio.sleep(0.1, True))
    assert voter.prepared == [BEFORE.id]
    # Nobody asks for it any more, and then somebody does again, when what kept it from working is mended.
    voter.want(Plan(BEFORE, (1,), wanted=BEFORE.id))
    voter.run_until(lambda: voter.has_said(Report(BEFORE.id)))
    voter.complaint = ""
    voter.want(Plan(WANTED, (1,), wanted=WANTED.id))
    voter.run_until(lambda: voter.has_said(Report(WANTED.id)))


def test_the_words_of_a_component_that_does_not_start_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "kube-system_kube-apiserver-shop-1_0/kube-apiserver"
    folder.mkdir(parents=True)
    (folder / "0.log").write_text(
        "2026-11-25T10:00:00Z stderr F Usage:\n2026-11-25T10:00:01Z stderr F Error: no flag --x\n\n"
    )
    assert apply_settings.last_words(tmp_path, "kube-apiserver") == "Error: no flag --x"
    assert apply_settings.last_words(tmp_path, "etcd") == ""


class Cm:
    """The API with the ConfigMap of settings, or without."""

    def __init__(self, data: dict[str, str] | None) -> None:
        self.item = None if data is None else {"metadata": {"name": "x"}, "data": data}

    async def request(self, method: str, path: str, body: bytes | None = None, content_type: str = "") -> Any:
        import json

        from kmagent.http import Response

        await asyncio.sleep(0)
        if self.item is None:
            return Response(404, b"{}")
        if method == "PATCH":
            self.item["metadata"] = {**self.item["metadata"], **json.loads(body or b"{}")["metadata"]}
        return Response(200, json.dumps(self.item).encode())


@pytest.mark.parametrize(
    ("data", "said", "target"),
    [
        ({"kube-apiserver.event-ttl": "2h"}, "applied to 0 of 2 voters", WANTED.id),
        ({"kube-apiserver.secure-port": "1"}, "refused: kube-apiserver.secure-port: Kubermesh sets this itself", ""),
        ({}, "applied", ""),
        (None, None, ""),
    ],
)
def test_the_configmap_says_what_became_of_it(
    voter: Voter, data: dict[str, str] | None, said: str | None, target: str
) -> None:
    voter.paths.staged.mkdir(parents=True)
    for name in ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"):
        (voter.paths.staged / f"{name}.yaml").write_text("- --secure-port=6443\n")
    api = Cm(data)
    leading = Rollout(api, voter.shop.ledger, voter.paths, FACTS)  # type: ignore[arg-type]
    registry, _ = asyncio.run(voter.shop.ledger.registry())
    registry = registry.put(replace(Shop.node(2), role="voter"))
    asyncio.run(leading.reconcile(registry, frozenset({1, 2})))
    annotations = (api.item or {}).get("metadata", {}).get("annotations", {})
    assert annotations.get(rollout.SAYS) == said
    plan = asyncio.run(voter.shop.ledger.settings_plan())
    assert plan.target.id == target and (not target or plan.nodes == (2,))
    assert leading._next > time.monotonic()


def test_settings_are_given_up_for_what_the_image_has(voter: Voter) -> None:
    settings.save(voter.paths.settings, Kept(WANTED))
    voter.want(Plan(Settings(), (1,), WANTED))
    voter.run_until(lambda: voter.has_said(Report()))
    assert settings.load(voter.paths.settings) == Kept()

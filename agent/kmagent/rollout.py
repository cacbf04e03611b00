"""Has settings of the control plane applied node by node, by the node that leads; its own components come last.

What one node refuses is taken back on all, and the ConfigMap says why.
"""

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from kmagent import kubernetes_api, settings
from kmagent.facts import Facts
from kmagent.http import Client
from kmagent.ledger import Ledger
from kmagent.paths import Paths
from kmagent.registry import Registry
from kmagent.settings import Plan, Report, Settings

log = logging.getLogger(__name__)

PATH = "/api/v1/namespaces/kube-system/configmaps/kubermesh-control-plane"
SAYS = "kubermesh.io/state"
PERIOD_S = 5.0


def advance(
    plan: Plan, wanted: Settings, voters: Sequence[int], reports: Mapping[int, Report], away: Collection[int] = ()
) -> tuple[Plan, str]:
    """Return the next plan, and in words how far it is; `voters` are in the order in which they take their turn.

    Nobody's turn begins while voters are `away`: one more that starts anew might be one too many.
    """
    said_no = [number for number in voters if wanted.id and number in reports and reports[number].refused == wanted.id]
    target = plan.good if said_no else wanted
    done = [number for number in voters if reports.get(number, Report()).id == target.id]
    waiting = [number for number in voters if number not in done]
    under_way = plan.nodes if plan.target == target else ()
    turn = [number for number in waiting if not away or number in under_way][:1]
    good = target if not waiting else plan.good
    count = f"{len(done)} of {len(voters)} voters" + (f", waits for node {min(away)}" if away else "")
    said = f"applied to {count}" if waiting else "applied"
    if said_no:
        now = f"taken back on {count}" if waiting else "the settings before are in force"
        said = f"refused by node {said_no[0]}, {now}: {reports[said_no[0]].why}"
    return Plan(target, tuple(sorted(done + turn)), good, wanted.id), said


class Rollout:
    """The leading node's part."""

    def __init__(self, client: Client, ledger: Ledger, paths: Paths, facts: Facts) -> None:
        self._client, self._ledger, self._paths, self._facts = client, ledger, paths, facts
        self._next = 0.0

    async def reconcile(self, registry: Registry, reachable: frozenset[int]) -> bool:
        """Do what is due; False when it is too soon for that."""
        if time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + PERIOD_S * self._facts.probe_scale
        item = await kubernetes_api.get(self._client, PATH)
        plan = await self._ledger.settings_plan()
        try:
            current = settings.load(self._paths.settings).current
            wanted = settings.parse((item or {}).get("data") or {}, settings.own_arguments(self._paths.staged, current))
        except ValueError as error:
            await self._say(item, f"refused: {error}")
            return True
        voters = [node.number for node in registry.nodes if node.role == "voter"]
        voters.sort(key=lambda number: (number == self._facts.number, number))
        away = set(voters) - reachable
        following, said = advance(plan, wanted, voters, await self._ledger.settings_reports(), away)
        if following != plan:
            log.info("settings %s for nodes %s", following.target.id or "of the image", following.nodes)
            await self._ledger.note_settings_plan(following)
        await self._say(item, said)
        return True

    async def _say(self, item: dict[str, Any] | None, text: str) -> None:
        """Show it where the settings are edited."""
        if item is None or item["metadata"].get("annotations", {}).get(SAYS) == text:
            return
        log.info("settings: %s", text)
        await kubernetes_api.merge(self._client, PATH, {"metadata": {"annotations": {SAYS: text}}})

"""What every cluster has besides the control plane: rights, kube-proxy and CoreDNS. Applied again and again."""

import asyncio
import json
import logging

from kmagent import kubernetes_api
from kmagent.http import Client
from kmagent.paths import Paths
from kmagent.state import State

log = logging.getLogger(__name__)

RETRY_S = 1.0
REPEAT_S = 60.0


async def run(state: State, paths: Paths, client: Client) -> None:
    """Apply the add-ons as soon as the API is ready, and bring back what somebody deleted or changed."""
    facts = state.facts
    assert facts is not None  # noqa: S101 - configured
    while True:
        await state.wait_for("api")
        failures = await apply_all(paths, client)
        for failure in failures:
            log.warning("add-ons: %s", failure)
        state.set("addons", not failures)
        await asyncio.sleep(facts.probe_scale * (RETRY_S if failures else REPEAT_S))


async def apply_all(paths: Paths, client: Client) -> list[str]:
    """Apply every object; returns what went wrong. One object's failure does not keep the others back."""
    failures = []
    for item in json.loads(await asyncio.to_thread(paths.addons.read_text)):
        try:
            await kubernetes_api.apply(client, item)
        except OSError as error:
            failures.append(f"{item['kind']} {item['metadata']['name']}: {error}")
    return failures

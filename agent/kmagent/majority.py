"""Every node says so when it has lost most voters: nothing can be written then, and only a person knows whether they are gone."""

import asyncio
from collections.abc import Callable

from kmagent import registry as registries
from kmagent.facts import Facts
from kmagent.mesh import Mesh
from kmagent.paths import Paths
from kmagent.registry import Registry
from kmagent.state import State

LOOK_S, LASTS = 2.0, 5


def lost(registry: Registry, reaches: Callable[[int], bool]) -> str:
    """Return which voters are away, if no majority of them is left, in words; `reaches` tells whether a way leads to a number."""
    voters = [node for node in registry.nodes if node.role == "voter"]
    away = [node.name for node in voters if not reaches(node.number)]
    if 2 * len(away) < len(voters) or not away:
        return ""
    return (
        f"{len(away)} of {len(voters)} voters are away ({', '.join(away)}), and nothing can be written; "
        "cable them and power them on, or `kmbuild recover` when they are lost for good"
    )


async def run(state: State, paths: Paths, mesh: Mesh, facts: Facts) -> None:
    """Look now and then; what was the same for some looks is shown."""
    registry, serial, seen = Registry(facts.cluster), 0, [""] * LASTS
    while True:
        if serial != mesh.me.serial:
            serial = mesh.me.serial
            registry = await asyncio.to_thread(registries.load_or_empty, paths.registry, facts.cluster)
        seen = [*seen, lost(registry, lambda number: mesh.reaches(facts, number))][-LASTS:]
        if not seen[-1] or all(seen):
            state.warn("no majority", seen[-1])
        await asyncio.sleep(LOOK_S * facts.probe_scale)

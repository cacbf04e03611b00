"""A bundle of every cluster of the session when a test fails, to look into what nobody saw."""

import os
import re
from pathlib import Path

import pytest

from kmcluster import bundle, state
from kmcluster.drivers import driver_of

# Of one cluster: what comes after is mostly of the same cause.
MAX_BUNDLES = 2
written = pytest.StashKey[dict[str, int]]()


def collect(item: pytest.Item) -> list[str]:
    """Write the bundles for a failed test; returns what to say of each.

    Nothing is done for a cluster with `MAX_BUNDLES`, nor before the session has clusters of its own.
    """
    home = getattr(item, "funcargs", {}).get("bench_home")
    if home is None:
        return []
    folder = Path(os.environ.get("KUBERMESH_BUNDLES") or home.parent / "bundles")
    folder.mkdir(parents=True, exist_ok=True)
    counts = item.config.stash.setdefault(written, {})
    lines = []
    for name in state.cluster_names():
        if counts.get(name, 0) < MAX_BUNDLES:
            test = re.sub(r"[^a-zA-Z0-9]+", "-", item.name).strip("-")
            lines.append(collect_one(name, folder / f"{test}-{name}.tar.gz", counts))
    return [line for line in lines if line]


def collect_one(name: str, target: Path, counts: dict[str, int]) -> str:
    """Write one bundle unless all machines of the cluster are off; a failure of this is told, and hides no other."""
    try:
        cluster = state.load(name)
        driver = driver_of(cluster)
        if all(driver.power(machine) == "off" for machine in cluster.machines):
            return ""
        bundle.collect(cluster, target)
        counts[name] = counts.get(name, 0) + 1
    except Exception as error:
        return f"{name}: no bundle: {error}"
    return f"{name}: {target}"

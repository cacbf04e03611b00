"""All that can be known of a cluster, in one archive to read later: from every node what its story is told by, no keys."""

import base64
import io
import json
import os
import tarfile
import time
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from kmcluster import access, bundle_index, inside, picture, report
from kmcluster.driver import Driver
from kmcluster.drivers import driver_of
from kmcluster.state import Cluster, Machine
from kmplan import run
from kmplan.errors import UserError

# What a node may take; the collector in it ends by itself, and is given up some seconds later.
NODE_S = {"native": 40.0, "kvm": 60.0, "tcg": 240.0}
GRACE_S = 15.0
KUBECTL_S = {"native": 10.0, "kvm": 20.0, "tcg": 120.0}
QUESTIONS = {
    "nodes.txt": ["get", "nodes", "--output=wide"],
    "nodes.yaml": ["get", "nodes", "--output=yaml"],
    "pods.txt": ["get", "pods", "--all-namespaces", "--output=wide"],
    "events.txt": ["get", "events", "--all-namespaces", "--sort-by=.lastTimestamp"],
    "meshnodes.yaml": ["get", "meshnodes", "--output=yaml"],
}
HOST_FILES = ("console.log", "qemu.log", "forward.log")
CONSOLE_BYTES = 1 << 20


@dataclass
class Part:
    """One part of a bundle, a node or the cluster as a whole: texts by their name, and why others are not there."""

    name: str
    items: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def collect(cluster: Cluster, target: Path) -> Path:
    """Write the bundle of a cluster, whatever state it is in; `target` is the file, or a folder to name it in.

    Takes at most about `NODE_S`, as all nodes are asked at once. Raises UserError when the file cannot be written.
    """
    name = f"{cluster.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    path = target / f"{name}.tar.gz" if target.is_dir() else target
    driver, described = driver_of(cluster), report.describe(cluster)
    with ThreadPoolExecutor(len(cluster.machines) + 1) as pool:
        api = pool.submit(collect_api, cluster)
        nodes = list(pool.map(lambda machine: collect_node(cluster, driver, machine), cluster.machines))
        parts = [describe_whole(cluster, described), api.result(), *nodes]
    files = {f"{part.name}/{item}".lstrip("/"): text for part in parts for item, text in part.items.items()}
    files["index.html"] = bundle_index.page(described, parts)
    try:
        write(path, name, files)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    return path


def describe_whole(cluster: Cluster, described: dict[str, Any]) -> Part:
    """The cluster's own files: what the bench knows, how the nodes are now, and the picture."""
    topology = {"nodes": [machine.node for machine in cluster.machines], "cables": cluster.drawn}
    items = {
        "cluster.json": as_text(cluster),
        "topology.json": as_text(topology),
        "status.json": as_text(described),
        "picture.svg": picture.draw(described),
    }
    return Part("", items)


def as_text(value: Any) -> str:
    """Readable JSON."""
    return msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=2).decode() + "\n"


def read_end(path: Path) -> str:
    """The end of a file on the host."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - CONSOLE_BYTES))
        return file.read().decode(errors="replace")


def collect_node(cluster: Cluster, driver: Driver, machine: Machine) -> Part:
    """What a machine says, and what of it is on the host; a machine that says nothing is no error."""
    part = Part(f"nodes/{machine.name}")
    for file in HOST_FILES:
        path = cluster.machine_folder(machine) / file
        if path.exists() and (text := read_end(path)):
            part.items[file] = text
    budget_s = NODE_S[cluster.accelerator]
    try:
        kind = "disk" if driver.power(machine) == "off" else "live"
        result = ask_collector(driver, machine, kind, budget_s)
        part.items |= result["items"]
        part.missing |= result["missing"]
    except (UserError, OSError, ValueError, zlib.error) as error:
        part.missing["all that is inside"] = str(error)
    return part


def ask_collector(driver: Driver, machine: Machine, kind: str, budget_s: float) -> dict[str, dict[str, str]]:
    """Run `guest/collect.py`; returns {"items", "missing"}."""
    argv = ["python3", "-S", "-E", "-", kind, f"{budget_s:g}"]
    script = (inside.SCRIPTS / "collect.py").read_bytes()
    result = inside.run(driver, machine, argv, script, budget_s + GRACE_S)
    if result.code != 0:
        words = result.stderr.strip().splitlines()
        raise UserError(words[-1] if words else f"the collector ended with status {result.code}")
    found: dict[str, dict[str, str]] = json.loads(zlib.decompress(base64.b64decode(result.stdout)))
    return found


def collect_api(cluster: Cluster) -> Part:
    """What the API answers; when it does not answer once it is not asked again."""
    part = Part("kubernetes")
    for name, question in QUESTIONS.items():
        if part.missing:
            part.missing[name] = "not asked"
            continue
        try:
            part.items[name] = ask_api(cluster, question)
        except UserError as error:
            part.missing[name] = str(error).splitlines()[0]
    return part


def ask_api(cluster: Cluster, question: Sequence[str]) -> str:
    """kubectl's answer; raises UserError."""
    argv, environment = access.kubectl(cluster)
    limit_s = KUBECTL_S[cluster.accelerator]
    done = run.run(
        [*argv, f"--request-timeout={limit_s:g}s", *question], env=environment, check=False, timeout_s=2 * limit_s
    )
    if done.returncode != 0:
        words = done.stderr.strip().splitlines()
        raise UserError(words[-1] if words else f"kubectl: status {done.returncode}")
    return done.stdout


def write(path: Path, folder: str, files: dict[str, str]) -> None:
    """Write the archive under a temporary name, readable by its owner only, and give it its own."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        # Logs may tell more than everybody should read.
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w:gz", compresslevel=6) as archive:
            for name, text in sorted(files.items()):
                data = text.encode(errors="replace")
                entry = tarfile.TarInfo(f"{folder}/{name}")
                entry.size, entry.mtime = len(data), int(time.time())
                archive.addfile(entry, io.BytesIO(data))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)

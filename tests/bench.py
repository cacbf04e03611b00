"""Measures what docs/benchmarks.md publishes: `make bench`, or `python -m tests.bench [--cold] [--repeat N] [NAME …]`.

Every figure is taken on this machine in this run and set beside its target; ratios compare two things measured in the
same run. `--cold` also compiles all components with empty Go caches, which takes up to half an hour.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from tests import bench_mesh, bench_provision
from tests.row import ROOT, Row, kmbuild, spread

from kmbuild import archive, sandbox
from kmbuild import config as configuration
from kmbuild import lock as locking
from kmbuild.stages import components
from kmplan import document
from kmplan.run import run

PAGE = ROOT / "docs" / "benchmarks.md"
MARK = "<!-- figures -->"


def nothing_changed(repeat: int) -> list[Row]:
    """A build whose result is in the cache."""
    kmbuild("image")
    times = [kmbuild("image")[0] for _ in range(repeat)]
    return [Row("nothing changed", "<= 1 s", spread(times), "kmbuild image")]


def overlay_change(repeat: int) -> list[Row]:
    """A changed overlay, until the new .raw is in out/."""
    marker = ROOT / "overlays/root/usr/lib/kubermesh/bench-marker"
    marker.parent.mkdir(parents=True, exist_ok=True)
    times = []
    try:
        for _ in range(repeat):
            marker.write_text(f"{time.time()}\n")
            times.append(kmbuild("image")[0])
    finally:
        marker.unlink()
        kmbuild("image")
    return [Row("overlay change to new .raw", "<= 8 s", spread(times), "kmbuild image, one overlay file changed")]


def cold_tree(_repeat: int) -> list[Row]:
    """Our root tree and diskimage-builder's own debian-minimal with the same packages, both with empty caches."""
    lock = ROOT / locking.FILE_NAME
    with tempfile.TemporaryDirectory(prefix="kubermesh-bench-", dir="/var/tmp") as name:
        folder = Path(name)
        shutil.copy(lock, folder / locking.FILE_NAME)
        document.write(folder / "kubermesh.yaml", f"version: 1\ncache: {{path: {folder / 'cache'}}}\n")
        ours, _ = kmbuild("image", "--until", "tree", cwd=folder)
        theirs = debian_minimal(folder)
    ratio = f"{ours / theirs:.2f} x ({ours:.0f} s and {theirs:.0f} s)"
    return [
        Row(
            "cold tree",
            "<= 0.6 x debian-minimal",
            ratio,
            "kmbuild image --until tree; disk-image-create debian-minimal",
        )
    ]


def debian_minimal(folder: Path) -> float:
    """Run disk-image-create with its own Debian element and our packages; returns seconds."""
    config, _ = configuration.load(None)
    archives = archive.find_archives(config)
    packages = locking.requested(config)["tree"]
    (folder / "shims").mkdir()
    document.write(folder / "shims/sudo", '#!/bin/sh\n[ "$1" = -E ] && shift\nexec env "$@"\n', 0o755)
    env = {
        **sandbox.ENVIRONMENT,
        "PATH": f"{folder / 'shims'}:{Path(sys.executable).parent}:{sandbox.ENVIRONMENT['PATH']}",
        "HOME": str(folder),
        "TMP_DIR": str(folder),
        "DIB_NO_TMPFS": "1",
        "DIB_RELEASE": config.debian.suite,
        "DIB_DISTRIBUTION_MIRROR": archives.main,
        "DIB_DEBIAN_SECURITY_MIRROR": archives.security,
        "DIB_DEBIAN_COMPONENTS": "main,non-free-firmware",
    }
    words = ["env", "-i", *(f"{key}={value}" for key, value in env.items()), "disk-image-create", "-n", "-t", "tar"]
    words += ["-o", str(folder / "minimal"), "-p", ",".join(packages), "debian-minimal"]
    start = time.monotonic()
    run(sandbox.on_host(words), log=folder / "minimal.log", cwd=folder)
    return time.monotonic() - start


def sizes(_repeat: int) -> list[Row]:
    """Sizes of the root file system, and of what firmware fetches from a neighbour."""
    artefacts = json.loads((ROOT / "out/manifest.json").read_text())["artefacts"]
    return [
        Row(what, f"<= {limit} MB", f"{artefacts[kind]['size'] / 1e6:.0f} MB", f"ls -l out/*.{end}")
        for what, limit, kind, end in (
            ("root erofs with all container images", 250, "erofs", "root.erofs"),
            ("boot image that firmware fetches", 60, "uki", "efi"),
        )
    ]


def boots(driver: str, repeat: int) -> dict[str, list[float]]:
    """Boot one node several times.

    Returns seconds since power on by event of the agent, its memory (`memory`, MiB), how long it took to configure the
    node (`agent`), and the whole of `cluster up` (`up`).
    """
    seen: dict[str, list[float]] = {}
    for _ in range(repeat):
        seconds, _ = kmbuild("cluster", "up", "one", "--driver", driver, "--name", "bench", "--timeout", "900")
        seen.setdefault("up", []).append(seconds)
        try:
            _, text = kmbuild(
                "cluster", "exec", "--name", "bench", "bench-1", "--", "cat", "/run/kubermesh/status.json"
            )
        finally:
            kmbuild("cluster", "down", "bench")
        status = json.loads(text)
        for event in status["events"]:
            seen.setdefault(event["name"], []).append(event["boot_s"])
            if event["name"] == "configured":
                seen.setdefault("agent", []).append(event["agent_s"])
        seen.setdefault("memory", []).append(status["memory_mib"])
    return seen


def nspawn(repeat: int) -> list[Row]:
    """One node under systemd-nspawn."""
    seen = boots("nspawn", repeat)
    command = "kmbuild cluster up one --driver nspawn"
    return [
        Row("nspawn: power on to API ready", "<= 10 s", spread(seen["api"]), command),
        Row("nspawn: power on to node Ready", "<= 15 s", spread(seen["node-ready"]), command),
        Row("agent: start to node configured", "<= 1 s", spread(seen["agent"]), command),
        Row("agent: memory", "<= 40 MB", f"{max(seen['memory']):.0f} MiB", command),
    ]


def qemu(_repeat: int) -> list[Row]:
    """One node in QEMU, from power on through firmware to Ready."""
    command = "kmbuild cluster up one --driver qemu"
    return [Row("QEMU: power on to node Ready", "<= 4 min without KVM", spread(boots("qemu", 1)["up"]), command)]


def cold_components(_repeat: int) -> list[Row]:
    """All components with empty caches."""
    with tempfile.TemporaryDirectory(prefix="kubermesh-bench-", dir="/var/tmp") as name:
        folder = Path(name)
        shutil.copy(ROOT / locking.FILE_NAME, folder / locking.FILE_NAME)
        document.write(folder / "kubermesh.yaml", f"version: 1\ncache: {{path: {folder / 'cache'}}}\n")
        kmbuild("image", "--until", "tools", cwd=folder)
        seconds = [kmbuild("image", "--until", stage.name, cwd=folder)[0] for stage in components.STAGES]
        run(["chmod", "-R", "u+w", folder / "cache"])
    return [Row("cold components", "<= 25 min", f"{sum(seconds) / 60:.1f} min", "kmbuild image with an empty cache")]


MEASUREMENTS: dict[str, Callable[[int], list[Row]]] = {
    "nothing": nothing_changed,
    "overlay": overlay_change,
    "tree": cold_tree,
    "size": sizes,
    "nspawn": nspawn,
    "qemu": qemu,
    **bench_mesh.MEASUREMENTS,
    **bench_provision.MEASUREMENTS,
}


def machine() -> str:
    """One line about this machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    release = platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    return f"{os.cpu_count()} cores, {memory} GiB, {release}, Linux {platform.release().split('-')[0]}"


def table(rows: Sequence[Row], date: str) -> str:
    """The figures as a Markdown table."""
    lines = ["| what | target | measured | command | date |", "|---|---|---|---|---|"]
    return "\n".join(
        [*lines, *(f"| {row.what} | {row.target} | {row.measured} | `{row.command}` | {date} |" for row in rows)]
    )


def main() -> None:
    """Measure, print, and write the page when everything was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"only these: {', '.join(MEASUREMENTS)}")
    parser.add_argument("--cold", action="store_true", help="also compile all components with empty caches")
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(MEASUREMENTS))
    if unknown:
        parser.error(f"{', '.join(unknown)}: not measured here; there are: {', '.join(MEASUREMENTS)}")
    chosen = options.names or list(MEASUREMENTS)
    rows: list[Row] = []
    for name in [*chosen, *(["cold"] if options.cold else [])]:
        print(f"measuring {name} …", file=sys.stderr, flush=True)
        new = {**MEASUREMENTS, "cold": cold_components}[name](options.repeat)
        print(table(new, today()), flush=True)
        rows += new
    publish(rows)


def today() -> str:
    """The date."""
    return f"{datetime.now(UTC):%Y-%m-%d}"


def publish(rows: Sequence[Row]) -> None:
    """Put figures on the page; what was not measured this time stays, with its date."""
    head, _, old = PAGE.read_text().partition(MARK)
    known = {line.split(" | ")[0]: line for line in old.splitlines() if line.startswith("| ")}
    known |= {line.split(" | ")[0]: line for line in table(rows, today()).splitlines() if line.startswith("| ")}
    lines = [known.pop("| what"), "|---|---|---|---|---|", *known.values()]
    document.write(PAGE, f"{head}{MARK}\n\n{machine()}:\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

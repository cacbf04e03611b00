"""Simulates large meshes on this machine: `python -m tests.simulation --nodes 16,50 [--json FILE] [--plot FILE]`.

Every node is a bare network namespace with the image's own babeld and the configuration that the agent writes; veth pairs
are the cables. Measured are the time from a cold start until every node has a way to every other, what babeld costs, and
how long a fault between two nodes is felt. Needs root and a built image.
"""

import argparse
import os
import random
import secrets
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from kmagent.babel import HELLO_S, UPDATE_S
from kmbuild.locate import locate_image
from kmcluster.image import check_image
from kmcluster.roots import root_tree
from kmplan import document
from kmplan.errors import UserError

from . import measure, plot, report
from .mesh import Mesh, open_mesh
from .node import Routing
from .report import Figures

# More nodes than this at a node's own timers are more than one core can route for: it is their kernel, all of them.
NODES_PER_CORE = 50
SCALED_HELLO_S, SCALED_UPDATE_S = 3.0, 12.0
COST_S = 20.0


def options(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes", type=sizes, default=[], metavar="N,N", help="sizes to measure")
    parser.add_argument("--degree", type=int, default=4, help="cables of each node (4)")
    parser.add_argument("--seed", type=int, default=1, help="the same mesh comes of the same number (1)")
    parser.add_argument("--repeat", type=int, default=5, help="how often each fault is made (5)")
    parser.add_argument("--hello", type=float, metavar="S", help="babeld's hello interval; default by size")
    parser.add_argument("--update", type=float, metavar="S", help="babeld's update interval; default by size")
    parser.add_argument("--image", type=Path, default=Path("out"), help="the image's folder (out)")
    parser.add_argument("--read", type=Path, nargs="*", default=[], metavar="FILE", help="take these --json files too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them there, as SVG")
    return parser.parse_args(arguments)


def sizes(text: str) -> list[int]:
    """Read `16,50`."""
    return [int(word) for word in text.split(",")]


def routing(nodes: int, hello_s: float | None, update_s: float | None) -> Routing:
    """A real node's timers, unless so many nodes ask too much of this machine."""
    scaled = nodes > NODES_PER_CORE * (os.cpu_count() or 1)
    hello, update = (SCALED_HELLO_S, SCALED_UPDATE_S) if scaled else (HELLO_S, UPDATE_S)
    return Routing(hello_s or hello, update_s or update, secrets.token_hex(16))


def simulate(nodes: int, wanted: argparse.Namespace, tree: Path) -> Figures:
    """Measure one mesh."""
    how = routing(nodes, wanted.hello, wanted.update)
    say(f"{nodes} nodes: hello {how.hello_s:g} s, update {how.update_s:g} s")
    with open_mesh(nodes, wanted.degree, wanted.seed, tree, how) as mesh:
        figures = Figures(
            nodes=nodes, degree=wanted.degree, cables=mesh.cables,
            farthest=max(max(mesh.distances(number).values()) for number in mesh.nodes),
            hello_s=how.hello_s, update_s=how.update_s,
        )  # fmt: skip
        mesh.start()
        whole_s = measure.wait_whole(mesh, 30 * how.update_s)
        if whole_s is None:
            say(f"{nodes} nodes: only {sum(map(mesh.is_whole, mesh.nodes.values()))} have a way to all others")
            return figures
        say(f"{nodes} nodes: whole after {whole_s:.1f} s")
        return whole(figures, mesh, whole_s, wanted)


def whole(figures: Figures, mesh: Mesh, whole_s: float, wanted: argparse.Namespace) -> Figures:
    """What is measured on a mesh that is whole."""
    time.sleep(5 * mesh.routing.update_s)
    costs, busy_percent = measure.cost(mesh, COST_S)
    source = random.Random(wanted.seed)  # noqa: S311
    gaps: dict[str, list[float]] = {}
    for name, fault in measure.FAULTS.items():
        for _ in range(wanted.repeat):
            gaps.setdefault(name, []).append(round(measure.reroute(mesh, fault, source), 3))
            say(f"{figures.nodes} nodes: {name}: {gaps[name][-1]:.2f} s")
    return msgspec.structs.replace(
        figures,
        whole_s=round(whole_s, 2),
        core_percent=mean_and_most([cost.core_percent for cost in costs]),
        resident_mb=mean_and_most([cost.resident_mb for cost in costs]),
        anonymous_mb=mean_and_most([cost.anonymous_mb for cost in costs]),
        busy_percent=round(busy_percent),
        gaps_s=gaps,
    )


def mean_and_most(values: Sequence[float]) -> tuple[float, float]:
    """The mean and the largest."""
    return round(statistics.mean(values), 3), round(max(values), 3)


def say(words: str) -> None:
    """Show progress, apart from the result."""
    print(words, file=sys.stderr, flush=True)


def run(wanted: argparse.Namespace) -> None:
    """Measure, and show and write what was asked for."""
    rows = [row for path in wanted.read for row in document.read(path, list[Figures])]
    if wanted.nodes:
        if os.geteuid() != 0:
            raise UserError("the simulation needs root", "use sudo")
        image = locate_image(wanted.image)
        tree = root_tree(image, check_image(image)["roothash"])
        rows += [simulate(nodes, wanted, tree) for nodes in wanted.nodes]
    if not rows:
        raise UserError("nothing to do", "give --nodes or --read")
    print(report.table(rows))
    if wanted.json:
        document.write(wanted.json, msgspec.json.format(msgspec.json.encode(rows)) + b"\n")
    if wanted.plot:
        document.write(wanted.plot, plot.draw(rows))


def main() -> None:
    """End in one line when something is wrong, and take everything down when asked to stop."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        run(options(sys.argv[1:]))
    except UserError as error:
        sys.exit(f"simulation: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()

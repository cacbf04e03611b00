"""Applies settings of the control plane on this node, and takes them back when a component does not become healthy.

It needs nobody for that: settings that stop etcd or the API server here are taken back like any other.
"""

import asyncio
import contextlib
import logging
import time
from dataclasses import replace
from pathlib import Path

from kmagent import settings
from kmagent.components import CONTROL_PLANE
from kmagent.facts import Facts
from kmagent.http import Client, Tls
from kmagent.joining import child
from kmagent.ledger import Ledger
from kmagent.paths import Paths
from kmagent.settings import Arguments, Kept, Report, Settings
from kmagent.state import State
from kmagent.watch import Watch

log = logging.getLogger(__name__)

# Without news it looks again after as long; until it has nothing to do, and where nothing is heard of news, sooner.
AGAIN_S, PERIOD_S, LOOK_S = 60.0, 3.0, 1.0
# All components have to be well for so many looks in a row, within so long.
GOOD_LOOKS, HEALTHY_S = 5, 90.0
PORTS = {"kube-controller-manager": 10257, "kube-scheduler": 10259}
PODS = Path("/var/log/pods")


class Applier:
    """Follows what the leading node wants of this one."""

    def __init__(self, state: State, paths: Paths, facts: Facts, ledger: Ledger, watch: Watch) -> None:
        self._state, self._paths, self._facts, self._ledger, self._watch = state, paths, facts, ledger, watch
        self._kept = settings.load(paths.settings)
        self._told: Report | None = None
        tls = Tls(paths.pki / "agent/cluster-ca.crt")
        self._clients = {
            name: Client("127.0.0.1", port, tls=tls, timeout_s=2 * facts.probe_scale) for name, port in PORTS.items()
        }

    async def run(self) -> None:
        """Follow."""
        while True:
            if self._kept.trying is not None:
                await self._prove(self._kept.trying)
            news, is_done = self._watch.news, False
            try:
                is_done = await self._look()
            except OSError as error:
                log.debug("settings: %s", error)
            pause = (AGAIN_S if is_done and self._watch.works else PERIOD_S) * self._facts.probe_scale
            with contextlib.suppress(TimeoutError):
                # Nothing hurries those that run to their end.
                await (asyncio.sleep(pause) if self._kept.trying else asyncio.wait_for(news.wait(), pause))

    async def _look(self) -> bool:
        """Tell how far this node is, and begin what is wanted of it; True when that is nothing."""
        if not self._state.conditions["etcd"]:
            return False
        if self._told != self._kept.report:
            await self._ledger.note_settings(self._facts.number, self._kept.report)
            self._told = self._kept.report
        plan = await self._ledger.settings_plan()
        if self._kept.refused and plan.wanted != self._kept.refused:
            # Nobody asks for them any more: whoever does again, means it.
            self._kept = replace(self._kept, refused="", why="")
            await asyncio.to_thread(settings.save, self._paths.settings, self._kept)
            return False
        wanted = plan.target
        # None at all is what the image has, and has no id: that is never refused.
        refused = bool(wanted.id) and wanted.id == self._kept.refused
        if self._facts.number in plan.nodes and wanted.id != self._kept.good.id and not refused:
            log.info("settings %s are tried", wanted.id or "of the image")
            await self._become(replace(self._kept, trying=wanted, refused="", why=""))
            return False
        return True

    async def _prove(self, wanted: Settings) -> None:
        """Wait until all components run with the settings and are well; take them back when they do not."""
        deadline = time.monotonic() + HEALTHY_S * self._facts.probe_scale
        good, wrong = 0, "not looked at"
        while good < GOOD_LOOKS:
            await asyncio.sleep(LOOK_S * self._facts.probe_scale)
            wrong = await self._complaint(wanted.arguments)
            good = 0 if wrong else good + 1
            if time.monotonic() > deadline and not good:
                log.warning("settings %s are taken back: %s", wanted.id or "of the image", wrong)
                await self._become(replace(self._kept, trying=None, refused=wanted.id, why=wrong))
                return
        log.info("settings %s are good", wanted.id or "of the image")
        await self._become(Kept(wanted))

    async def _become(self, kept: Kept) -> None:
        """Remember, and have the manifests rendered anew."""
        await asyncio.to_thread(settings.save, self._paths.settings, kept)
        self._kept = kept
        await child("prepare")
        self._state.notify()

    async def _complaint(self, arguments: Arguments) -> str:
        """What is not well; empty when all is."""
        running = await asyncio.to_thread(command_lines)
        for component in CONTROL_PLANE:
            words = {f"--{name}={value}" for name, value in arguments.get(component, {}).items()}
            if not words <= running.get(component, frozenset()):
                said = await asyncio.to_thread(last_words, PODS, component)
                return f"{component} does not run with them" + (f": {said}" if said else "")
        for component, condition in (("etcd", "etcd"), ("kube-apiserver", "api")):
            if not self._state.conditions[condition]:
                return f"{component} is not ready"
        for component, client in self._clients.items():
            if not await client.is_ok("/healthz"):
                return f"{component} is not healthy"
        return ""


def command_lines(proc: Path = Path("/proc")) -> dict[str, frozenset[str]]:
    """Return the words of the command line of each component that runs, by its name."""
    found: dict[str, frozenset[str]] = {}
    for path in proc.glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        name = words[0].rpartition("/")[2]
        if name in CONTROL_PLANE:
            found[name] = frozenset(words[1:])
    return found


def last_words(pods: Path, component: str) -> str:
    """Return what a component's container said last, for people; empty when there is nothing."""
    logs = sorted(pods.glob(f"kube-system_{component}-*/{component}/*.log"), key=lambda path: path.stat().st_mtime)
    for path in reversed(logs[-2:]):
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            lines = [line.split(" ", 3)[-1].strip() for line in file.read().decode(errors="replace").splitlines()]
        spoken = [line for line in lines if line and line.isprintable()]
        errors = [line for line in spoken if "rror" in line]
        if errors or spoken:
            return (errors or spoken)[-1][:200]
    return ""

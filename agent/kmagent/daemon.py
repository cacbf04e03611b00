"""The daemon: sets the node up, then runs the agent's parts side by side until it is told to stop."""

import asyncio
import json
import logging
import signal
import sys
from collections.abc import Coroutine
from typing import Any

from kmagent import addons, anycast, console, containerd_seed, control_plane, facts, network, node, notify, ssh, status
from kmagent.http import Client
from kmagent.paths import Paths
from kmagent.state import State, earlier_events, write_status
from kmplan.errors import UserError
from kmplan.run import CommandError, run_async

log = logging.getLogger(__name__)

# Certificates are looked at no less often, and the clock is remembered.
PREPARE_AGAIN_S = 3600.0
SET_UP_AGAIN_S = 15.0


def main() -> int:
    """Run until SIGTERM."""
    return asyncio.run(_main(Paths()))


async def _main(paths: Paths) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    state = State(version=_image_version(paths), events=earlier_events(paths.status))
    paths.run.mkdir(mode=0o755, parents=True, exist_ok=True)
    state.on_change += [lambda: write_status(paths.status, state), console.Console(state).update]
    state.record("started")
    server = await status.serve(state)
    work = asyncio.create_task(_work(state, paths))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait((work, stopping), return_when=asyncio.FIRST_COMPLETED)
    notify.send("STOPPING=1")
    if state.facts and stop.is_set():
        await anycast.withdraw(state.facts.api)
    server.close()
    stopping.cancel()
    if work.done():
        return work.result()
    work.cancel()
    return 0


async def _work(state: State, paths: Paths) -> int:
    """Set up and run all parts; ends only when one of them breaks."""
    async with asyncio.TaskGroup() as group:
        group.create_task(notify.keep_alive())
        renew_in_s = await _set_up_at_last(state, paths)
        for part in _parts(state, paths, renew_in_s):
            group.create_task(part)
    return 1


async def _set_up_at_last(state: State, paths: Paths) -> float:
    """Set up; a failure is shown, and what systemd started without configuration is started once there is one."""
    while True:
        try:
            renew_in_s = await _set_up(state, paths)
        except UserError as error:
            if str(error) != state.failure:
                log.error("%s", error)
            state.fail(str(error))
            notify.send("READY=1\nSTATUS=" + str(error).partition("\n")[0])
            await asyncio.sleep(SET_UP_AGAIN_S)
            continue
        late = bool(state.failure)
        state.fail("")
        notify.send("READY=1\nSTATUS=set up")
        if late:
            await run_async(["systemctl", "start", "--no-block", "containerd.service", "kubelet.service"], check=False)
        return renew_in_s


async def _set_up(state: State, paths: Paths) -> float:
    """Make the node's files, its containers' images and its network; returns when to look at the files again."""
    seeding = asyncio.create_task(asyncio.to_thread(containerd_seed.install, paths.containerd_seed, paths.containerd))
    renew_in_s = await _prepare()
    state.facts = facts.load(paths.facts)
    await network.set_up(state.facts)
    if await seeding:
        log.info("containerd was given this image's container images")
    state.set("configured", True)
    if state.facts.ssh:
        await ssh.start()
    return renew_in_s


def _parts(state: State, paths: Paths, renew_in_s: float) -> list[Coroutine[Any, Any, None]]:
    assert state.facts is not None  # noqa: S101 - set up
    scale = state.facts.probe_scale
    client = Client("::1", 6443, folder=paths.pki / "agent", authenticate=True, timeout_s=30 * scale)
    return [
        control_plane.watch_etcd(state, scale),
        control_plane.run(state, paths),
        anycast.run(state, paths),
        addons.run(state, paths, client),
        node.run(state, client),
        node.hurry_kubelet(state, paths),
        _prepare_again(state, paths, renew_in_s),
    ]


async def _prepare_again(state: State, paths: Paths, renew_in_s: float) -> None:
    while True:
        await asyncio.sleep(max(60.0, min(renew_in_s, PREPARE_AGAIN_S)))
        try:
            renew_in_s = await _prepare()
        except UserError as error:
            log.error("%s", error)
            renew_in_s = 0.0
        else:
            state.notify()


async def _prepare() -> float:
    try:
        _, output = await run_async([sys.executable, "-I", "-m", "kmagent", "prepare"])
    except CommandError as error:
        raise UserError(error.output.strip().rpartition("\n")[2].removeprefix("kmagent: ")) from error
    *said, result = output.strip().splitlines()
    for line in said:
        log.info("%s", line)
    return float(json.loads(result)["renew_in_s"])


def _image_version(paths: Paths) -> str:
    try:
        return str(json.loads(paths.versions.read_text())["image"])
    except (OSError, ValueError, KeyError):
        return "of unknown version"

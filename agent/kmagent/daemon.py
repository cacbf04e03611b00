"""The daemon: sets the node up, then runs the agent's parts side by side until it is told to stop."""

import asyncio
import json
import logging
import signal
import sys
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from kmagent import (
    addons,
    alarms,
    anycast,
    clock,
    console,
    containerd_seed,
    control_plane,
    disk_state,
    egress,
    facts,
    fence,
    join_api,
    joining,
    majority,
    network,
    node,
    node_api,
    notify,
    recover,
    registry,
    removed_data,
    routers,
    ssh,
    status,
)
from kmagent.apply_settings import Applier
from kmagent.authority import Authority
from kmagent.etcd import METRICS_PORT, PORT, Etcd
from kmagent.facts import Facts
from kmagent.fence import Fence
from kmagent.follow import Follower, RestartError
from kmagent.http import Client, Tls
from kmagent.http_server import serve
from kmagent.lead import Leader
from kmagent.ledger import Ledger
from kmagent.mesh import Mesh, Self
from kmagent.node_api import NodeApi
from kmagent.orders import Orders
from kmagent.paths import Paths
from kmagent.peers import Peers
from kmagent.programs import run_async
from kmagent.provision import Provision
from kmagent.relay import Relay
from kmagent.state import State, earlier_events, keep_written, write_status
from kmagent.watch import Watch
from kmagent.witness import Witness
from kmplan.errors import UserError
from kmplan.run import CommandError

log = logging.getLogger(__name__)

# Certificates are looked at no less often, and the clock is remembered; whether somebody has set it is looked at in between.
PREPARE_AGAIN_S, CLOCK_S = 3600.0, 5.0
SET_UP_AGAIN_S = 15.0
SOON_S = 5.0
THREADS = 32


def main() -> int:
    """Run until SIGTERM."""
    return asyncio.run(_main(Paths()))


async def _main(paths: Paths) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    # One for each server that may be silent, and some for files: asyncio's own measure is the number of processors.
    loop.set_default_executor(ThreadPoolExecutor(THREADS))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    state = State(version=_image_version(paths), events=earlier_events(paths.status), disk=disk_state.read(paths)[1])
    paths.run.mkdir(mode=0o755, parents=True, exist_ok=True)
    paths.started_own.unlink(missing_ok=True)
    state.on_change += [lambda: write_status(paths.status, state), console.Console(state).update]
    state.record("started")
    server = await status.serve(state)
    work = asyncio.create_task(_work(state, paths))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait((work, stopping), return_when=asyncio.FIRST_COMPLETED)
    notify.send("STOPPING=1")
    if stop.is_set():
        # Whoever reads the file later is not told that all is well because it was.
        state.stopped = True
        write_status(paths.status, state)
        if state.facts:
            await anycast.withdraw(paths, state.facts.api)
            await anycast.withdraw(paths, state.facts.join)
    server.close()
    stopping.cancel()
    if work.done():
        return work.result()
    work.cancel()
    return 0


async def _work(state: State, paths: Paths) -> int:
    """Set up and run all parts; ends only when one of them breaks, or this node becomes something else."""
    beat = asyncio.create_task(notify.keep_alive())
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(keep_written(paths.status, state))
            renew_in_s = await _set_up_at_last(state, paths)
            for part in _parts(state, paths, renew_in_s):
                group.create_task(part)
    except* RestartError:
        log.info("starting anew")
    finally:
        beat.cancel()
    return 0


async def _set_up_at_last(state: State, paths: Paths) -> float:
    """Set up, asking to be admitted first where that is due; a failure is shown and tried again."""
    while True:
        try:
            prepared = await _prepare()
            if "join" in prepared:
                await joining.run(state, paths, prepared)
                continue
            await _set_up(state, paths)
        except UserError as error:
            if str(error) != state.failure:
                log.error("%s", error)
            state.fail(str(error))
            notify.send("READY=1\nSTATUS=" + str(error).partition("\n")[0])
            await asyncio.sleep(SET_UP_AGAIN_S)
            continue
        state.fail("")
        notify.send("READY=1\nSTATUS=set up")
        await run_async(["systemctl", "start", "--no-block", "containerd.service"], check=False)
        if state.facts and state.facts.controls:
            await node.start_kubelet(paths)
        return float(prepared["renew_in_s"])


async def _set_up(state: State, paths: Paths) -> None:
    """Give containerd its images and the node its name, addresses and routes."""
    seeding = asyncio.create_task(asyncio.to_thread(containerd_seed.install, paths.containerd_seed, paths.containerd))
    state.facts = facts.load(paths.facts)
    await network.set_up(state.facts)
    if not state.facts.controls:
        # As one that votes no more it may have them still.
        for address in (state.facts.api, state.facts.join):
            await anycast.withdraw(paths, address)
    if await seeding:
        log.info("containerd was given this image's container images")
    state.set("configured", True)
    if state.facts.ssh:
        await ssh.start()


def _parts(state: State, paths: Paths, renew_in_s: float) -> list[Coroutine[Any, Any, None]]:
    assert state.facts is not None  # noqa: S101 - set up
    me = state.facts
    mesh = Mesh(state, paths, _self(paths, me), me.ignored_ports, me)
    heard = routers.listen(mesh)
    follower = Follower(state, paths, mesh, me)
    orders, peers = Orders(state, paths, me), Peers(paths, me)
    removed_data.tidy(paths, goes_on=orders.overtaken)
    own_etcd = _etcd(paths, me, 1.5) if me.controls else None
    own_api = NodeApi(state, paths, me, orders, peers, own_etcd)
    parts = [
        mesh.run(),
        follower.run(),
        _relay(mesh, me),
        egress.run(state, mesh, me, heard),
        Provision(state, paths, mesh, me, heard).run(),
        _prepare_again(state, paths, renew_in_s),
        node_api.run(paths, own_api, me.probe_scale),
        recover.run(state, paths, me, orders, peers),
        majority.run(state, paths, mesh, me),
    ]
    if me.controls:
        fence.close(state, paths, orders)
        parts += [
            Fence(state, paths, me, orders, peers).run(),
            control_plane.watch_etcd(state, me.probe_scale),
            control_plane.run(state, paths, lambda: f"{me.join}/128" in mesh.routes()),
        ]
    if me.role != "voter":
        tls = Tls(paths.pki / "kubelet/cluster-ca.crt", paths.pki / "kubelet/client.crt")
        client = Client(me.api, 6443, tls=tls, timeout_s=10 * me.probe_scale)
        return [*parts, node.run(state, client), node.reach_api(state, paths, client)]
    folder = paths.pki / "agent"
    client = Client(
        "::1", 6443, tls=Tls(folder / "cluster-ca.crt", folder / "client.crt"), timeout_s=30 * me.probe_scale
    )
    authority = Authority(me.probe_scale)
    ledger = Ledger(_etcd(paths, me, 10), authority, follower.take)
    watch = Watch(_etcd(paths, me, 10), mesh)
    return [
        *parts,
        anycast.run(state, paths),
        addons.run(state, paths, client),
        node.run(state, client),
        node.hurry_kubelet(state, paths),
        join_api.run(state, paths, ledger, mesh),
        watch.run(state, me.probe_scale),
        Applier(state, paths, me, ledger, watch).run(),
        alarms.run(state, _etcd(paths, me, 60), mesh, me),
        Witness(state, paths, me, orders, peers, own_api, authority).run(),
        Leader(state, paths, me, ledger, mesh, client, watch).run(_first_registry(me), mesh.me.keys[min(mesh.me.keys)]),
    ]


def _etcd(paths: Paths, me: Facts, timeout_s: float) -> Etcd:
    """The local member, over a connection of its own: one waits for the answer to its last question."""
    tls = Tls(paths.pki / "agent/etcd-ca.crt", paths.pki / "agent/etcd-client.crt")
    timeout_s *= me.probe_scale
    return Etcd(
        Client("::1", PORT, tls=tls, timeout_s=timeout_s), Client("127.0.0.1", METRICS_PORT, timeout_s=timeout_s)
    )


def _self(paths: Paths, me: Facts) -> Self:
    keys = {int(generation): key for generation, key in json.loads(paths.mesh_keys.read_text()).items()}
    known = registry.load_or_empty(paths.registry, me.cluster)
    good = {generation: key for generation, key in keys.items() if generation >= known.oldest_key} or keys
    return Self(me.cluster, me.number, me.name, good, known.serial, known.numbers)


def _first_registry(me: Facts) -> registry.Registry:
    """The registry of a cluster that has only this node."""
    first = registry.Node(me.number, me.name, "voter", me.fingerprint, me.certificate, me.uuid, float(int(time.time())))
    return registry.Registry(me.cluster).put(first)


async def _relay(mesh: Mesh, me: Facts) -> None:
    def is_port(index: int) -> bool:
        return any(port.index == index and name not in mesh.gateways for name, port in mesh.ports.items())

    await serve(await Relay(me.join, me.address, is_port).serve())


async def _prepare_again(state: State, paths: Paths, renew_in_s: float) -> None:
    while True:
        await _pause(max(SOON_S, min(renew_in_s, PREPARE_AGAIN_S)))
        try:
            renew_in_s = float((await _prepare())["renew_in_s"])
        except UserError as error:
            log.error("%s", error)
            renew_in_s = 60.0
        else:
            state.notify()


async def _pause(seconds: float) -> None:
    """Wait, unless somebody sets the clock: certificates may have ended by that, or begin later."""
    before, end = clock.offset(), time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and not clock.has_jumped(before):
        await asyncio.sleep(min(left, CLOCK_S))


async def _prepare() -> dict[str, Any]:
    try:
        _, output = await run_async([sys.executable, "-I", "-m", "kmagent", "prepare"])
    except CommandError as error:
        raise UserError(error.output.strip().rpartition("\n")[2].removeprefix("kmagent: ")) from error
    return joining.answer_of(output)


def _image_version(paths: Paths) -> str:
    try:
        return str(json.loads(paths.versions.read_text())["image"])
    except (OSError, ValueError, KeyError):
        return "of unknown version"

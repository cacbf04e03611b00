"""What keeps a cluster from healing, on purpose: every scenario has to notice it (`kmbuild verify --sabotage`).

Each function takes a scenario and returns one that has to fail.
"""

import errno
import shlex
from collections.abc import Callable
from dataclasses import replace

from kmcluster import inside, steady, witness
from kmcluster.scenario import Scenario, Scene
from kmcluster.scenarios.links import cut_one
from kmcluster.scenarios.nodes import cut
from kmcluster.scenarios.virtual import check_root, repair_root
from kmplan import files

Sabotage = Callable[[Scenario], Scenario]
Act = Callable[[Scene, list[int]], None]

STEADY_S = 180.0
# Runs the agent with a line of Python before it; `-m kmagent` is for those that look for it by its command line.
DROPIN = """\
[Service]
ExecStart=
ExecStart=/usr/bin/python3 -I -c {code} -m kmagent
"""
START = "import runpy, sys; sys.argv = ['kmagent']; runpy.run_module('kmagent', run_name='__main__')"
NEVER = "__import__('asyncio').sleep(1e9)"
# Takes the drop-in from standard input.
INSTALL = """
mkdir -p /run/systemd/system/kmagent.service.d && cat > /run/systemd/system/kmagent.service.d/sabotage.conf &&
systemctl daemon-reload && systemctl restart kmagent
"""

RECONCILER_OFF = "from kmagent import membership; membership.decide = lambda view: None"
FENCE_OFF = "from kmagent import fence; fence.close = lambda *_: None"
ANYCAST_STAYS = "from kmagent import anycast; anycast.BAD_TO_WITHDRAW = anycast.GONE_TO_WITHDRAW = 10**9"
ALARMS_OFF = f"from kmagent import alarms; alarms.run = lambda *_: {NEVER}"
ADDONS_ONCE = "from kmagent import addons; addons.REPEAT_S = 1e9"
ROLLOUT_OFF = f"from kmagent import rollout; rollout.Rollout.reconcile = lambda *_: {NEVER.replace('1e9', '0')}"
NEVER_ADMITTED = f"from kmagent import joining; joining.run = lambda *_: {NEVER}"
NONE_SPARED = "from kmagent import outages; outages.given_up = lambda lost, *_, **__: frozenset(lost)"
NEVER_LEFT_BEHIND = "from kmagent import follow; follow.BEHIND_S = 1e9"
OUTAGES_OFF = f"from kmagent import outages; outages.Outages.reconcile = lambda *_: {NEVER.replace('1e9', '0')}"
NEVER_ENROLLED = "from kmagent import follow; follow.Follower._enrol_is_due = lambda self: False"


def not_undone(scenario: Scenario) -> Scenario:
    """Nobody puts the plug back."""
    return replace(scenario, undo=None)


def ahead(act: Act) -> Sabotage:
    """Something is done right before the fault."""

    def sabotage(scenario: Scenario) -> Scenario:
        def fault(scene: Scene, chosen: list[int]) -> None:
            act(scene, chosen)
            scenario.fault(scene, chosen)

        return replace(scenario, fault=fault)

    return sabotage


def afterwards(act: Act) -> Sabotage:
    """Something is done right after the fault."""

    def sabotage(scenario: Scenario) -> Scenario:
        def fault(scene: Scene, chosen: list[int]) -> None:
            scenario.fault(scene, chosen)
            act(scene, chosen)

        return replace(scenario, fault=fault)

    return sabotage


def masked(unit: str, *, stopped: bool = False) -> Sabotage:
    """A unit of the victim, or of the leading node, is not started again, or does not run to begin with."""

    def act(scene: Scene, chosen: list[int]) -> None:
        number = chosen[0] if chosen else scene.leader()
        mask = f"systemctl mask --runtime {unit}" + (f"; systemctl stop {unit}" if stopped else "")
        scene.run(number, ["sh", "-c", mask])

    return ahead(act)


def without_routing(scene: Scene, _: list[int]) -> None:
    """No machine's babeld does anything any more; routes stay as they are."""
    for machine in scene.cluster.machines:
        scene.signal(machine.number, "babeld", "STOP")


def evict(scene: Scene, _: list[int]) -> None:
    """A pod is made anew though its node is well."""
    pod = witness.alive(scene.cluster)[0]["metadata"]["name"]
    scene.kubectl("delete", "pod", pod, "--wait=false")


def agents_with(line: str) -> Sabotage:
    """All agents, now and after the next power on, run with a line of Python that takes something out of them."""

    def before(scene: Scene) -> None:
        text = DROPIN.format(code=shlex.quote(f"{line}; {START}").replace("'\"'\"'", "\\'"))
        for machine in scene.cluster.machines:
            credentials = scene.cluster.machine_folder(machine) / "credentials"
            files.write(credentials / "systemd.unit-dropin.kmagent.service", text)
            scene.run(machine.number, ["sh", "-c", INSTALL], text.encode())
        steady.wait_steady(scene.cluster, STEADY_S)

    return lambda scenario: replace(scenario, before=before)


def never_alone(scenario: Scenario) -> Scenario:
    """The cluster file does not allow the others to begin anew."""
    return replace(scenario, settings=tuple(pair for pair in scenario.settings if pair[0] != "auto_recover"))


def unsynced(scenario: Scenario) -> Scenario:
    """Voters acknowledge what is not on their disks yet."""
    return replace(scenario, tuning={"arguments": {"etcd": {"unsafe-no-fsync": "true"}}})


def unchecked(scenario: Scenario) -> Scenario:
    """No etcd asks the others whether they have the same."""
    return replace(scenario, tuning={"arguments": {"etcd": {"feature-gates": "InitialCorruptCheck=false"}}})


def no_election(scenario: Scenario) -> Scenario:
    """Voters wait for a leader for as long as etcd lets them."""
    return replace(scenario, tuning={"arguments": {"etcd": {"election-timeout": "50000"}}})


def longer(scenario: Scenario) -> Scenario:
    """It stands still for longer, and the address stays where it was."""
    return anycast_stays(replace(scenario, after_s=2 * scenario.after_s))


def verity_off(scenario: Scenario) -> Scenario:
    """What is spoiled is put right before it is read, as if nobody checked."""

    def fault(scene: Scene, chosen: list[int]) -> None:
        inside.run_script(scene.driver, scene.machine(chosen[0]), "spoil_root", "spoil")
        repair_root(scene, chosen)
        check_root(scene, chosen[0], "check", errno.EIO)

    return replace(scenario, fault=fault)


kubelet_gone = masked("kubelet.service", stopped=True)
routes_stay = ahead(without_routing)
reconciler_off = agents_with(RECONCILER_OFF)
anycast_stays = agents_with(ANYCAST_STAYS)

SABOTAGE: dict[str, Sabotage] = {
    "kill-etcd-leader": kubelet_gone,
    "kill-etcd-follower": kubelet_gone,
    "kill-kube-apiserver-leader": kubelet_gone,
    "stop-etcd-leader": no_election,
    "stop-kube-apiserver-leader": longer,
    "kill-kubelet-worker": masked("kubelet.service"),
    "kill-containerd-worker": masked("containerd.service"),
    "kill-containerd-shim-worker": kubelet_gone,
    "kill-kmagent-leader": masked("kmagent.service"),
    "kill-babeld-follower": masked("kubermesh-babeld.service"),
    "delete-mirror-pods": kubelet_gone,
    "delete-addons": agents_with(ADDONS_ONCE),
    "corrupt-etcd": reconciler_off,
    "corrupt-etcd-database": unchecked,
    "corrupt-etcd-served": agents_with(ALARMS_OFF),
    "corrupt-etcd-of-three": reconciler_off,
    "phantom-member": reconciler_off,
    "settings": agents_with(ROLLOUT_OFF),
    "etcd-quota": agents_with(ALARMS_OFF),
    "cable-cut": routes_stay,
    "cable-silent": routes_stay,
    "cable-lossy": routes_stay,
    "cable-slow": routes_stay,
    "cable-one-way": routes_stay,
    "cable-flapping": afterwards(cut_one),
    "cable-after-cable": routes_stay,
    "worker-after-cable": not_undone,
    "spanning-tree": routes_stay,
    "soak": ahead(evict),
    "leader-cut-off": anycast_stays,
    "voter-cut-off": anycast_stays,
    "minority-cut-off": anycast_stays,
    "certificates-expired": masked("kmagent.service"),
    "kubelet-expired": agents_with(NEVER_ENROLLED),
    "power-leader": no_election,
    "power-follower": routes_stay,
    "power-worker": agents_with(OUTAGES_OFF),
    "power-hub": not_undone,
    "freeze-leader": no_election,
    "power-all": unsynced,
    "voter-disk-lost": reconciler_off,
    "worker-disk-lost": agents_with(NEVER_ADMITTED),
    "voter-disk-full": reconciler_off,
    "leader-gone": reconciler_off,
    "voters-gone-in-turn": reconciler_off,
    "agents-killed": reconciler_off,
    "link-and-voter": not_undone,
    "quorum-lost": agents_with(FENCE_OFF),
    "quorum-frozen": agents_with(NEVER_LEFT_BEHIND),
    "all-but-one-lost": agents_with(NEVER_ADMITTED),
    "majority-cut-off": never_alone,
    "most-nodes-off": agents_with(NONE_SPARED),
    "two-workers": not_undone,
    "two-voters-gone": reconciler_off,
    "vm-power-worker": not_undone,
    "vm-power-voter": not_undone,
    "vm-root-spoiled": verity_off,
    "vm-clock-ahead": not_undone,
    "vm-clock-lost": afterwards(cut),
    "vm-power-diskless": not_undone,
}

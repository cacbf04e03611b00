"""Faults of machines: power, and what stands still."""

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from itertools import combinations

from kmcluster import steady
from kmcluster.cable import Cable
from kmcluster.scenario import GRACE_S, Scenario, Scene, follower, lead_who_is_asked, leader, worker
from kmcluster.topology import reach
from kmplan.cluster import read_cluster
from kmplan.errors import UserError
from kmplan.run import run

STAGGER_S = 3.0
# Kubelet says for as long after its disk was full that it is (evictionPressureTransitionPeriod).
PRESSURE_S = 300.0
# What containerd knows images by that kubelet must not collect.
PINNED = '"io.cri-containerd.pinned"==pinned'
# How long etcd may have enough in what it has taken of the disk before.
FULL_S = 180.0
# How long `kmbuild recover` may take, and the old majority is left alone: it must not start in that time.
RECOVER_S, ALONE_S = 120.0, 20
# How long the others may take to say that most voters are lost.
ALARM_S = 15.0
# How long a majority of the epoch before may take to hear that it is over, and to follow.
OVERTAKEN_S = 60.0
# After how long without the others a voter begins anew by itself where that is played.
WITNESS_S = 60.0
# How long agents are killed after the grace of a voter is over.
REPLACING_S = 20.0
# How many agents are killed at least, in twice that time: each takes a moment to be there again.
LEAST_KILLED = 5
# How long after its grace a voter may take to be replaced.
REPLACED_S = 60.0


def each(act: Callable[[Scene, int], None], pause_s: float = 0.0) -> Callable[[Scene, list[int]], None]:
    """Do the same to all victims, one after the other."""

    def do(scene: Scene, chosen: list[int]) -> None:
        for number in chosen:
            act(scene, number)
            time.sleep(pause_s)

    return do


cut = each(lambda scene, number: scene.power(number, "cut"))
power_on = each(lambda scene, number: scene.power(number, "on"), STAGGER_S)
power_on_together = each(lambda scene, number: scene.power(number, "on"))
freeze = each(lambda scene, number: scene.power(number, "freeze"))
thaw = each(lambda scene, number: scene.power(number, "thaw"))
fill = each(lambda scene, number: scene.disk(number, "fill"))
repair = each(lambda scene, number: scene.disk(number, "repair"))


def lose_disk(scene: Scene, chosen: list[int]) -> None:
    """Pull the plug of all victims, put empty disks in, and power them on."""
    for number in chosen:
        scene.power(number, "cut")
        scene.disk(number, "wipe")
        scene.power(number, "on")


def cut_with_a_cable(scene: Scene, chosen: list[int]) -> None:
    """Cut a cable without which, and without the victim, all others are still joined; then the victim's power."""
    cables = without(scene, chosen)
    spared = [cable for cable in cables if are_joined(others(scene, chosen), [one for one in cables if one != cable])]
    cable = scene.random.choice(spared)
    scene.cable(cable.a.node, cable.b.node, "cut")
    cut(scene, chosen)


def without(scene: Scene, numbers: Sequence[int]) -> list[Cable]:
    """The cables that lead to none of these machines."""
    return [cable for cable in scene.cluster.cables if not {cable.a.node, cable.b.node} & set(numbers)]


def others(scene: Scene, numbers: Sequence[int]) -> set[int]:
    """All other machines."""
    return {machine.number for machine in scene.cluster.machines} - set(numbers)


def are_joined(numbers: set[int], cables: Sequence[Cable]) -> bool:
    """Whether cables between these machines leave none of them alone."""
    return reach(min(numbers), cables) >= numbers


def two(role: str) -> Callable[[Scene], list[int]]:
    """Two machines with a part in the control plane, without which the others are still joined."""

    def choose(scene: Scene) -> list[int]:
        pairs = [list(pair) for pair in combinations(scene.with_role(role), 2)]
        return scene.random.choice([pair for pair in pairs if are_joined(others(scene, pair), without(scene, pair))])

    return choose


def mend(scene: Scene, chosen: list[int]) -> None:
    """Plug all cables in, and power the victim on."""
    scene.plug_all()
    power_on(scene, chosen)


def two_followers(scene: Scene) -> list[int]:
    """Two voters joined by a cable, without which the others are still joined; the third leads, so that it has every write."""
    voters = scene.with_role("voter")
    joined = [list(pair) for pair in combinations(voters, 2) if pair[1] in scene.neighbours(pair[0])]
    chosen = scene.random.choice([one for one in joined if are_joined(others(scene, one), without(scene, one))])
    scene.lead(next(number for number in voters if number not in chosen))
    return chosen


def begin_anew(scene: Scene, *options: str) -> None:
    """Do what a person does who has lost most voters for good."""
    scene.tell(" ".join(["kmbuild recover", *options]))
    command = [sys.executable, "-P", "-m", "kmbuild", "recover", "--cluster", str(scene.cluster.directory), "--yes"]
    for line in run([*command, *options], timeout_s=RECOVER_S).stderr.splitlines():
        scene.tell(line.strip())


def recover(scene: Scene, chosen: list[int]) -> None:
    """Begin anew without the victims, as those that are left ask for; let them come back alone, where nothing of theirs may be
    served; then join all again."""
    scene.wait(lambda: quiet(scene, others(scene, chosen)), ALARM_S)
    scene.tell("all that are left say that most voters are away")
    begin_anew(scene)
    cut_off(scene, chosen)
    power_on(scene, chosen)
    stay_fenced(scene, chosen)
    scene.plug_all()


def recover_beside(scene: Scene, chosen: list[int]) -> None:
    """Begin anew without the victims, then let them go on: a majority of the epoch before, which has not heard of it."""
    begin_anew(scene)
    begun = max(epoch_of(scene, number) for number in others(scene, chosen))
    scene.split = (time.monotonic(), float("inf"))
    thaw(scene, chosen)

    def missing() -> str:
        old = [scene.machine(number).name for number in chosen if epoch_of(scene, number) < begun]
        return f"{', '.join(old)}: still in the epoch before" if old else ""

    scene.wait(missing, OVERTAKEN_S)
    scene.split = (scene.split[0], time.monotonic())
    scene.tell("the old majority has given up")


def quiet(scene: Scene, numbers: set[int]) -> str:
    """The machines that do not say that something has to be mended by a person, in words."""
    left = [scene.machine(number).name for number in sorted(numbers) if not scene.status(number).get("alarm")]
    return f"{', '.join(left)}: no alarm" if left else ""


def epoch_of(scene: Scene, number: int) -> int:
    """The epoch of what a machine has; 0 when it does not say."""
    epoch = scene.status(number).get("epoch")
    return epoch if isinstance(epoch, int) else 0


def all_but_the_leader(scene: Scene) -> list[int]:
    """All machines but the one whose etcd leads, so that it has every write."""
    leading = scene.leader()
    return [number for number in everyone(scene) if number != leading]


def cut_and_wipe(scene: Scene, chosen: list[int]) -> None:
    """Pull the plug of all victims, then put empty disks in."""
    cut(scene, chosen)
    for number in chosen:
        scene.disk(number, "wipe")


def rebuild(scene: Scene, chosen: list[int]) -> None:
    """Begin anew at the only machine that is left, and power on the others, which are blank."""
    begin_anew(scene, "--force")
    power_on(scene, chosen)


def cut_off(scene: Scene, chosen: list[int]) -> None:
    """Cut the cables between the victims and all others."""
    for cable in scene.cluster.cables:
        if len({cable.a.node, cable.b.node} & set(chosen)) == 1:
            scene.cable(cable.a.node, cable.b.node, "cut")


def join_fenced(scene: Scene, chosen: list[int]) -> None:
    """Plug all cables in again, when the victims had time to do what they must not."""
    stay_fenced(scene, chosen)
    scene.plug_all()


def cut_until_replaced(scene: Scene, chosen: list[int]) -> None:
    """Cut a voter's power until another one votes in its place; UserError when none does in time after the grace."""
    before = set(scene.with_role("voter"))
    cut(scene, chosen)
    wait_replaced(scene, before, GRACE_S)


def cut_until_both_replaced(scene: Scene, chosen: list[int]) -> None:
    """Cut the power of voters until others vote in the place of each; UserError when they do not in time after the grace."""
    count = len(scene.with_role("voter"))
    cut(scene, chosen)
    missing = f"not all of {count} vote"
    scene.wait(lambda: "" if len(scene.with_role("voter")) == count else missing, GRACE_S + len(chosen) * REPLACED_S)
    scene.tell("both are replaced")


def all_but_two(scene: Scene) -> list[int]:
    """All machines but two voters with a cable to each other, one of which leads."""
    voters = scene.with_role("voter")
    pairs = [set(pair) for pair in combinations(voters, 2) if pair[1] in scene.neighbours(pair[0])]
    kept = next((pair for pair in pairs if scene.leader() in pair), pairs[0])
    if scene.leader() not in kept:
        scene.lead(min(kept))
    return sorted(others(scene, sorted(kept)))


def fill_until_replaced(scene: Scene, chosen: list[int]) -> None:
    """Leave no byte free on a voter's disk until another one votes in its place: its etcd fails when it needs more room."""
    before = set(scene.with_role("voter"))
    fill(scene, chosen)
    wait_replaced(scene, before, FULL_S + GRACE_S)


def repair_and_look(scene: Scene, chosen: list[int]) -> None:
    """Free the disk again; UserError when kubelet has made room with container images that this node cannot fetch again."""
    repair(scene, chosen)
    has, wanted = (images(scene, number) for number in (chosen[0], scene.leader()))
    if not wanted:
        raise UserError("no machine has an image that is not to be deleted")
    if lost := wanted - has:
        raise UserError(f"{scene.machine(chosen[0]).name} has lost the images {', '.join(sorted(lost))}")
    scene.tell(f"all {len(wanted)} images are there")


def images(scene: Scene, number: int) -> set[str]:
    """The container images of a machine that are not to be deleted, as they came with the system."""
    listed = scene.run(number, ["ctr", "--namespace=k8s.io", "images", "list", f"labels.{PINNED}"])
    return {line.split()[0] for line in listed.splitlines()[1:]}


def wait_replaced(scene: Scene, before: set[int], grace_s: float) -> None:
    """Wait until a machine votes that did not, and then for all that those which are left can have.

    UserError when that is not in time after the grace.
    """
    start = time.monotonic()
    while (late := time.monotonic() - start - grace_s) < REPLACED_S:
        if set(scene.with_role("voter")) - before:
            scene.tell(f"replaced {late:.0f} s after the grace" if late >= 0 else "replaced")
            scene.wait(lambda: lacking(scene), REPLACED_S)
            scene.tell("voters and a standby as many as there can be")
            return
        time.sleep(0.5)
    raise UserError(f"no voter was replaced {REPLACED_S:g} s after the grace")


def lacking(scene: Scene) -> str:
    """What etcd lacks, or has too much of, for the machines that are on; nothing when it has what it can have."""
    left = [one for one in scene.cluster.machines if scene.driver.power(one) == "on"]
    wanted = steady.wanted_roles(read_cluster(scene.cluster.directory).wanted_voters, len(left))
    try:
        listed = steady.list_members(scene.cluster, scene.machine(scene.leader()))
    except UserError as error:
        return str(error)
    learners = sum(bool(one.get("isLearner")) for one in listed)
    found = {"voter": len(listed) - learners, "standby": learners}
    return "" if found == wanted else f"etcd has {found}, not {wanted},"


def cut_in_turn(scene: Scene, chosen: list[int]) -> None:
    """Cut the power of one voter for good, and when another one votes in its place that of the next."""
    for number in chosen:
        cut_until_replaced(scene, [number])


def cut_and_kill_agents(scene: Scene, chosen: list[int]) -> None:
    """Cut a voter's power for good, and when its grace is over kill the agents of all that replace it, again and again."""
    left = [number for number in scene.with_role("voter") + scene.with_role("standby") if number not in chosen]
    cut(scene, chosen)
    time.sleep(GRACE_S)
    end, killed = time.monotonic() + REPLACING_S, 0
    while time.monotonic() < end or (killed < LEAST_KILLED and time.monotonic() < end + REPLACING_S):
        # One that was killed just now may not be there again yet.
        with contextlib.suppress(UserError):
            scene.signal(scene.random.choice(left), "kmagent")
            killed += 1
        time.sleep(scene.random.uniform(0.2, 2.0))
    if killed < LEAST_KILLED:
        raise UserError(f"agents were killed {killed} times only, of {LEAST_KILLED} at least")


def stay_fenced(scene: Scene, chosen: list[int]) -> None:
    """Look for a while whether victims serve data of the epoch before; UserError when one does."""
    for _ in range(ALONE_S):
        time.sleep(1)
        for number in chosen:
            if dict(scene.status(number).get("conditions", {})).get("etcd"):  # type: ignore[call-overload]
                raise UserError(f"{scene.machine(number).name} serves the data of the epoch before")
    wrong = [scene.machine(number).name for number in chosen if not scene.status(number).get("fenced")]
    if wrong:
        raise UserError(f"{', '.join(wrong)}: not fenced")
    scene.tell("the old majority is fenced")


def hub(scene: Scene) -> list[int]:
    """One of the machines with the most cables."""
    cables = {machine.number: len(scene.neighbours(machine.number)) for machine in scene.cluster.machines}
    return [scene.random.choice([number for number, count in cables.items() if count == max(cables.values())])]


def everyone(scene: Scene) -> list[int]:
    """All machines, in any order."""
    numbers = [machine.number for machine in scene.cluster.machines]
    return scene.random.sample(numbers, len(numbers))


SCENARIOS = [
    Scenario("power-leader", "the leading node loses its power, and gets it back in time", ("power", "quick"), leader, cut,
             power_on, lead_who_is_asked, outage_s=5, silence_s=30, evicts=True),
    Scenario("power-follower", "another voter loses its power, and gets it back in time", ("power",), follower, cut, power_on,
             outage_s=2, silence_s=30, evicts=True),
    Scenario("power-worker", "a worker loses its power, and gets it back", ("power",), worker, cut, power_on, after_s=20,
             outage_s=2, silence_s=20, evicts=True, moves=True),
    Scenario("power-hub", "one of two machines that all others are cabled to loses its power, and gets it back", ("power",), hub,
             cut, power_on, after_s=10, outage_s=5, silence_s=30, evicts=True, topology="star"),
    Scenario("freeze-leader", "the leading node stands still for a quarter of a minute", ("power",), leader, freeze, thaw,
             lead_who_is_asked, after_s=15, outage_s=10, silence_s=30, evicts=True),
    Scenario("power-all", "all machines lose their power at once, and get it back in any order", ("power",), everyone, cut,
             power_on, after_s=1, outage_s=60, whole_s=240, evicts=True, heals_alone=False),
    Scenario("voter-disk-lost", "a voter gets an empty disk", ("power", "members"), follower, lose_disk, after_s=20, whole_s=180,
             replaced=True, silence_s=30, evicts=True),
    Scenario("worker-disk-lost", "a worker gets an empty disk", ("power",), worker, lose_disk, after_s=20, whole_s=180,
             silence_s=30, evicts=True),
    Scenario("voter-disk-full", "the disk of a voter is full until it was replaced", ("disk", "members"), follower,
             fill_until_replaced, repair_and_look, outage_s=10, whole_s=PRESSURE_S + 120, replaced=True, silence_s=30,
             evicts=True),
    Scenario("leader-gone", "the leading node is gone for longer than is waited for a voter, and returns", ("power", "members"),
             leader, cut_until_replaced, power_on, lead_who_is_asked, after_s=20, outage_s=10, replaced=True, silence_s=20,
             evicts=True, moves=True),
    Scenario("voters-gone-in-turn", "one voter is gone for good, and when it was replaced another one", ("power", "members"),
             two("voter"), cut_in_turn, power_on, after_s=10, outage_s=10, whole_s=240, replaced=True, silence_s=75, evicts=True,
             topology="mesh5"),
    Scenario("agents-killed", "a voter is gone, and the agents of the others are killed again and again while they replace it",
             ("power", "members"), follower, cut_and_kill_agents, power_on, after_s=40, outage_s=10,
             silence_s=30, whole_s=180, replaced=True, evicts=True),
    Scenario("link-and-voter", "a cable is cut, and a voter loses its power", ("power", "link"), follower, cut_with_a_cable,
             mend, after_s=15, silence_s=30, evicts=True, topology="mesh5"),
    Scenario("quorum-lost", "two of three voters are lost, the cluster is begun anew, and they return: alone, then joined",
             ("power", "members", "recover"), two_followers, cut, recover, after_s=15, outage_s=60, silence_s=120, whole_s=240,
             replaced=True, evicts=True, heals_alone=False, topology="mesh5"),
    Scenario("quorum-frozen", "two of three voters stand still, the cluster is begun anew, and they go on as if nothing had been",
             ("power", "members", "recover"), two_followers, freeze, recover_beside, after_s=15, outage_s=60, silence_s=120,
             whole_s=240, replaced=True, evicts=True, heals_alone=False, topology="mesh5"),
    Scenario("all-but-one-lost", "all machines but one are lost, it begins the cluster anew, and they join it with empty disks",
             ("power", "members", "recover"), all_but_the_leader, cut_and_wipe, rebuild, after_s=5, outage_s=60, silence_s=180,
             whole_s=300, replaced=None, evicts=True, heals_alone=False),
    Scenario("majority-cut-off", "two of three voters are cut off together, and the others begin anew by themselves",
             ("power", "members", "recover"), two_followers, cut_off, join_fenced, after_s=WITNESS_S + 60,
             outage_s=WITNESS_S + 45, silence_s=WITNESS_S + 90, whole_s=240, replaced=True, evicts=True, topology="mesh5",
             settings=(("auto_recover", "witness"), ("auto_recover_after_s", WITNESS_S))),
    Scenario("most-nodes-off", "three of five nodes lose their power for more than a minute: the others give none of them up",
             ("power",), all_but_two, cut, power_on_together, after_s=75, outage_s=10, silence_s=150, whole_s=180, replaced=None),
    # Two that are joined to each other are given up after a minute only (agent/kmagent/outages.py): their pods return with them.
    Scenario("two-workers", "two workers lose their power at once", ("power", "large"), two("worker"), cut, power_on, after_s=20,
             silence_s=45, evicts=True, topology="grid9"),
    Scenario("two-voters-gone", "two of five voters are gone for longer than is waited for a voter, and return",
             ("power", "members", "large"), two("voter"), cut_until_both_replaced, power_on, after_s=20, outage_s=15, whole_s=240,
             replaced=True, silence_s=90, evicts=True, topology="grid9"),
]  # fmt: skip

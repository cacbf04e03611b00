"""The first code of every machine's process: waits for the word to go, makes its surroundings, becomes the program.

It runs as `python -m kmcluster.launch SPEC`, SPEC being JSON of `Spec`. The word is one byte on the descriptor
`gate`, written when the process stands in the state file. If the tool dies before that, the gate closes without
it and the process ends: nothing ever runs that the state file does not know.
"""

import ctypes
import json
import os
import sys
from dataclasses import asdict, dataclass, field

CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
MS_REC, MS_SLAVE = 0x4000, 0x80000


@dataclass(frozen=True)
class Spec:
    """What to do before becoming `argv`.

    `cgroups` are joined; with `new_network` a network namespace is made; with `private_mounts` a mount namespace
    whose changes stay in it, with an empty tmpfs on every one of `tmpfs`. `nice` is how much more than others it leaves to them.
    """

    argv: list[str]
    gate: int = -1
    cwd: str = "/"
    cgroups: list[str] = field(default_factory=list)
    new_network: bool = False
    private_mounts: bool = False
    tmpfs: list[str] = field(default_factory=list)
    nice: int = 0

    def to_json(self) -> str:
        """The form that is passed on the command line."""
        return json.dumps(asdict(self))


def main() -> None:
    """Run as the launched process."""
    spec = Spec(**json.loads(sys.argv[1]))
    if spec.gate >= 0:
        if os.read(spec.gate, 1) != b"g":
            sys.exit("launch: the tool ended before it took note of this process")
        os.close(spec.gate)
    for folder in spec.cgroups:
        with open(f"{folder}/cgroup.procs", "w") as file:  # noqa: PTH123 - pathlib takes 10 ms to import
            file.write(str(os.getpid()))
    if spec.nice:
        yield_to_others(spec.nice)
    isolate(spec)
    os.chdir(spec.cwd)
    os.execvp(spec.argv[0], spec.argv)  # noqa: S606


def yield_to_others(nice: int) -> None:
    """Be nice, also as a session: each is a group of its own, within which alone nice(2) counts (sched(7), "autogroup")."""
    os.nice(nice)
    try:
        with open("/proc/self/autogroup", "w") as file:  # noqa: PTH123 - as above
            file.write(str(nice))
    except FileNotFoundError:
        return


def isolate(spec: Spec) -> None:
    """Make the namespaces; os.unshare() is there from Python 3.12 on only."""
    libc = ctypes.CDLL(None, use_errno=True)
    flags = (CLONE_NEWNS if spec.private_mounts else 0) | (CLONE_NEWNET if spec.new_network else 0)
    if flags:
        check(libc.unshare(flags), "unshare")
    if spec.private_mounts:
        check(libc.mount(b"none", b"/", None, MS_REC | MS_SLAVE, None), "mount --make-rslave /")
    for target in spec.tmpfs:
        check(libc.mount(b"tmpfs", target.encode(), b"tmpfs", 0, b"mode=0755"), f"mount tmpfs on {target}")


def check(result: int, what: str) -> None:
    """Turn a libc call's failure into the end of the process, with its reason in the log."""
    if result != 0:
        sys.exit(f"launch: {what}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main()

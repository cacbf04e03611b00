"""Starts a process so that a crash of the tool at any point leaves nothing unknown behind."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from kmcluster import process
from kmcluster.launch import Spec
from kmcluster.process import Process
from kmplan import run


def start(
    spec: Spec,
    log: Path,
    note: Callable[[Process], None],
    *,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> Process:
    """Start `spec`, have `note` write the process down, and only then let it go on."""
    reader, writer = os.pipe()
    try:
        argv = [sys.executable, "-P", "-m", "kmcluster.launch", replace(spec, gate=reader).to_json()]
        child = run.spawn(argv, log=log, env=env, pass_fds=(reader, *pass_fds))
        started = process.identify(child.pid)
        note(started)
        os.write(writer, b"g")
    finally:
        os.close(reader)
        os.close(writer)
    # The Popen object would complain about the running child when it is collected.
    child.returncode = 0
    return started

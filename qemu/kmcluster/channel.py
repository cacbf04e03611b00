"""The way into a QEMU machine: a virtio serial port served by `guest/exec.py`, injected as systemd credentials."""

import base64
import fcntl
import json
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kmcluster.qmp import connected
from kmplan.errors import UserError

# Status, standard output and error.
Answer = tuple[int, bytes, bytes]
ANSWER_S = 30.0
SCRIPT = Path(__file__).parent / "guest/exec.py"
UNIT = "kmbench-exec.service"

# The unit is generated in the initrd too, where there is no python3.
UNIT_TEXT = """\
[Unit]
Description=Commands from the bench
DefaultDependencies=no
After=local-fs.target systemd-tmpfiles-setup-dev.service
ConditionPathExists=!/etc/initrd-release

[Service]
ImportCredential=kmbench.exec
ExecStart=/usr/bin/python3 -S -E ${{CREDENTIALS_DIRECTORY}}/kmbench.exec {mac} {address}
Restart=always
RestartSec=1
KillMode=process
"""


def credentials(mac: str, address: str) -> dict[str, bytes]:
    """Credentials that make a machine of the unmodified image serve the port; `address` is CIDR."""
    return {
        "kmbench.exec": SCRIPT.read_bytes(),
        f"systemd.extra-unit.{UNIT}": UNIT_TEXT.format(mac=mac, address=address).encode(),
        "systemd.unit-dropin.sysinit.target": f"[Unit]\nWants={UNIT}\n".encode(),
    }


@contextmanager
def taken(path: Path, timeout_s: float) -> Iterator[None]:
    """The port serves one at a time: hold it."""
    lock = os.open(path.with_suffix(".lock"), os.O_WRONLY | os.O_CREAT, 0o600)
    deadline = time.monotonic() + timeout_s
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError("another command runs in the machine") from None
                time.sleep(0.05)
        yield
    finally:
        os.close(lock)


def ask(path: Path, request: dict[str, Any], timeout_s: float) -> Answer:
    """Send one request and wait for its answer; raises OSError (TimeoutError among them) when there is none."""
    name = uuid.uuid4().hex
    deadline = time.monotonic() + timeout_s
    with taken(path, timeout_s), connected(path, timeout_s) as connection:
        connection.sendall(b"\n" + json.dumps({"id": name, **request}).encode() + b"\n")
        rest = b""
        while True:
            connection.settimeout(max(0.01, deadline - time.monotonic()))
            data = connection.recv(65536)
            if not data:
                raise ConnectionError("the machine is gone")
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if answer := parse(line, name):
                    return answer


def parse(line: bytes, name: str) -> Answer | None:
    """Read an answer; None if it is not the one to request `name` (a late one to a caller that gave up)."""
    try:
        answer = json.loads(line)
    except ValueError:
        return None
    if not isinstance(answer, dict) or answer.get("id") != name:
        return None
    return int(answer["code"]), base64.b64decode(answer["stdout"]), base64.b64decode(answer["stderr"])


def execute(path: Path, argv: Sequence[str], stdin: bytes, timeout_s: float) -> Answer:
    """Run a command in the machine; raises UserError when it does not answer in time.

    A short question goes first: a machine that is booting loses what it is asked, and a command may run for long.
    """
    request = {"argv": list(argv), "stdin": base64.b64encode(stdin).decode(), "timeout_s": timeout_s}
    try:
        ask(path, {"read": "/proc/version"}, ANSWER_S)
        return ask(path, request, timeout_s + ANSWER_S)
    except OSError as error:
        raise UserError(f"the machine does not answer: {error or 'timed out'}", "see its console") from error


def read(path: Path, file: str, timeout_s: float) -> bytes | None:
    """Read a file in the machine; None if it is not there or the machine does not answer yet."""
    try:
        code, content, _ = ask(path, {"read": file}, timeout_s)
    except OSError:
        return None
    return content if code == 0 else None

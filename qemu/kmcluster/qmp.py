"""A small synchronous client of the QEMU Machine Protocol: one connection per command."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kmplan.errors import UserError

TIMEOUT_S = 10.0


@contextmanager
def connected(path: Path, timeout_s: float) -> Iterator[socket.socket]:
    """Connect to a UNIX socket whose path may be longer than the 108 bytes of sockaddr_un."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_s)
            connection.connect(f"/proc/self/fd/{folder}/{path.name}")
            yield connection
    finally:
        os.close(folder)


def execute(path: Path, command: str, /, **arguments: Any) -> Any:
    """Run one command and return its result; raises UserError when QEMU is gone or refuses."""
    try:
        with connected(path, TIMEOUT_S) as connection, connection.makefile("rwb") as stream:
            stream.readline()
            call(stream, "qmp_capabilities", {})
            return call(stream, command, arguments)
    except OSError as error:
        raise UserError(f"{path}: QEMU does not answer: {error}") from error


def call(stream: Any, command: str, arguments: dict[str, Any]) -> Any:
    """Send a command and read up to its answer, past events."""
    stream.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
    stream.flush()
    while line := stream.readline():
        answer = json.loads(line)
        if "error" in answer:
            raise UserError(f"QEMU refuses {command}: {answer['error'].get('desc', answer['error'])}")
        if "return" in answer:
            return answer["return"]
    # `quit` may close the connection before it answers.
    if command != "quit":
        raise ConnectionError("connection closed")
    return {}

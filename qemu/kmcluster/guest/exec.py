"""Runs inside a QEMU machine, carried there as a credential: serves commands over a virtio serial port.

One JSON object per line. Asked: {"id", "argv", "stdin": base64, "timeout_s"} or {"id", "read": path};
answered: {"id", "code", "stdout": base64, "stderr": base64}. A command ends when whoever asked for it on the host is gone.
It also gives the bench's network port its address. Debian's python3 and no other module than its own.
"""

# pathlib takes a third of a second to import under TCG.
# ruff: noqa: PTH110, PTH123, PTH208

import base64
import json
import os
import subprocess
import sys
import threading
import time
from typing import Any

PORT = "/dev/virtio-ports/kubermesh.exec"

running: set[subprocess.Popen[bytes]] = set()
writing = threading.Lock()


def execute(request: dict[str, Any]) -> tuple[int, bytes, bytes]:
    """Run or read what was asked; returns status, standard output and error."""
    try:
        if "read" in request:
            with open(request["read"], "rb") as file:
                return 0, file.read(), b""
        return run(request["argv"], base64.b64decode(request.get("stdin", "")), request.get("timeout_s"))
    except OSError as error:
        return 127, b"", f"{error}\n".encode()


def run(argv: list[str], data: bytes, timeout_s: float | None) -> tuple[int, bytes, bytes]:
    """Run a command to its end; the status of one that signal N ended is 128 + N, as in a shell."""
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, cwd="/") as process:
        running.add(process)
        try:
            out, err = process.communicate(data, timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            return 124, b"", b"no end in time\n"
        finally:
            running.discard(process)
    code = process.returncode
    return 128 - code if code < 0 else code, out, err


def end_commands() -> None:
    """Kill the commands that still run."""
    for process in list(running):
        process.kill()


def answer(port: int, line: bytes) -> None:
    """Answer one request; a line that is none (half of one, after the host went away) is passed over."""
    try:
        request = json.loads(line)
    except ValueError:
        return
    code, out, err = execute(request)
    parts = {"stdout": base64.b64encode(out).decode(), "stderr": base64.b64encode(err).decode()}
    data = b"\n" + json.dumps({"id": request.get("id"), "code": code, **parts}).encode() + b"\n"
    with writing:
        while data:
            data = data[os.write(port, data) :]


def start_processors() -> None:
    """Have the processors join that the kernel left out (`maxcpus=1`)."""
    folder = "/sys/devices/system/cpu"
    for name in sorted(os.listdir(folder)):
        path = f"{folder}/{name}/online"
        if os.path.exists(path):
            try:
                with open(path, "w") as file:
                    file.write("1")
            except OSError as error:
                print(f"{name} does not start: {error}", flush=True)


def open_port() -> int:
    """Open the port as soon as it is there."""
    while not os.path.exists(PORT):
        time.sleep(0.5)
    return os.open(PORT, os.O_RDWR)


def serve(port: int) -> None:
    """Serve for ever; a read of nothing means that nobody is connected on the host.

    The host asks one thing at a time: when it asks the next, whoever asked before is gone, too.
    """
    rest = b""
    while True:
        data = os.read(port, 65536)
        if not data:
            end_commands()
            rest = b""
            time.sleep(0.5)
            continue
        *lines, rest = (rest + data).split(b"\n")
        for line in filter(None, lines):
            end_commands()
            threading.Thread(target=answer, args=(port, line), daemon=True).start()


def set_up_port(mac: str, address: str) -> None:
    """Give the interface with this hardware address its IPv4 address, as soon as it is there."""
    while True:
        for name in os.listdir("/sys/class/net"):
            with open(f"/sys/class/net/{name}/address") as file:
                if file.read().strip() == mac:
                    subprocess.run(["ip", "address", "replace", address, "dev", name], check=False)
                    subprocess.run(["ip", "link", "set", name, "up"], check=False)
                    return
        time.sleep(0.5)


if __name__ == "__main__":
    threading.Thread(target=set_up_port, args=sys.argv[1:3], daemon=True).start()
    start_processors()
    serve(open_port())

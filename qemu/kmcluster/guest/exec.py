"""Runs inside a QEMU machine, carried there as a credential: serves commands over a virtio serial port.

One JSON object per line. Asked: {"id", "argv", "stdin": base64, "timeout_s"} or {"id", "read": path};
answered: {"id", "code", "stdout": base64, "stderr": base64}. It also gives the bench's network port its address.
Debian's python3 and no other module than its own.
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


def execute(request: dict[str, Any]) -> tuple[int, bytes, bytes]:
    """Run or read what was asked; returns status, standard output and error."""
    try:
        if "read" in request:
            with open(request["read"], "rb") as file:
                return 0, file.read(), b""
        data = base64.b64decode(request.get("stdin", ""))
        done = subprocess.run(
            request["argv"], input=data, capture_output=True, cwd="/", timeout=request.get("timeout_s"), check=False
        )
        return done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired:
        return 124, b"", b"no end in time\n"
    except OSError as error:
        return 127, b"", f"{error}\n".encode()


def answer(port: int, line: bytes) -> None:
    """Answer one request; a line that is none (half of one, after the host went away) is passed over."""
    try:
        request = json.loads(line)
    except ValueError:
        return
    code, out, err = execute(request)
    parts = {"stdout": base64.b64encode(out).decode(), "stderr": base64.b64encode(err).decode()}
    data = b"\n" + json.dumps({"id": request.get("id"), "code": code, **parts}).encode() + b"\n"
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


def serve() -> None:
    """Serve for ever; a read of nothing means that nobody is connected on the host."""
    while not os.path.exists(PORT):
        time.sleep(0.5)
    port = os.open(PORT, os.O_RDWR)
    rest = b""
    while True:
        data = os.read(port, 65536)
        if not data:
            rest = b""
            time.sleep(0.5)
            continue
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            answer(port, line)


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
    serve()

"""Carried into a machine: gathers what tells its story, never a key.

`collect.py live|disk SECONDS`: with `disk` only what is on the disk. Prints base64 of zlib of JSON {"items": {name:
text}, "missing": {name: reason}}; ends about in time, whatever hangs.
"""

# ruff: noqa: PTH110, PTH123, PTH202, PTH207
import base64
import glob
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
import zlib
from collections.abc import Callable
from functools import partial

STATE, RUN = "/var/lib/kubermesh", "/run/kubermesh"
ITEM_S, ASKED_S = 20.0, 5.0
TAIL = 1 << 19
JOURNAL = ["journalctl", "--merge", "--no-pager", "--output=short-iso-precise", "--lines=40000"]
COMMANDS = {
    "processes.txt": ["ps", "-eo", "pid,ppid,user,stat,rss,etime,args"],
    "addresses.txt": ["ip", "address"],
    "routes-ipv6.txt": ["ip", "-6", "route", "show", "table", "all"],
    "routes-ipv4.txt": ["ip", "route", "show", "table", "all"],
    "rules.txt": ["ip", "-6", "rule"],
    "links.txt": ["ip", "-statistics", "link"],
    "nftables.txt": ["nft", "list", "ruleset"],
    "disk.txt": ["df", "-h"],
    "units.txt": ["systemctl", "--no-pager", "--all", "list-units"],
    "containers.txt": ["ctr", "--namespace=k8s.io", "tasks", "list"],
}
STATE_FILES = {"nodes.json": f"{STATE}/nodes.json"}
RUN_FILES = {
    "status.json": f"{RUN}/status.json",
    "facts.json": f"{RUN}/node.json",
    "babeld.conf": f"{RUN}/babeld.conf",
}
ETCD = "https://[::1]:2382/v3/"
ETCD_QUESTIONS = {"etcd-members.json": "cluster/member/list", "etcd-status.json": "maintenance/status"}
ETCD_PKI = f"{RUN}/pki/agent"
SECRETS = (f"{STATE}/babel.key", f"{STATE}/encryption.key", f"{STATE}/mesh-keys.json")
SECRET_FORMS = (
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----", re.DOTALL),
    re.compile(r"(?<=\bvalue )[0-9a-fA-F]{16,}"),
)
MASK = "MASKED"


def run(argv: list[str], timeout_s: float) -> str:
    """What a command prints; its complaint too when it fails."""
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False)
    text = done.stdout.decode(errors="replace")
    return text if done.returncode == 0 else f"{text}{done.stderr.decode(errors='replace')}(status {done.returncode})\n"


def read_end(path: str, _timeout_s: float = ITEM_S) -> str:
    """The end of a file."""
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - TAIL))
        return file.read().decode(errors="replace")


def ask_babeld(timeout_s: float) -> str:
    """babeld's answer to `dump`, which ends with `ok`; so does its greeting."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(min(timeout_s, ASKED_S))
        connection.connect(f"{RUN}/babeld.sock")
        connection.sendall(b"dump\n")
        data = b""
        while data.splitlines().count(b"ok") < 2 and (more := connection.recv(65536)):
            data += more
    return data.decode(errors="replace")


def ask_etcd(path: str, timeout_s: float) -> str:
    """The local member's answer, by the agent's own certificate."""
    context = ssl.create_default_context(cafile=f"{ETCD_PKI}/etcd-ca.crt")
    context.load_cert_chain(f"{ETCD_PKI}/etcd-client.crt", f"{ETCD_PKI}/etcd-client.key")
    with urllib.request.urlopen(ETCD + path, b"{}", min(timeout_s, ASKED_S), context=context) as answer:
        return str(answer.read().decode())


def jobs(live: bool) -> dict[str, Callable[[float], str]]:
    """What to collect, by its name: functions of the seconds they may take.

    What matters most comes first, and last what somebody has to answer.
    """
    found: dict[str, Callable[[float], str]] = {"journal.txt": partial(run, JOURNAL)}
    for path in sorted(glob.glob("/var/log/pods/*/*/*.log")):
        pod, container, name = path.split("/")[-3:]
        found[f"pods/{'_'.join(pod.split('_')[:2])}_{container}_{name}"] = partial(read_end, path)
    files = STATE_FILES | (RUN_FILES if live else {})
    found |= {name: partial(read_end, path) for name, path in files.items()}
    if live:
        found |= {name: partial(run, argv) for name, argv in COMMANDS.items()}
        found["babeld.txt"] = ask_babeld
    if live and os.path.exists(f"{STATE}/etcd/member"):
        found |= {name: partial(ask_etcd, question) for name, question in ETCD_QUESTIONS.items()}
    return found


def known_secrets() -> list[str]:
    """The keys on this node that are short enough to stand in a line of text."""
    found = []
    for path in SECRETS:
        if os.path.exists(path):
            found += re.findall(r"[0-9A-Za-z+/]{16,}=*", read_end(path))
    return found


def mask(text: str, secrets: list[str]) -> str:
    """The text without keys."""
    for form in SECRET_FORMS:
        text = form.sub(MASK, text)
    for secret in secrets:
        text = text.replace(secret, MASK)
    return text


def collect(live: bool, budget_s: float) -> dict[str, dict[str, str]]:
    """Do all jobs, each for a while, and none when the time is over."""
    items, missing, secrets = {}, {}, known_secrets()
    end = time.monotonic() + budget_s
    for name, job in jobs(live).items():
        left = end - time.monotonic()
        try:
            if left <= 0:
                raise TimeoutError("no time was left")
            items[name] = mask(job(min(ITEM_S, left)), secrets)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            missing[name] = mask(str(error), secrets)
    return {"items": items, "missing": missing}


if __name__ == "__main__":
    data = json.dumps(collect(sys.argv[1] == "live", float(sys.argv[2]))).encode()
    print(base64.b64encode(zlib.compress(data, 6)).decode())

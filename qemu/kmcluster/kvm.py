"""Whether KVM really runs a kernel here: opening /dev/kvm proves nothing."""

import json
import os
import shutil
import tempfile
import time
from pathlib import Path

from kmcluster import process
from kmcluster.folders import cache_folder
from kmcluster.image import Image
from kmcluster.launch import Spec
from kmcluster.qemu_argv import OVMF, accelerator_arguments, firmware_arguments, quoted
from kmcluster.starter import start
from kmcluster.tools import qemu, qemu_environment
from kmplan import files, run

DEVICE = Path("/dev/kvm")
LIMIT_S = 30.0
# The kernel's last words before its first process, and that process's first.
MARKS = (b"Run /init as init process", b"systemd[1]:")


def kvm_works(image: Image) -> bool:
    """Boot the image's kernel under KVM, once per boot of the host; the verdict is kept in the cache."""
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return False
    path = cache_folder() / "kvm.json"
    try:
        known = json.loads(path.read_text())
        if known["boot"] == process.boot_id():
            return bool(known["works"])
    except (OSError, ValueError, KeyError):
        pass
    works = probe(image)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, json.dumps({"boot": process.boot_id(), "works": works}) + "\n")
    return works


def probe_arguments(image: Image) -> list[str]:
    """A machine that writes nothing but its console: changes to the disk go to an unlinked file."""
    extra = "type=11,value=io.systemd.stub.kernel-cmdline-extra=console=ttyS0 loglevel=6"
    return [
        "-nodefaults", "-no-user-config", "-no-reboot", "-machine", "q35", *accelerator_arguments("kvm"),
        "-smp", "2", "-m", "1024M", *firmware_arguments(image.tools, "vars.fd"),
        "-drive", f"if=none,id=disk,format=raw,snapshot=on,file={quoted(image.raw.resolve())}",
        "-device", "virtio-blk-pci,drive=disk,bootindex=0",
        "-display", "none", "-vga", "none", "-serial", "file:console.log", "-smbios", extra,
    ]  # fmt: skip


def probe(image: Image) -> bool:
    """Try it, with a time limit."""
    with tempfile.TemporaryDirectory(prefix="kubermesh-kvm-") as name:
        folder = Path(name)
        shutil.copyfile(image.tools / OVMF / "OVMF_VARS_4M.fd", folder / "vars.fd")
        # No state file knows of it: nobody else would end it.
        spec = Spec(argv=run.die_with_parent(qemu(image.tools, probe_arguments(image))), cwd=name)
        started = start(spec, folder / "qemu.log", lambda _: None, env=qemu_environment(image.tools))
        try:
            return saw_mark(started, folder / "console.log")
        finally:
            process.end(started)


def saw_mark(started: process.Process, console: Path) -> bool:
    """Wait for a mark on the console, for QEMU's end or for the time limit."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        ended = process.wait_end(started, 0.2)
        text = console.read_bytes() if console.exists() else b""
        if any(mark in text for mark in MARKS):
            return True
        if ended:
            return False
    return False

"""What an nspawn machine finds at power on beside its image: credentials, and a unit that adapts the host."""

import shutil
from pathlib import Path

# What kubelet wants of the kernel (protectKernelDefaults), shown to the machine without changing the host.
SYSCTLS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}

UNIT = "kmbench-host.service"

# A cluster's folder with what its containers serve, and where they find it.
SERVED, SERVED_AT = "served", "/run/kubermesh-image"

# systemd-nspawn cannot bind over /proc itself, and leaves the cgroup v1 hierarchies read-only.
UNIT_TEXT = """\
[Unit]
Description=Adapt the host of this container
DefaultDependencies=no
Before=sysinit.target systemd-sysctl.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'for d in /sys/fs/cgroup/*/; do [ -e $$d/cgroup.procs ] && mount -o remount,rw,bind $$d; done; :'
WorkingDirectory=-/run/kubermesh-bench/sysctl
ExecStart=/bin/sh -c 'for f in */* */*/*; do [ -f $$f ] && mount --bind $$f /proc/sys/$$f; done; :'
"""

DROPIN = "systemd.unit-dropin.sysinit.target"


def write_files(folder: Path) -> list[Path]:
    """Write a machine's files for this power on, with an empty /etc; returns its credentials, one file each."""
    shutil.rmtree(folder / "etc", ignore_errors=True)
    for made in ("etc/upper", "var", "bench/sysctl", "credentials"):
        (folder / made).mkdir(parents=True, exist_ok=True, mode=0o755)
    for name, value in SYSCTLS.items():
        path = folder / "bench/sysctl" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(f"{value}\n")
    (folder / "credentials" / f"systemd.extra-unit.{UNIT}").write_text(UNIT_TEXT)
    (folder / "credentials" / DROPIN).write_text(f"[Unit]\nWants={UNIT}\n")
    return sorted((folder / "credentials").iterdir())

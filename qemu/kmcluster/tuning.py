"""What the bench overrides on a node, as data: the credential `kubermesh.tuning` (schema: kmplan.tuning.Tuning)."""

from typing import Any

from kmplan.tuning import merge

Tuning = dict[str, Any]

# Go programs under TCG cost 20 to 35 times their native CPU: longer periods, so that an idle node stays idle.
EMULATED: Tuning = {
    "kubelet": {
        "nodeStatusUpdateFrequency": "30s",
        "nodeStatusReportFrequency": "10m",
        "nodeLeaseDurationSeconds": 60,
        "syncFrequency": "2m",
        "volumeStatsAggPeriod": "10m",
        "runtimeRequestTimeout": "15m",
        "maxPods": 30,
        "imageGCHighThresholdPercent": 100,
        "crashLoopBackOff": {"maxContainerRestartPeriod": "30s"},
    },
    "arguments": {
        "etcd": {
            "heartbeat-interval": "500",
            "election-timeout": "5000",
            # Hundreds of messages a minute that say that nothing has changed: who needs to know asks.
            "watch-progress-notify-interval": "60s",
        },
        "kube-apiserver": {
            "etcd-healthcheck-timeout": "10s",
            "etcd-readycheck-timeout": "10s",
            "default-not-ready-toleration-seconds": "60",
            "default-unreachable-toleration-seconds": "60",
            "event-ttl": "15m",
            "request-timeout": "2m",
        },
        "kube-controller-manager": {
            "leader-elect-lease-duration": "60s",
            "leader-elect-renew-deadline": "40s",
            "leader-elect-retry-period": "10s",
            "node-monitor-period": "10s",
            "node-monitor-grace-period": "90s",
        },
        "kube-scheduler": {
            "leader-elect-lease-duration": "60s",
            "leader-elect-renew-deadline": "40s",
            "leader-elect-retry-period": "10s",
        },
        "kubelet": {"housekeeping-interval": "60s"},
    },
    # With one thread to run code, none is woken to look for some: a sixth of all context switches are that.
    "environment": {"GOGC": "200", "GOMAXPROCS": "1"},
    "probe_scale": 4.0,
}

# cAdvisor cannot see the disk behind the tree of a container.
CONTAINER: Tuning = {"kubelet": {"localStorageCapacityIsolation": False}}

CGROUP_V1: Tuning = {"kubelet": {"failCgroupV1": False, "cgroupDriver": "cgroupfs"}}


def containerd_toml(*, cgroupfs: bool, restrict_oom_score: bool) -> str:
    """Settings of containerd (configuration version 3) for a machine that is a container.

    Without CAP_SYS_RESOURCE no process may be made less likely to be killed: `restrict_oom_score_adj`.
    """
    runtime = "plugins.'io.containerd.cri.v1.runtime'"
    lines = ["version = 3"]
    if restrict_oom_score:
        lines += [f"[{runtime}]", "restrict_oom_score_adj = true"]
    if cgroupfs:
        lines += [f"[{runtime}.containerd.runtimes.crun.options]", "SystemdCgroup = false"]
    return "\n".join(lines) + "\n" if len(lines) > 1 else ""


def container_tuning(*, legacy_cgroups: bool, may_raise_limits: bool) -> Tuning:
    """The tuning of a machine that is a container on this host."""
    toml = containerd_toml(cgroupfs=legacy_cgroups, restrict_oom_score=not may_raise_limits)
    base = merge(CONTAINER, CGROUP_V1) if legacy_cgroups else CONTAINER
    return merge(base, {"containerd": toml} if toml else {})

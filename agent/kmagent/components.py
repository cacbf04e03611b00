"""The control plane's components and the users they run as (the same numbers as in sysusers.d)."""

UIDS = {
    "etcd": 901,
    "kube-apiserver": 902,
    "kube-controller-manager": 903,
    "kube-scheduler": 904,
    "kubelet": 0,
    "agent": 0,
}

CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")

"""What is compiled from upstream's source: one small Go module per component, built in the tools tree.

A component's id has no tools tree in it: the pinned Go toolchain is fetched through the Go module proxy and checked
against its checksum database (go.dev/doc/toolchain), and cgo is off, so nothing of Debian reaches the result.
"""

import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from kmbuild import sandbox, source
from kmbuild.stage import Context, Inputs, Stage
from kmplan.errors import UserError

STAGING_MAJOR = "0"  # k8s.io/api and its sisters are v0.37.2 where Kubernetes is v1.37.2


@dataclass(frozen=True)
class Component:
    """How one component is built: upstream's module, the packages to build, tags, and linker variables.

    `programs` are the files that come out. `stamps` are Go variables to set; `{version}`, `{major}`, `{minor}` are filled in.
    """

    module: str
    packages: tuple[str, ...]
    programs: tuple[str, ...]
    tags: str = ""
    stamps: tuple[str, ...] = ()
    siblings: tuple[str, ...] = ()


KUBERNETES_STAMPS = tuple(
    f"{package}.{stamp}"
    for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    for stamp in ("gitVersion=v{version}", "gitMajor={major}", "gitMinor={minor}", "gitTreeState=clean", "gitCommit=")
)

COMPONENTS = {
    "kubernetes": Component(
        "k8s.io/kubernetes", (".",), ("kubernetes",), tags="selinux,notest,grpcnotrace", stamps=KUBERNETES_STAMPS
    ),
    "etcd": Component(
        "go.etcd.io/etcd/server/v3",
        (".",),
        ("etcd",),
        siblings=("go.etcd.io/etcd/etcdctl/v3", "go.etcd.io/etcd/etcdutl/v3"),
    ),
    "coredns": Component("github.com/coredns/coredns", (".",), ("coredns",)),
    "containerd": Component(
        "github.com/containerd/containerd/v2",
        ("tool", "./sealdb"),
        ("containerd", "containerd-shim-runc-v2", "ctr", "sealdb"),
        tags="no_btrfs,no_devmapper,no_zfs",
        stamps=("github.com/containerd/containerd/v2/version.Version=v{version}",),
    ),
    "cni": Component("github.com/containernetworking/plugins", ("tool",), ("host-local", "loopback", "portmap", "ptp")),
}


def stage_name(component: str) -> str:
    """Name of a component's stage."""
    return f"components-{component}"


def make_stage(name: str) -> Stage:
    """The stage that builds one component."""

    def inputs(context: Context) -> Inputs:
        versions = context.config.versions
        return {
            "version": versions[name],
            "go": versions["go"],
            f"components/{name}": source.digest(source.folder("components") / name)[:32],
        }

    def make(context: Context, work: Path) -> None:
        build(context, name, work)

    return Stage(stage_name(name), (), inputs, make, (sys.modules[__name__], sandbox), runs_in=("tools",))


def build(context: Context, name: str, work: Path) -> None:
    """Compile one component; its programs end up in `work`, and in modules.txt what was linked into them."""
    component, version = COMPONENTS[name], context.config.versions[name]
    module = work / "module"
    shutil.copytree(source.folder("components") / name, module)
    if not requires(module, component.module, version):
        context.say(stage_name(name), f"resolving the modules of version {version}")
        align(context, name, module)
    context.say(stage_name(name), "compiling")
    (work / "out").mkdir()
    for package in component.packages:
        target = f"/build/out/{component.programs[0]}" if package == "." else "/build/out/"
        tags = [f"-tags={component.tags}"] if component.tags else []
        argv = [
            "go",
            "build",
            "-trimpath",
            "-buildvcs=false",
            *tags,
            "-ldflags",
            linker_flags(component, version),
            "-o",
            target,
            package,
        ]
        go(context, name, work, argv)
    for program in component.programs:
        (work / "out" / program).rename(work / program)
    listing = go(context, name, work, ["go", "version", "-m", *(f"/build/{program}" for program in component.programs)])
    (work / "modules.txt").write_text(listing)
    shutil.rmtree(work / "out")
    shutil.rmtree(module)


def linker_flags(component: Component, version: str) -> str:
    """Strip the program and set its version variables."""
    major, minor, _ = version.split(".")
    stamps = [f"-X {stamp.format(version=version, major=major, minor=minor)}" for stamp in component.stamps]
    return " ".join(["-s -w -buildid=", *stamps])


def go(context: Context, name: str, work: Path, argv: list[str], *, writable: bool = False) -> str:
    """Run the Go command on a component's module, with the caches of modules and compiled packages bound; returns its output."""
    caches = context.cache.path / "go"
    for part in ("mod", "build", "path"):
        (caches / part).mkdir(parents=True, exist_ok=True)
    env = {
        "CGO_ENABLED": "0",
        "GOTOOLCHAIN": f"go{context.config.versions['go']}",
        "GOFLAGS": "-mod=mod" if writable else "-mod=readonly",
        "GOMODCACHE": "/cache/mod",
        "GOCACHE": "/cache/build",
        "GOPATH": "/cache/path",
        **sandbox.network_settings(),
    }
    binds = {work: "/build", caches: "/cache"}
    return context.in_tools(stage_name(name), argv, binds=binds, env=env, network=True, workdir="/build/module")


def requires(module: Path, path: str, version: str) -> bool:
    """Tell whether a go.mod asks for this version of a module."""
    return re.search(rf"{re.escape(path)} v{re.escape(version)}\b", (module / "go.mod").read_text()) is not None


def align(context: Context, name: str, module: Path) -> None:
    """Rewrite go.mod and go.sum for another version than the committed one, as `go get` and `go mod tidy` do it."""
    component, version = COMPONENTS[name], context.config.versions[name]
    go_mod = module / "go.mod"
    if name == "kubernetes":  # `replace` lines of its staging modules
        staging = f"v{STAGING_MAJOR}.{version.partition('.')[2]}"
        go_mod.write_text(re.sub(r"(=> k8s\.io/\S+) v\S+", rf"\1 {staging}", go_mod.read_text()))
    wanted = [f"{path}@v{version}" for path in (component.module, *component.siblings)]
    go(context, name, module.parent, ["go", "get", *wanted], writable=True)
    go(context, name, module.parent, ["go", "mod", "tidy"], writable=True)
    if not requires(module, component.module, version):
        raise UserError(f"components.{name}: version {version} could not be selected", "see `go list -m -versions`")


STAGES = tuple(make_stage(name) for name in COMPONENTS)

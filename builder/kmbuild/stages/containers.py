"""The baked container images: unpacked by containerd itself at build time, in place and without a copy at boot.

containerd imports each image into an empty state folder and drops the layers that it has unpacked. The unpacked snapshots
go to /usr/lib/kubermesh/containerd/snapshots, the two small databases beside them to `seed`; the agent copies the seed to
/var at boot and links the snapshots. A program that the root tree has too becomes a hard link to it: one inode, one
copy in the page cache.
"""

import hashlib
import json
import os
import re
import shutil
import stat
import sys
import tarfile
from pathlib import Path

from kmbuild import sandbox, tarball
from kmbuild.stage import Context, Inputs, Stage
from kmbuild.stages.components import COMPONENTS, stage_name
from kmplan import document, oci
from kmplan.errors import UserError
from kmplan.oci import OciImage, write_archive

ROOT = "usr/lib/kubermesh/containerd"
SNAPSHOTTER = "io.containerd.snapshotter.v1.overlayfs"
DATABASES = ("io.containerd.metadata.v1.bolt/meta.db", f"{SNAPSHOTTER}/metadata.db")
KUBERNETES_PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-proxy", "kube-scheduler")
MERGED_USR = {"bin": "usr/bin", "lib": "usr/lib", "lib64": "usr/lib64", "sbin": "usr/sbin"}

CONFIG = """\
version = 3
root = "/build/state"
state = "/run/containerd"
disabled_plugins = ["io.containerd.cri.v1.runtime", "io.containerd.cri.v1.images", "io.containerd.grpc.v1.cri"]
[grpc]
address = "/run/containerd.sock"
"""

# Pinned: kubelet's garbage collection leaves them alone; managed: the CRI shows them (containerd docs/cri/config.md).
IMPORT = """\
set -eu
/input/containerd --config /build/config.toml &
daemon=$!
for attempt in $(seq 100); do
    /input/ctr --address /run/containerd.sock version >/dev/null 2>&1 && break
    sleep 0.1
done
/input/ctr --address /run/containerd.sock --namespace k8s.io images import --local --discard-unpacked-layers \\
    --label io.cri-containerd.pinned=pinned --label io.cri-containerd.image=managed /build/images.tar
/input/ctr --address /run/containerd.sock --namespace k8s.io content prune references || true
/input/ctr --address /run/containerd.sock --namespace k8s.io images list
kill $daemon
wait $daemon || true
"""


def inputs(context: Context) -> Inputs:
    """Only the versions in the images' names; the programs come by the needs."""
    return {f"version {name}": version for name, version in context.config.versions.items() if name in COMPONENTS}


def make(context: Context, work: Path) -> None:
    """Write `containers.tar`, a piece of the root tree, and `images.json`, the list of images."""
    libraries = extract_libraries(context, work / "tree")
    images = make_images(context, work / "tree", libraries)
    write_archive(images, work / "images.tar")
    document.write(work / "config.toml", CONFIG)
    (work / "state").mkdir()
    context.say("containers", "importing into containerd")
    containerd = {context.folder("components-containerd"): "/input"}
    context.in_tools("containers", ["sh", "-c", IMPORT], binds={work: "/build"}, read_only=containerd)
    seal_databases(context, work)
    write_snapshots(context, work, hash_sources(images, context, work / "tree"))
    document.write(work / "images.json", json.dumps(sorted(image.name for image in images), indent=1) + "\n")
    for name in ("tree", "state"):
        shutil.rmtree(work / name)
    for name in ("images.tar", "config.toml"):
        (work / name).unlink()


def extract_libraries(context: Context, target: Path) -> dict[str, Path]:
    """Copy nft and the libraries that it needs, and catatonit, out of the trees; returns path in the image -> host file."""
    output = context.in_tools("containers", ["ldd", "/usr/sbin/nft"])
    names = sorted(set(re.findall(r"(/lib\S*/\S+\.so\S*) \(", output)))
    wanted = {"usr/sbin/nft", *(f"usr{name}" for name in names if "ld-linux" not in name)}
    wanted.add("usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2")
    # Without it nft shows tcp as 6: a kube-proxy that is started anew takes its own rules for others', and removes them.
    wanted.add("etc/protocols")
    found: dict[str, Path] = {}
    with tarball.open_piece(context.folder("tree") / "tree.tar") as tar:
        members = {member.name: member for member in tar}
        for name in sorted(wanted):
            member = follow(members, name)
            path = target / member.name
            path.parent.mkdir(parents=True, exist_ok=True)
            data = tar.extractfile(member)
            path.write_bytes(data.read() if data else b"")
            found[name] = path
    return found


def follow(members: dict[str, tarfile.TarInfo], name: str) -> tarfile.TarInfo:
    """Find the regular file behind a path of a tar, through symbolic and hard links."""
    member = members.get(name)
    if member is None:
        raise UserError(
            f"containers: {name} is not in the tree",
            "the tools and the tree are of different Debian versions; run `kmbuild lock`",
        )
    if member.issym():
        return follow(members, os.path.normpath(Path(name).parent / member.linkname))
    return follow(members, member.linkname) if member.islnk() else member


def make_images(context: Context, tree: Path, libraries: dict[str, Path]) -> list[OciImage]:
    """Describe the images: the control plane's, etcd, CoreDNS and pause."""
    versions = context.config.versions
    kubernetes = context.folder(stage_name("kubernetes")) / "kubernetes"
    etcd = context.folder(stage_name("etcd")) / "etcd"
    coredns = context.folder(stage_name("coredns")) / "coredns"
    loader = {"usr/lib64/ld-linux-x86-64.so.2": "../lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"}
    programs = {f"usr/bin/{name}": kubernetes for name in KUBERNETES_PROGRAMS}
    return [
        OciImage(
            f"kubermesh.local/kubernetes:v{versions['kubernetes']}", {**programs, **libraries}, {**MERGED_USR, **loader}
        ),
        OciImage(
            f"kubermesh.local/etcd:v{versions['etcd']}",
            {f"usr/bin/{name}": etcd for name in ("etcd", "etcdctl", "etcdutl")},
        ),
        OciImage(f"kubermesh.local/coredns:v{versions['coredns']}", {"usr/bin/coredns": coredns}),
        OciImage(
            "kubermesh.local/pause:1",
            {"usr/bin/catatonit": context.tools / "usr/bin/catatonit"},
            entrypoint=("/usr/bin/catatonit", "-P"),
        ),
    ]


def hash_sources(images: list[OciImage], context: Context, tree: Path) -> dict[str, str]:
    """Map the SHA-256 of every file that the root tree has too to its path there."""
    places = {context.folder(stage_name(name)) / name: f"usr/bin/{name}" for name in ("kubernetes", "etcd")}
    for image in images:
        for path in image.files.values():
            if path.is_relative_to(tree):
                places[path] = str(path.relative_to(tree))
    return {hashlib.sha256(path.read_bytes()).hexdigest(): place for path, place in places.items()}


def seal_databases(context: Context, work: Path) -> None:
    """Rewrite containerd's databases so that two builds give the same bytes (components/containerd/sealdb)."""
    for name in DATABASES:
        argv = ["/input/sealdb", f"/build/state/{name}", f"/build/state/{name}.sealed", str(context.epoch)]
        folders = {context.folder("components-containerd"): "/input"}
        context.in_tools("containers", argv, binds={work: "/build"}, read_only=folders)
        (work / "state" / f"{name}.sealed").replace(work / "state" / name)


def write_snapshots(context: Context, work: Path, known: dict[str, str]) -> None:
    """Write the piece: snapshots (shared files as hard links), the seed, and its id."""
    state, epoch = work / "state", context.epoch
    snapshots = state / SNAPSHOTTER / "snapshots"
    with tarball.write_piece(work / "containers.tar") as tar:
        for folder in ("usr/lib/kubermesh", ROOT, f"{ROOT}/seed", f"{ROOT}/snapshots"):
            tarball.add_folder(tar, folder, epoch)
        seed = seed_files(state)
        for path in seed:
            add_path(tar, f"{ROOT}/seed/{path.relative_to(state)}", path, epoch, {})
        total = hashlib.sha256("".join(f"{path.relative_to(state)} {digest(path)}\n" for path in seed).encode())
        tarball.add_file(tar, f"{ROOT}/id", f"{total.hexdigest()}\n".encode(), epoch)
        for path in sorted(snapshots.rglob("*")):
            add_path(tar, f"{ROOT}/snapshots/{path.relative_to(snapshots)}", path, epoch, known)


def seed_files(state: Path) -> list[Path]:
    """What containerd needs of its state beside the snapshots: databases, manifests and configurations."""
    skip = state / SNAPSHOTTER / "snapshots"
    wanted = (state / "io.containerd.content.v1.content", *(state / name for name in DATABASES))
    found = {
        child for path in wanted for child in (path, *path.rglob("*"), *path.parents) if child.is_relative_to(state)
    }
    ingest = state / "io.containerd.content.v1.content" / "ingest"
    return sorted(path for path in found - {state} if not path.is_relative_to(skip) and path.parent != ingest)


def digest(path: Path) -> str:
    """SHA-256 of a file; of a folder, nothing."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"


def add_path(tar: tarfile.TarFile, name: str, path: Path, epoch: int, known: dict[str, str]) -> None:
    """Add a host path; a file whose content the root tree has becomes a hard link to it."""
    status = path.lstat()
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISDIR(status.st_mode):
        tarball.add_folder(tar, name, epoch, mode)
    elif stat.S_ISLNK(status.st_mode):
        tarball.add_link(tar, name, str(path.readlink()), epoch)
    elif known and (place := known.get(digest(path))):
        tarball.add_link(tar, name, place, epoch, hard=True)
    else:
        tarball.add_file(tar, name, path, epoch, mode)


STAGE = Stage(
    "containers",
    ("tools", "tree", *(stage_name(name) for name in ("kubernetes", "etcd", "coredns", "containerd"))),
    inputs,
    make,
    (sys.modules[__name__], sandbox, tarball, oci),
)

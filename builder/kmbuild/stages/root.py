"""The large part of the root file system, compressed once: Debian tree, compiled programs, container images.

What changes often (overlays, the agent) is appended by the disk stage without compressing this again.
"""

import json
import sys
import uuid
from pathlib import Path

from kmbuild import sandbox, tarball
from kmbuild.stage import Context, Inputs, Stage
from kmbuild.stages.components import COMPONENTS, stage_name
from kmplan import document

NAMESPACE = uuid.UUID("8d3f2a52-6d1c-4c6e-9a5f-6b1d0f3a7c11")  # of the UUIDs that follow from a build's content ids
COMPRESSION = {"fast": ["-zzstd,level=3"], "small": ["-zlzma,level=6", "-C65536"]}
PROGRAM_FOLDERS = {"cni": "usr/lib/cni"}
NOT_ON_A_NODE = {"coredns", "sealdb"}  # CoreDNS runs from its container image alone
PROGRAM_LINKS = {"kubelet": "kubernetes", "kubectl": "kubernetes", "etcdctl": "etcd", "etcdutl": "etcd"}
# mkfs.erofs 1.8 does not end when it cannot write: its main thread waits for the one that gave up. So its first error ends it.
MKFS = """\
exec 3< <(exec mkfs.erofs "$@" 2>&1)
sed --unbuffered '/<E>/q1' <&3 || { kill -KILL $!; exit 1; }
wait $!
"""


def inputs(context: Context) -> Inputs:
    """How it is compressed; all else comes by the needs."""
    return {"compression": context.config.compression}


def make(context: Context, work: Path) -> None:
    """Write `base.erofs`; `modes.json` maps every path in it to its mode."""
    write_programs(context, work / "programs.tar")
    pieces = [
        context.folder("tree") / "tree.tar",
        work / "programs.tar",
        context.folder("containers") / "containers.tar",
    ]
    context.say("root", "compressing")
    tarball.join(pieces, work / "root.tar")
    pack(context, "root", work, "base.erofs", "root.tar")
    with tarball.open_piece(work / "root.tar") as tar:
        modes = {member.name: member.mode for member in tar}
    document.write(work / "modes.json", json.dumps(modes))
    (work / "programs.tar").unlink()
    (work / "root.tar").unlink()


def write_programs(context: Context, target: Path) -> None:
    """Write the piece with our compiled programs and the names that they are called by."""
    with tarball.write_piece(target) as tar:
        for folder in PROGRAM_FOLDERS.values():
            tarball.add_folder(tar, folder, context.epoch)
        for name, component in COMPONENTS.items():
            for program in component.programs:
                if program not in NOT_ON_A_NODE:
                    path = f"{PROGRAM_FOLDERS.get(name, 'usr/bin')}/{program}"
                    tarball.add_file(tar, path, context.folder(stage_name(name)) / program, context.epoch, 0o755)
        for name, program in PROGRAM_LINKS.items():
            tarball.add_link(tar, f"usr/bin/{name}", program, context.epoch)


def pack(context: Context, stage: str, work: Path, image: str, tar: str, *, append: bool = False) -> None:
    """Run mkfs.erofs(1) on a tar; with `append` the image exists, and the tar's files come on top."""
    fixed = [f"-T{context.epoch}", "-U", str(uuid.uuid5(NAMESPACE, context.ids["root"])), "--quiet"]
    mode = ["--incremental=data"] if append else []
    argv = ["bash", "-c", MKFS, "bash", "--tar=f", *mode, *COMPRESSION[context.config.compression], *fixed]
    context.in_tools(stage, [*argv, f"/build/{image}", f"/build/{tar}"], binds={work: "/build"})


NEEDS = ("tools", "tree", *(stage_name(name) for name in COMPONENTS), "containers")
STAGE = Stage("root", NEEDS, inputs, make, (sys.modules[__name__], sandbox, tarball))

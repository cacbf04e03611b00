"""Programs of the tools tree, run on the host by the tree's own dynamic loader: no chroot and no mount needed."""

from collections.abc import Sequence
from pathlib import Path

from kmplan.errors import UserError

LOADER = "usr/lib64/ld-linux-x86-64.so.2"
LIBRARIES = "usr/lib/x86_64-linux-gnu"


def tool(tools: Path, program: str, *arguments: str | Path) -> list[str]:
    """The argv of a program in the tree's /usr/bin; raises UserError if the tree lacks it."""
    path = tools / "usr/bin" / program
    for needed in (path, tools / LOADER):
        if not needed.exists():
            raise UserError(f"{needed}: missing in the tools tree", "`make image` builds the tools tree")
    return [str(tools / LOADER), "--library-path", str(tools / LIBRARIES), str(path), *map(str, arguments)]


def qemu(tools: Path, arguments: Sequence[str]) -> list[str]:
    """The argv of the tree's QEMU, with its own firmware folders."""
    return tool(
        tools, "qemu-system-x86_64", "-L", tools / "usr/share/qemu", "-L", tools / "usr/share/seabios", *arguments
    )


def qemu_environment(tools: Path) -> dict[str, str]:
    """QEMU looks for its modules (accelerators, virtio display) in a compiled-in folder unless told."""
    return {"QEMU_MODULE_DIR": str(tools / LIBRARIES / "qemu")}

"""A container image for tests that need something to run offline: one static busybox."""

from pathlib import Path

from kmplan.errors import UserError
from kmplan.oci import OciImage, write_archive

NAME = "kubermesh.local/busybox:1"
APPLETS = (
    "sh", "cat", "echo", "env", "head", "httpd", "id", "ls", "mkdir", "nc", "nslookup", "ping", "sleep", "true", "wc", "wget",
)  # fmt: skip


def make_archive(busybox: Path, target: Path) -> Path:
    """Write the image as an OCI layout tar, the same bytes for the same busybox; returns `target`.

    Raises UserError when there is no busybox.
    """
    if not busybox.is_file():
        raise UserError(f"{busybox}: missing", "the tools tree has it: `make image`")
    links = {f"bin/{applet}": "busybox" for applet in APPLETS}
    image = OciImage(name=NAME, files={"bin/busybox": busybox}, symlinks=links, entrypoint=["/bin/sh"])
    write_archive([image], target)
    return target

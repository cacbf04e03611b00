"""A machine whose system came from a neighbour: what there is of it in memory, and what a disk gets of that."""

import contextlib
import http.client
import json
import shutil
from pathlib import Path

from kmagent import boot_image, home_disk, machine, verity
from kmagent.disk_copy import Parts
from kmagent.paths import Paths
from kmplan import esp
from kmplan.drives import Partition
from kmplan.files import write
from kmplan.run import run

TELL_S = 2.0
JOIN = "kubermesh.join"


def parts_of(paths: Paths, words: list[str], uuids: tuple[str, str]) -> Parts:
    """Return the disks in memory that have root and hashes, and the files of an EFI system partition that starts them."""
    devices = (words[verity.DATA], words[verity.HASHES])
    root, hashes = (
        Partition(path=Path("/dev") / machine.name_of(device), device=device, uuid=uuid)
        for device, uuid in zip(devices, uuids, strict=True)
    )
    return Parts(root, hashes, files=fill_esp(paths, words[verity.ROOT_HASH]))


def fill_esp(paths: Paths, roothash: str, top: Path = Path("/")) -> Path:
    """Lay out what the disk boots with; its entry has no boot counter, as there is no other slot to fall back to."""
    folder = paths.run / "esp"
    shutil.rmtree(folder, ignore_errors=True)
    version = json.loads(paths.versions.read_text())["image"]
    image = boot_image.find(roothash, top)
    for name, content in esp.layout(top / esp.LOADER, image, f"kubermesh_{version}").items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            shutil.copyfile(content, path)
        else:
            path.write_text(content)
    given = paths.credentials / JOIN if paths.credentials else None
    if given and given.exists():
        argv = ["systemd-creds", "encrypt", "--with-key=null", f"--name={JOIN}", str(given), "-"]
        (folder / "loader/credentials").mkdir()
        write(folder / f"loader/credentials/{JOIN}.cred", run(argv).stdout, 0o600)
    return folder


def tell(paths: Paths, text: str) -> None:
    """Say to the neighbour that the system came from what this machine does; nobody waits for it to hear that."""
    with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
        address = (paths.booted / "neighbour").read_text().strip()
        connection = http.client.HTTPConnection(address, boot_image.PORT, timeout=TELL_S)
        connection.request("POST", "/v1/progress", text[:80].encode("ascii", "replace"))
        connection.getresponse().read()
        connection.close()


def was_booted(paths: Paths, drive: str) -> bool:
    """Tell whether the system came from a neighbour and is in memory, `drive` being where the root is."""
    return drive.startswith(home_disk.MEMORY) and paths.booted.exists()

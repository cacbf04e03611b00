"""The seed's credential, which has all keys of the cluster, on the disk that the machine boots from."""

import logging
import os
from pathlib import Path

import msgspec

from kmagent import home_disk, identity
from kmagent.disk_look import mounted
from kmagent.paths import Paths
from kmplan.errors import UserError
from kmplan.files import sync_folder
from kmplan.run import run
from kmplan.seed import JoinBundle, parse_bundle

log = logging.getLogger(__name__)

# Where systemd-stub(7) looks for credentials.
FOLDER = "loader/credentials"
SEED, JOIN = "kubermesh.seed", "kubermesh.join"


def give_up(paths: Paths) -> None:
    """Put what any other machine of the cluster is given in its place, where there is one; what is in the way is logged."""
    given = paths.credentials / SEED if paths.credentials else None
    if given is None or not given.exists():
        return
    try:
        replace_on_disk(paths, identity.join_of(parse_bundle(given.read_bytes())))
    except (UserError, OSError) as error:
        log.warning("the seed's credential stays where it is: %s", error)


def replace_on_disk(paths: Paths, join: JoinBundle) -> None:
    """Write the other credential, then remove the seed's.

    Raises UserError or OSError when that cannot be done: the disk has one or the other then, or both.
    """
    device = Path("/dev") / home_disk.partition_of(home_disk.root_drive(), home_disk.ESP)
    with mounted(paths, device, "rw", "vfat") as esp:
        folder = esp / FOLDER
        if not (folder / f"{SEED}.cred").exists():
            return
        encrypt = ["systemd-creds", "encrypt", "--with-key=null", f"--name={JOIN}", "-", "-"]
        sealed = run(encrypt, input=msgspec.json.encode(join)).stdout
        # Not `files.write`: this file system knows no mode of a file.
        partial = folder / f"{JOIN}.new"
        with partial.open("wb") as file:
            file.write(sealed.encode())
            file.flush()
            os.fsync(file.fileno())
        partial.replace(folder / f"{JOIN}.cred")
        sync_folder(folder)
        (folder / f"{SEED}.cred").unlink()
        sync_folder(folder)

"""Remote login, only when the cluster file names keys: authorized keys, this node's host key, and the service."""

from pathlib import Path

from kmagent.paths import Paths
from kmagent.programs import run_async
from kmplan.files import write, write_if_changed


def prepare(paths: Paths, keys: list[str]) -> None:
    """Write what sshd needs, or take the authorized keys away."""
    folder = paths.state / "ssh"
    authorized = folder / "authorized_keys"
    if not keys:
        authorized.unlink(missing_ok=True)
        return
    folder.mkdir(mode=0o700, exist_ok=True)
    write_if_changed(authorized, "".join(f"{key}\n" for key in keys), 0o600)
    _make_host_key(folder / "ssh_host_ed25519_key")


async def start() -> None:
    """Start the server; sshd reads the keys again at each login."""
    await run_async(["systemctl", "start", "--no-block", "ssh.service"], check=False)


def _make_host_key(path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    if path.exists():
        return
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    write(path.with_suffix(".pub"), public + b"\n")
    write(path, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()), 0o600)

"""`kmbuild init`: makes a cluster directory, everything that makes a cluster this cluster and no other."""

import base64
import json
import secrets
import shutil
import tempfile
from pathlib import Path

import click
import msgspec
import yaml

from kmplan import pki
from kmplan.addresses import random_prefix
from kmplan.cluster import CLUSTER_FILE, ClusterFile
from kmplan.document import convert
from kmplan.errors import UserError
from kmplan.files import sync_folder, write
from kmplan.secret_files import AUTHORITIES

ADMIN_DAYS = 365
BREAK_GLASS_DAYS = 3650
API_PORT = 6443
AUTOMATIC = "auto"

HEADER = """\
# The cluster file of {name}: what Kubermesh knows about your wishes. docs/cluster-file.md explains every key.
# This folder holds the cluster's keys: whoever has it owns the cluster. Keep it private, and keep a copy of it.
"""


@click.command("init")
@click.argument("directory", metavar="NAME", type=click.Path(path_type=Path))
@click.option("--prefix", help="The cluster's IPv6 prefix, a /48 in fd00::/8 (default: a random one).")
@click.option(
    "--voters",
    type=click.Choice([AUTOMATIC, "1", "3", "5"]),
    default=AUTOMATIC,
    show_default=True,
    help="Nodes that vote in etcd; auto: 3, and 5 from nine nodes on.",
)
@click.option(
    "--ssh-key",
    "ssh_keys",
    multiple=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Public key file that may log in as root on every node; may be given several times.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was made as JSON.")
def init(directory: Path, prefix: str | None, voters: str, ssh_keys: tuple[Path, ...], as_json: bool) -> None:
    """Make the cluster directory NAME: cluster file, authorities, keys and the admin's kubeconfig."""
    keys = [key for path in ssh_keys for key in read_public_keys(path)]
    name = directory.resolve().name
    data = {
        "version": 1,
        "name": name,
        "prefix": prefix or str(random_prefix()),
        "voters": AUTOMATIC if voters == AUTOMATIC else int(voters),
    }
    cluster = convert({**data, "ssh_authorized_keys": keys}, ClusterFile, "cluster file")
    create(directory, cluster)
    click.echo(json.dumps(summary(directory, cluster)) if as_json else describe(directory, cluster))


def create(directory: Path, cluster: ClusterFile) -> None:
    """Make the directory as a whole or not at all; UserError when it exists or cannot be made."""
    if directory.exists() or directory.is_symlink():
        raise UserError(f"{directory}: exists already", "choose another name, or move it away")
    if not directory.parent.is_dir():
        raise UserError(f"{directory.parent}: no such folder")
    temporary = None
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
        fill(temporary, cluster)
        # rename(2) replaces an empty folder: somebody else's, made meanwhile.
        temporary.rename(directory)
        sync_folder(directory.parent)
    except OSError as error:
        raise UserError(f"{directory}: cannot be made: {error.strerror}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def fill(directory: Path, cluster: ClusterFile) -> None:
    """Write a cluster's files into an empty folder."""
    (directory / "pki").mkdir(mode=0o700)
    files = {CLUSTER_FILE: cluster_yaml(cluster), **secret_files(cluster)}
    for name, content in files.items():
        write(directory / name, content, 0o600)


def cluster_yaml(cluster: ClusterFile) -> str:
    """Return the text of a new cluster file."""
    return HEADER.format(name=cluster.name) + yaml.safe_dump(msgspec.to_builtins(cluster), sort_keys=False)


def secret_files(cluster: ClusterFile) -> dict[str, str]:
    """Make every key and certificate of a cluster; names are relative to its directory."""
    authorities = {name: pki.create_authority(f"{cluster.name} {name}") for name in AUTHORITIES}
    private, public = pki.create_signing_key()
    root = authorities["cluster-ca"]
    admin = pki.issue(root, pki.Subject("admin", ("kubermesh:admins",)), ADMIN_DAYS)
    # Rights come from RBAC; this certificate has them without, for the day when RBAC itself is broken.
    break_glass = pki.issue(root, pki.Subject("break-glass", ("system:masters",)), BREAK_GLASS_DAYS)
    pairs = {**authorities, "break-glass": break_glass}
    return {
        **{f"pki/{name}.crt": pair.certificate for name, pair in pairs.items()},
        **{f"pki/{name}.key": pair.key for name, pair in pairs.items()},
        "pki/service-account.key": private,
        "pki/service-account.pub": public,
        "encryption.key": base64.b64encode(secrets.token_bytes(32)).decode() + "\n",
        "babel.key": secrets.token_hex(32) + "\n",
        "admin.kubeconfig": kubeconfig(cluster, root.certificate, admin),
    }


def kubeconfig(cluster: ClusterFile, authority: str, admin: pki.Pair) -> str:
    """Return the admin's kubeconfig: any healthy control-plane node answers at the anycast address."""
    server = f"https://[{cluster.plan.api}]:{API_PORT}"
    user = {"client-certificate-data": _base64(admin.certificate), "client-key-data": _base64(admin.key)}
    # JSON is YAML too, and kubectl takes an unquoted name such as `y` for a bool.
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": cluster.name,
                    "cluster": {"server": server, "certificate-authority-data": _base64(authority)},
                }
            ],
            "users": [{"name": f"{cluster.name}-admin", "user": user}],
            "contexts": [{"name": cluster.name, "context": {"cluster": cluster.name, "user": f"{cluster.name}-admin"}}],
            "current-context": cluster.name,
        },
        indent=1,
    )


def read_public_keys(path: Path) -> list[str]:
    """Read a file of public keys, one per line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if any("PRIVATE KEY" in line for line in lines):
        raise UserError(f"{path}: this is a private key", f"give {path}.pub")
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not keys:
        raise UserError(f"{path}: no public key in it")
    return keys


def summary(directory: Path, cluster: ClusterFile) -> dict[str, object]:
    """Return what was made, as plain data."""
    plan = cluster.plan
    return {
        "directory": str(directory.resolve()),
        "name": cluster.name,
        "prefix": cluster.prefix,
        "api": f"https://[{plan.api}]:{API_PORT}",
        "kubeconfig": str(directory.resolve() / "admin.kubeconfig"),
        "voters": cluster.voters,
        "ssh": bool(cluster.ssh_authorized_keys),
    }


def describe(directory: Path, cluster: ClusterFile) -> str:
    """Return what was made and what comes next, in words."""
    login = "with your key" if cluster.ssh_authorized_keys else "none (give a key with --ssh-key, or in the file)"
    return "\n".join(
        [
            f"Made {directory}/",
            f"  {CLUSTER_FILE:<18} prefix {cluster.prefix}, voters: {cluster.voters}, login: {login}",
            f"  {'admin.kubeconfig':<18} https://[{cluster.plan.api}]:{API_PORT}",
            f"  {'pki/':<18} authorities: {', '.join(AUTHORITIES)}; break-glass certificate",
            f"  {'*.key':<18} encryption at rest, mesh authentication",
            "",
            "Whoever has this folder owns the cluster: keep it private, and keep a copy.",
            f"Next: kmbuild cluster up one --cluster {directory}",
        ]
    )


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()

"""The way from the host to a cluster's API."""

import json
from pathlib import Path
from typing import Any

import yaml

from kmcluster.drivers import driver_of
from kmcluster.state import Cluster, Machine
from kmplan import files
from kmplan.errors import UserError

# A name that every API server's certificate has.
SERVER_NAME = "kubernetes"


def kubeconfig(cluster: Cluster) -> str:
    """The admin's kubeconfig, with the anycast address replaced by a port on this host that leads to an API server.

    Raises UserError when the cluster directory has no readable admin.kubeconfig.
    """
    path = cluster.directory / "admin.kubeconfig"
    try:
        config: dict[str, Any] = yaml.safe_load(path.read_text())
        entries = [entry["cluster"] for entry in config["clusters"]]
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a kubeconfig") from error
    port = api_machine(cluster).api_port
    for entry in entries:
        entry["server"] = f"https://127.0.0.1:{port}"
        entry["tls-server-name"] = SERVER_NAME
    # JSON is YAML too, and a cluster called `n` is no boolean in it.
    return json.dumps(config, indent=2) + "\n"


def api_machine(cluster: Cluster) -> Machine:
    """A machine that runs an API server: the first that is on and says that its own is ready; else a voter, or the seed."""
    driver = driver_of(cluster)
    machines = cluster.seed_first()
    said = [(machine, driver.read_status(machine) or {}) for machine in machines if driver.power(machine) == "on"]
    voters = [(machine, status) for machine, status in said if status.get("role") == "voter"]
    ready = [machine for machine, status in voters if status.get("conditions", {}).get("announced")]
    return next(iter([*ready, *(machine for machine, _ in voters)]), machines[0])


def kubectl(cluster: Cluster) -> tuple[list[str], dict[str, str]]:
    """The argv and the environment that run the image's own kubectl on the host.

    The multi-call binary acts by the name it is called by: a link of that name is kept in the cluster's folder.
    """
    link = cluster.folder / "kubectl"
    target = cluster.image.kubectl.resolve()
    if not target.exists():
        raise UserError(f"{target}: no such file", "`make image` builds it")
    if not link.is_symlink() or Path(link.readlink()) != target:
        link.unlink(missing_ok=True)
        link.symlink_to(target)
    config = cluster.folder / "kubeconfig"
    files.write(config, kubeconfig(cluster), 0o600)
    return [str(link)], {"KUBECONFIG": str(config)}

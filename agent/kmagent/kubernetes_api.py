"""The few calls of the Kubernetes API that the agent makes."""

import json
from typing import Any
from urllib.parse import quote

from kmagent.http import Client

MANAGER = "kubermesh"
PLURALS = {
    "ClusterRole": "clusterroles",
    "ClusterRoleBinding": "clusterrolebindings",
    "ConfigMap": "configmaps",
    "CustomResourceDefinition": "customresourcedefinitions",
    "DaemonSet": "daemonsets",
    "Node": "nodes",
    "Service": "services",
    "ServiceAccount": "serviceaccounts",
    "ValidatingAdmissionPolicy": "validatingadmissionpolicies",
    "ValidatingAdmissionPolicyBinding": "validatingadmissionpolicybindings",
}

Object = dict[str, Any]


class ApiError(OSError):
    """The API server refused a request."""


def path_of(item: Object) -> str:
    """Return the path of an object in the API."""
    version, kind = str(item["apiVersion"]), str(item["kind"])
    metadata = item["metadata"]
    prefix = f"/apis/{version}" if "/" in version else f"/api/{version}"
    namespace = f"/namespaces/{metadata['namespace']}" if "namespace" in metadata else ""
    return f"{prefix}{namespace}/{PLURALS[kind]}/{quote(metadata['name'])}"


async def apply(client: Client, item: Object) -> Object:
    """Create an object or bring it to what `item` says (server-side apply); the agent wins conflicts."""
    path = f"{path_of(item)}?fieldManager={MANAGER}&force=true"
    return await _call(client, "PATCH", path, item, "application/apply-patch+yaml")


async def merge(client: Client, path: str, patch: Object) -> Object:
    """Change some fields of an object that exists."""
    return await _call(client, "PATCH", f"{path}?fieldManager={MANAGER}", patch, "application/merge-patch+json")


async def get(client: Client, path: str) -> Object | None:
    """Read an object; None when there is none."""
    answer = await client.request("GET", path)
    return None if answer.status == 404 else _object("GET", path, answer.status, answer.body)


async def create(client: Client, path: str, item: Object) -> Object:
    """Create an object; `path` is that of its kind."""
    return await _call(client, "POST", f"{path}?fieldManager={MANAGER}", item, "application/json")


async def replace(client: Client, path: str, item: Object) -> Object:
    """Replace an object, or a part of it; refused when somebody changed it meanwhile."""
    return await _call(client, "PUT", f"{path}?fieldManager={MANAGER}", item, "application/json")


async def delete(client: Client, path: str) -> None:
    """Delete an object; none is no error."""
    answer = await client.request("DELETE", path)
    if answer.status != 404:
        _object("DELETE", path, answer.status, answer.body)


async def _call(client: Client, method: str, path: str, body: Object, content_type: str) -> Object:
    answer = await client.request(method, path, json.dumps(body).encode(), content_type)
    return _object(method, path, answer.status, answer.body)


def _object(method: str, path: str, status: int, body: bytes) -> Object:
    try:
        item: Object = json.loads(body)
    except ValueError:
        item = {}
    if status >= 300:
        raise ApiError(f"{method} {path.partition('?')[0]}: {status} {item.get('message', '')}")
    return item

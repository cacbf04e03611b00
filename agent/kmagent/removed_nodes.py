"""Names of removed nodes: while certificates live that name one, no kubelet makes a Node object of it.

A kubelet may make the Node object that its certificate names (Kubernetes documentation, Using Node Authorization); with one
it would be given pods, and with those their secrets.
"""

import json
from collections.abc import Set

from kmagent import kubernetes_api
from kmagent.http import Client
from kmagent.kubernetes_api import Object

VERSION = "admissionregistration.k8s.io/v1"
NAME = "removed-nodes.kubermesh.io"


def policy(names: Set[str]) -> list[Object]:
    """Return the ValidatingAdmissionPolicy that refuses Node objects of these names to kubelets, and its binding."""
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["nodes"]}
    refusal = {
        "expression": f"!(object.metadata.name in {json.dumps(sorted(names))})",
        "message": "this node was removed from the cluster",
        "reason": "Forbidden",
    }
    spec = {
        "failurePolicy": "Fail",
        "matchConstraints": {"resourceRules": [rule]},
        "matchConditions": [{"name": "kubelets", "expression": "'system:nodes' in request.userInfo.groups"}],
        "validations": [refusal],
    }
    binding = {"policyName": NAME, "validationActions": ["Deny"]}
    return [
        {"apiVersion": VERSION, "kind": kind, "metadata": {"name": NAME}, "spec": content}
        for kind, content in (("ValidatingAdmissionPolicy", spec), ("ValidatingAdmissionPolicyBinding", binding))
    ]


async def keep_out(client: Client, names: Set[str]) -> None:
    """Have the API refuse these names, and no others."""
    for item in policy(names):
        if names:
            await kubernetes_api.apply(client, item)
        else:
            await kubernetes_api.delete(client, kubernetes_api.path_of(item))

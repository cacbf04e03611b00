"""Carried into a machine: the hash of what its etcd holds, up to a revision.

`etcd_hash.py REVISION`: 0 is the newest. Prints {"revision", "hash"}; a learner is not asked, it would refuse.
"""

import json
import ssl
import sys
import urllib.request

PKI = "/run/kubermesh/pki/agent"
URL = "https://[::1]:2382/v3/maintenance/hashkv"


def main() -> None:
    """Ask the local member by its JSON gateway, and print it."""
    context = ssl.create_default_context(cafile=f"{PKI}/etcd-ca.crt")
    context.load_cert_chain(f"{PKI}/etcd-client.crt", f"{PKI}/etcd-client.key")
    body = json.dumps({"revision": sys.argv[1]}).encode()
    with urllib.request.urlopen(URL, body, 5, context=context) as answer:
        found = json.load(answer)
    print(json.dumps({"revision": int(found["hash_revision"]), "hash": found.get("hash", 0)}))


main()

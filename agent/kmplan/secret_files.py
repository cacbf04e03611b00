"""Names of a cluster's files, as in its directory and below /var/lib/kubermesh."""

AUTHORITIES = ("cluster-ca", "front-proxy-ca", "etcd-ca", "node-ca")

# Everything a control-plane node keeps. The admin's and the break-glass certificates stay with the user.
SECRET_FILES = (
    *(f"pki/{name}.{kind}" for name in AUTHORITIES for kind in ("crt", "key")),
    "pki/service-account.key",
    "pki/service-account.pub",
    "encryption.key",
    "babel.key",
)

# What every node keeps, and anyone may know.
PUBLIC_FILES = ("pki/cluster-ca.crt", "pki/node-ca.crt")

"""The mesh agent: one asyncio daemon per node.

`python3 -m kmagent` is the daemon. What needs heavy libraries (certificates, templates, schemas) runs in a short-lived
child, `python3 -m kmagent prepare`, so that the daemon starts quickly and stays small.
"""

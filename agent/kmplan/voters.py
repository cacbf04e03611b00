"""How many nodes vote in etcd."""

AUTO = 0
MANY_NODES = 9
# With more voters than this a standby is kept: another voter than the one that is lost can make it vote.
FEW_VOTERS = 2


def wanted_of(voters: int, nodes: int) -> int:
    """Return how many voters a cluster of so many nodes should have: what its file says, or by its size with AUTO."""
    if voters != AUTO:
        return voters
    return 5 if nodes >= MANY_NODES else 3


def voters_of(wanted: int, nodes: int) -> int:
    """Return how many voters there shall be: as many as wanted, as there can be, and an odd number."""
    most = max(1, min(wanted, nodes))
    return most if most % 2 else most - 1


def majority(voters: int) -> int:
    """Return how many of so many voters have to agree."""
    return voters // 2 + 1

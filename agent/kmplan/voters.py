"""How many nodes vote in etcd."""


def voters_of(wanted: int, nodes: int) -> int:
    """Return how many voters there shall be: as many as wanted, as there can be, and an odd number."""
    most = max(1, min(wanted, nodes))
    return most if most % 2 else most - 1

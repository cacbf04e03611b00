"""Fingerprints (SHA-256, hex) as people compare them."""

# 128 bits: what a console shows, and whoever approves a machine.
COMPARED_DIGITS = 32


def grouped(digits: str) -> str:
    """Return hex in groups of four."""
    return " ".join(digits[at : at + 4] for at in range(0, len(digits), 4))


def compared(fingerprint: str) -> str:
    """Return the part of a fingerprint that people compare."""
    return grouped(fingerprint[:COMPARED_DIGITS])

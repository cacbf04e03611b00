"""The reference page says what the code does."""

import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "reference.md"


def test_the_reference_page_is_what_the_code_gives() -> None:
    """In a process of its own: a click command remembers the help option of its first use."""
    argv = [sys.executable, "-m", "kmbuild.reference"]
    made = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert PAGE.read_text() == made, "run: python -m kmbuild.reference > docs/reference.md"

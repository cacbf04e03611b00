"""The reference page says what the code does."""

from pathlib import Path

from kmbuild.reference import page

PAGE = Path(__file__).parents[2] / "docs" / "reference.md"


def test_the_reference_page_is_what_the_code_gives() -> None:
    assert PAGE.read_text() == page(), "run: python -m kmbuild.reference > docs/reference.md"

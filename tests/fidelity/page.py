"""Tables in the documentation that tests make.

With ``FIDELITY_PAGE=rewrite`` in the environment a page gets the table that the tests have made;
without it they fail where the page has another.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ("compare_table",)


def compare_table(page: Path, begin: str, end: str, table: str) -> None:
    """Compare, or write, what stands between two marks of the page."""
    text = page.read_text()
    before, found, rest = text.partition(begin)
    _, ended, after = rest.partition(end)
    assert found, f"{page} has no {begin}"
    assert ended, f"{page} has no {end}"
    expected = f"{before}{begin}\n\n{table}\n\n{end}{after}"
    if os.environ.get("FIDELITY_PAGE") == "rewrite":
        page.write_text(expected)
    assert page.read_text() == expected, "FIDELITY_PAGE=rewrite brings the page up to date"

"""What the README says works: its code blocks, as a newcomer would type them in."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def blocks() -> dict[str, str]:
    """Code blocks by the file name in their first line."""
    found = re.findall(
        r"^```(?:python|toml)\n# (\S+)\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL
    )
    return dict(found)


def test_every_python_block_has_a_name() -> None:
    assert len(re.findall(r"^```(?:python|toml)$", README.read_text(), re.MULTILINE)) == len(
        blocks()
    )


def test_the_project_of_the_readme(pytester: pytest.Pytester) -> None:
    for name in ("shop.py", "pyproject.toml", "test_shop.py"):
        (pytester.path / name).write_text(blocks()[name])
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*sandbox: 2 tests isolated, * ms each (checkout *, check-in *"])


def test_the_script_of_the_readme(pytester: pytest.Pytester) -> None:
    (pytester.path / "by_hand.py").write_text(blocks()["by_hand.py"])
    result = pytester.runpython(pytester.path / "by_hand.py")
    assert result.ret == 0, result.stderr.str()


@pytest.mark.parametrize("page", ["README.md", "CHANGELOG.md"])
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert (ROOT / target).exists(), target


def test_the_tutorial(pytester: pytest.Pytester) -> None:
    text = (ROOT / "docs/tutorial/first-sandbox.md").read_text()
    files = re.findall(r'^```\w+ title="(\S+)"\n(.*?)^```', text, re.MULTILINE | re.DOTALL)
    assert [name for name, _ in files] == ["shop.py", "pyproject.toml", "test_shop.py"]
    for name, content in files:
        (pytester.path / name).write_text(content)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=3)

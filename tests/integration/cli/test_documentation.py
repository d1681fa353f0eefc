from __future__ import annotations

import re
from pathlib import Path

import pytest

from sandbox import errors

REFERENCE = Path(__file__).parents[3] / "docs" / "reference"


@pytest.fixture
def sections():
    page = (REFERENCE / "errors.md").read_text(encoding="utf-8")
    return re.findall(r"^## (\w+)$", page, re.MULTILINE)


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_leads_to_its_section(sections, name):
    assert name in sections
    if not issubclass(getattr(errors, name), Warning):
        said = str(getattr(errors, name)("something happened"))
        assert said.endswith(f"docs/reference/errors.md#{name.lower()}")


def test_no_section_is_of_an_error_that_is_gone(sections):
    assert sorted(sections) == sorted(errors.__all__)


@pytest.mark.parametrize("command", ["doctor", "up"])
def test_every_option_of_the_command_line_is_documented(cli, command):
    shown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", cli.run(command, "--help").stdout))
    page = (REFERENCE / "cli.md").read_text(encoding="utf-8")
    section = page.split(f"## sandbox {command}")[1].partition("\n## ")[0]
    assert shown - {"--help", "--start"} == set(re.findall(r"\| `(--[a-z-]+)", section))

"""Every error leads to the page that explains it."""

from __future__ import annotations

import inspect
import pickle
import re
from pathlib import Path

import pytest

from sandbox import errors
from sandbox.errors import ClockWarning, IsolationLevelWarning, SandboxError

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "errors.md"
ERRORS = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, SandboxError)
]
WARNINGS = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, Warning)
]


def sections() -> dict[str, str]:
    """The page's sections by anchor, as MkDocs and GitHub make it of a heading of one word."""
    parts = re.split(r"^## (.+)$", PAGE.read_text(), flags=re.MULTILINE)[1:]
    return {title.lower(): text for title, text in zip(parts[::2], parts[1::2], strict=True)}


def reference(text: str) -> tuple[str, str]:
    found = re.search(r"(docs/\S+\.md)#(\S+)$", text)
    assert found, "it names no page"
    return found[1], found[2]


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_names_its_section(error: type[SandboxError]) -> None:
    page, anchor = reference(str(error("What happened.")))
    assert ROOT / page == PAGE
    assert sections()[anchor].strip()


@pytest.mark.parametrize("error", ERRORS)
def test_a_section_says_what_to_do(error: type[SandboxError]) -> None:
    assert "**What to do.**" in sections()[error.__name__.lower()]


def test_warnings_have_their_section() -> None:
    assert {IsolationLevelWarning, ClockWarning} <= set(WARNINGS)
    for warning in WARNINGS:
        assert sections()[warning.__name__.lower()].strip()


def test_the_page_explains_nothing_that_is_gone() -> None:
    assert set(sections()) == {each.__name__.lower() for each in ERRORS + WARNINGS}


@pytest.mark.parametrize("error", ERRORS)
def test_one_class_catches_them_all(error: type[SandboxError]) -> None:
    with pytest.raises(SandboxError) as caught:
        raise error("What happened.")
    assert caught.value.message == "What happened."
    assert str(caught.value).startswith("What happened.\n")


@pytest.mark.parametrize("error", ERRORS)
def test_errors_survive_the_way_between_processes(error: type[SandboxError]) -> None:
    """As those of xdist's workers do."""
    copy = pickle.loads(pickle.dumps(error("What happened.")))
    assert type(copy) is error
    assert str(copy) == str(error("What happened."))


@pytest.mark.parametrize("error", ERRORS)
def test_what_an_error_is_stands_in_the_page(error: type[SandboxError]) -> None:
    """Those that are another kind of error as well can be caught as such."""
    for base in error.__bases__:
        if base not in {SandboxError, Exception}:
            assert f"`{base.__name__}`" in sections()[error.__name__.lower()]

"""The judge of the dialect suite's two runs is itself judged."""

from __future__ import annotations

import pytest

from tests.dialects.comparison import Case, Comparison
from tests.dialects.exceptions import EXCEPTIONS, Excuse

PASSED, SKIPPED = Case("passed"), Case("skipped")
FAILED = Case("failed", "E   BrokenError: it broke")
EXCUSE = Excuse("T::a", frozenset({"one"}), "BrokenError", "it cannot be")


def compare(plain: Case, became: Case | None, *excuses: Excuse) -> Comparison:
    other = {} if became is None else {"T::a": became}
    return Comparison.of("one", {"T::a": plain, "T::b": PASSED}, {**other, "T::b": PASSED}, excuses)


def test_what_passes_in_both_is_no_complaint() -> None:
    result = compare(PASSED, PASSED)
    assert (result.passed_plain, result.passed_sandboxed, result.complaints) == (2, 2, [])


def test_what_fails_plain_owes_nothing() -> None:
    assert compare(FAILED, FAILED).complaints == []


@pytest.mark.parametrize("became", [FAILED, SKIPPED, None])
def test_what_passes_plain_must_pass_sandboxed(became: Case | None) -> None:
    [complaint] = compare(PASSED, became).complaints
    assert complaint.startswith("T::a: passes plain")


def test_an_exception_is_excused_with_its_reason() -> None:
    result = compare(PASSED, FAILED, EXCUSE)
    assert (result.complaints, result.excused) == ([], ["T::a: it cannot be"])


def test_an_exception_that_passes_is_a_complaint() -> None:
    assert compare(PASSED, PASSED, EXCUSE).complaints == [
        "T::a: listed as an exception, but it passes"
    ]


def test_an_exception_that_fails_otherwise_is_a_complaint() -> None:
    [complaint] = compare(PASSED, Case("failed", "E   OtherError: no"), EXCUSE).complaints
    assert "OtherError" in complaint


@pytest.mark.parametrize("became", [SKIPPED, None])
def test_an_exception_does_not_excuse_what_does_not_run(became: Case | None) -> None:
    assert len(compare(PASSED, became, EXCUSE).complaints) == 1


def test_an_exception_of_what_does_not_pass_plain_is_a_complaint() -> None:
    [complaint] = compare(SKIPPED, SKIPPED, EXCUSE).complaints
    assert "does not pass plain" in complaint


def test_an_exception_is_for_its_drivers_only() -> None:
    excuse = Excuse("T::a", frozenset({"another"}), "BrokenError", "it cannot be")
    assert len(compare(PASSED, FAILED, excuse).complaints) == 1
    assert compare(PASSED, PASSED, excuse).complaints == []


def test_two_empty_runs_prove_nothing() -> None:
    assert Comparison.of("one", {}, {}, ()).complaints == ["nothing passed plain"]


def test_each_exception_says_why() -> None:
    assert all(excuse.reason and excuse.error for excuse in EXCEPTIONS)

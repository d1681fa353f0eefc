"""What one test has asked for, by markers, fixtures and settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from sandbox.errors import ConfigurationError
from sandbox.pytest_plugin.settings import ISOLATIONS, unconfigured_error

if TYPE_CHECKING:
    from sandbox.pytest_plugin.run import Run

__all__ = ("CHECKOUT_FIXTURE", "ENGINES_FIXTURE", "Options", "Plan", "plan_of")

ENGINES_FIXTURE = "sandbox_engines"
CHECKOUT_FIXTURE = "_sandbox_engines_checked_out"
_ASKING = frozenset({"sandboxed", "sandbox_connection", "sandbox_session", "sandbox_async_session"})
_PLAN: pytest.StashKey[Plan] = pytest.StashKey()
_CHECKOUT = ("isolation_level", "late_isolation", "nest_after", "busy_after", "lock_timeout")
_KNOWN = ("isolation", "shared", *_CHECKOUT)


@dataclass(frozen=True, slots=True)
class Options:
    """Of ``@pytest.mark.sandbox``, and below it of the settings."""

    shared: bool = False
    checkout: dict[str, Any] = field(default_factory=dict)
    """What is not as :func:`sandbox.checkout` has it by itself."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done for a test."""

    owned: bool = False
    """It has an owner."""
    run_database: bool = False
    """The run's database is checked out for it."""
    engines: bool = False
    """The engines of the user's own ``sandbox_engines`` are."""
    outside: bool = False
    """It reaches the real database (``no_sandbox``)."""
    options: Options = field(default_factory=Options)
    problem: str | None = None
    """Why it cannot run."""


def plan_of(item: pytest.Item, run: Run) -> Plan:
    """The plan; made once. Ends the run where a marker makes no sense."""
    plan = item.stash.get(_PLAN, None)
    if plan is None:
        try:
            plan = _make(item, run)
        except ConfigurationError as error:
            from sandbox.pytest_plugin.run import end_session

            end_session(item.config, error)
        item.stash[_PLAN] = plan
        if plan.engines:
            _request_checkout(item)
    return plan


def _request_checkout(item: Any) -> None:
    """Check the engines out before all other fixtures of the test's own, after wider ones.

    Those may build the schema, for real, while nobody is sandboxed.
    """
    names: list[str] = item.fixturenames
    if CHECKOUT_FIXTURE in names:
        return
    definitions = item._fixtureinfo.name2fixturedefs

    def outlives(name: str) -> bool:
        return name in definitions and definitions[name][-1].scope != "function"

    wider = [position for position, name in enumerate(names) if outlives(name)]
    names.insert(max(wider, default=-1) + 1, CHECKOUT_FIXTURE)


def _make(item: pytest.Item, run: Run) -> Plan:
    names = getattr(item, "fixturenames", ())
    asked = sorted(_ASKING.intersection(names))
    marks = [mark for mark in item.iter_markers() if mark.name in {"sandbox", "no_sandbox"}]
    options = _options(item, [mark for mark in marks if mark.name == "sandbox"], run)
    if marks and marks[0].name == "no_sandbox":
        problem = None
        if asked:
            problem = (
                f"{item.nodeid} asks for the fixture `{asked[0]}`, and is marked no_sandbox."
                " Take one of the two away."
            )
        return Plan(outside=True, problem=problem)
    wanted = bool(marks or asked or run.settings.autouse)
    engines = wanted and _engines_named(item)
    run_database = wanted and (run.settings.names_database or not engines)
    problem = None
    if run_database and not run.settings.configured:
        what = f"The fixture `{asked[0]}`" if asked else "The marker `sandbox`"
        problem = unconfigured_error(what).message
    owned = wanted or run.settings.configured or "sandbox_owner" in names
    return Plan(
        owned=owned, run_database=run_database, engines=engines, options=options, problem=problem
    )


def _engines_named(item: pytest.Item) -> bool:
    """Whether the user has a ``sandbox_engines`` of their own for this test."""
    if not hasattr(item, "fixturenames"):
        return False
    definitions = item.session._fixturemanager.getfixturedefs(ENGINES_FIXTURE, item)
    return definitions is not None and len(definitions) > 1


def _options(item: pytest.Item, marks: list[pytest.Mark], run: Run) -> Options:
    given: dict[str, Any] = {}
    for mark in reversed(marks):  # the closest one last: it wins
        unknown = [repr(each) for each in mark.args] + [k for k in mark.kwargs if k not in _KNOWN]
        if unknown:
            raise ConfigurationError(
                f"{item.nodeid}: @pytest.mark.sandbox does not know {', '.join(unknown)};"
                f" it takes {', '.join(f'{name}=' for name in _KNOWN)}."
            )
        given.update(mark.kwargs)
    isolation = given.pop("isolation", ISOLATIONS[0])
    if isolation not in ISOLATIONS:
        raise ConfigurationError(
            f"{item.nodeid}: @pytest.mark.sandbox(isolation={isolation!r}) is not known;"
            f" this version has {', '.join(map(repr, ISOLATIONS))}."
        )
    shared = bool(given.pop("shared", False))
    if given:
        from sandbox.connection.options import Options as CheckoutOptions

        try:
            CheckoutOptions.checked(**given)
        except ConfigurationError as error:
            raise ConfigurationError(
                f"{item.nodeid}: @pytest.mark.sandbox(…): {error.message}"
            ) from None
    return Options(shared, {**run.settings.checkout, **given})

"""Each test gets its owner and its sandbox, and gives them back.

Done in synchronous hooks around the whole test, not in a fixture: what the main context holds then
is seen by fixtures and tests of every kind, whichever event loop runs them.
"""

from __future__ import annotations

import sys
import time
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from sandbox.errors import OwnershipError, SandboxError
from sandbox.pytest_plugin import contexts
from sandbox.pytest_plugin.escapes import EscapeReport, take_escapes
from sandbox.pytest_plugin.plan import Plan, plan_of
from sandbox.pytest_plugin.report import Costs
from sandbox.pytest_plugin.waiting import WaitReport

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Hashable, Iterable, Iterator

    from sandbox.connection.sandbox import Sandbox
    from sandbox.core.owner import Owner
    from sandbox.pytest_plugin.run import Run

__all__ = ("HOOKS", "ItemHooks", "ItemState")

HOOKS: pytest.StashKey[ItemHooks] = pytest.StashKey()


@dataclass(slots=True)
class ItemState:
    """What one test has while it runs."""

    plan: Plan
    nodeid: str
    problem: str | None
    """Why it cannot run."""
    owner: Owner | None = None
    before: Owner | None = None
    """Who this was before: somebody, where a test runs pytest in its own process."""
    sandboxes: list[Sandbox] = field(default_factory=list)
    """Those that the plugin has checked out, in the order in which it did."""
    checkout: float = 0.0
    checkin: float = 0.0
    """Seconds that the two took."""
    after: list[Callable[[], None]] = field(default_factory=list)
    """To be called once everything is rolled back, when closing costs nothing any more."""


class ItemHooks:
    """Registered by ``pytest_configure``; ``costs``, ``waits`` and ``escapes`` are for the end."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.costs = Costs()
        self.waits = WaitReport()
        self.escapes = EscapeReport()
        self.state: ItemState | None = None
        self._held_before: weakref.WeakSet[Sandbox] = weakref.WeakSet()
        self._of_wider_fixtures: weakref.WeakSet[Sandbox] = weakref.WeakSet()

    # -- collection ------------------------------------------------------------------------------

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Read every test's markers, so that a wrong one ends the run before it starts."""
        for item in items:
            plan_of(item, self.run)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Migrate, unless no test will run."""
        option = session.config.option
        broken = session.testsfailed and not option.continue_on_collection_errors
        if not self.run.settings.configured or option.collectonly or broken:
            return
        if (self.run.settings.env and session.items) or any(
            plan_of(item, self.run).run_database for item in session.items
        ):
            self.run.ready()

    # -- a test ----------------------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, object, object]:
        """Before anything else of the test."""
        self._enter(item)
        return (yield)

    @pytest.hookimpl(specname="pytest_runtest_setup")
    def pytest_runtest_setup_refused(self) -> None:
        """Say what is wrong, from where the wrappers of other plugins have begun already."""
        if self.state is not None and self.state.problem is not None:
            pytest.fail(self.state.problem, pytrace=False)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, object, object]:
        """After everything else of the test."""
        try:
            result = yield
        except BaseException as error:
            for own in self._leave(item):
                error.add_note(_said(own))
            raise
        errors = self._leave(item)
        if errors:
            pytest.fail("\n".join(map(_said, errors)), pytrace=False)
        return result

    def finish(self) -> None:
        """After the last test."""
        self._look_for_escapes(None, None)
        self._heal(last=True)

    def _enter(self, item: pytest.Item) -> None:
        self._look_for_escapes(None, None)
        self._heal()
        plan = plan_of(item, self.run)
        state = self.state = ItemState(plan, item.nodeid, plan.problem)
        self._held_before = weakref.WeakSet(_held())
        if plan.outside:
            self.run.set_mode("auto")
            return
        if not plan.owned:
            return
        from sandbox.core.owner import Owner, current_owner, set_owner

        state.before = current_owner()
        state.owner = Owner(item.nodeid)
        set_owner(state.owner)
        contexts.enter_unittest(item, state.owner)
        if plan.run_database and plan.problem is None:
            self._check_out(state, *self.run.ready())

    def _check_out(self, state: ItemState, database: Hashable, name: str) -> None:
        from sandbox import _api
        from sandbox.connection.options import Options

        began = time.perf_counter()
        try:
            sandbox = _api.checkout_database(
                database,
                name,
                shared=state.plan.options.shared,
                options=Options.checked(**state.plan.options.checkout),
                owner=state.owner,
            )
        except SandboxError as error:
            state.problem = _said(error)
            return
        state.checkout += time.perf_counter() - began
        state.sandboxes.append(sandbox)

    def _leave(self, item: pytest.Item) -> list[SandboxError]:
        state, self.state = self.state, None
        if state is None:
            return []
        errors: list[SandboxError] = []
        try:
            if state.sandboxes:
                errors += self._check_in(state)
                stats = [sandbox.stats for sandbox in state.sandboxes]
                self.costs.add(state.nodeid, state.checkout, state.checkin, stats)
                self.waits.add(state.nodeid, stats)
            for close in state.after:
                close()
        finally:
            if state.owner is not None:
                from sandbox.core.owner import set_owner

                set_owner(state.before)
            if state.plan.outside:
                self.run.set_mode("manual")
            errors += self._check_in_forgotten(item)
            self._look_for_escapes(item, state)
        return errors

    def _look_for_escapes(self, item: pytest.Item | None, state: ItemState | None) -> None:
        """What the run's own database has lost is remembered until it is healed.

        Of others a warning is given; not where the test has checked in by itself, and so has had
        the error already.
        """
        engines = {sandbox.database for sandbox in state.sandboxes} if state is not None else set()
        warnings = []
        for escape in take_escapes():
            nodeid = item.nodeid if item is not None else escape.label
            if not self.run.note_escape(nodeid, escape) and escape.database in engines:
                self.escapes.add(nodeid, escape, "is not ours: what was written stays in it")
                warnings.append(
                    f"{nodeid} ended the transaction around it by {escape.how}. What it wrote to"
                    f" the {escape.name} stays there, and later tests see it: engines that"
                    f" sandbox_engines names are of a database that we cannot build anew."
                )
        if warnings and item is not None:
            item.warn(pytest.PytestWarning("\n".join(warnings)))

    def _heal(self, *, last: bool = False) -> None:
        if self.run.escaped is not None:
            nodeid, escape = self.run.escaped
            self.escapes.add(nodeid, escape, self.run.heal(last=last))

    def _check_in_forgotten(self, item: pytest.Item) -> list[SandboxError]:
        """What the test has checked out by itself and not checked in."""
        keep = set(self._held_before) | set(self._of_wider_fixtures)
        forgotten = [sandbox for sandbox in _held() if sandbox not in keep]
        if not forgotten:
            return []
        errors = _check_in(forgotten)
        names = ", ".join(sandbox.name for sandbox in forgotten)
        item.warn(
            pytest.PytestWarning(
                f"{item.nodeid} checked out {names} and did not check it in; it was rolled back."
                f" Use `with sandbox.sandboxed(engine):`, or addCleanup(sandbox.checkin, engine)."
            )
        )
        return errors

    def _check_in(self, state: ItemState) -> list[SandboxError]:
        began = time.perf_counter()
        errors = _check_in(state.sandboxes)
        state.checkin += time.perf_counter() - began
        return errors

    def check_out_engines(self, engines: Iterable[object]) -> Iterator[None]:
        """Check out for the running test what sandbox_engines has named, then check in.

        Between the test's own fixtures and those that outlive it: of the user's own database
        these make and drop the tables, for real.
        """
        state = self.state
        assert state is not None
        self._check_out_each(state, engines)
        yield
        errors = self._check_in(state)
        if errors:
            pytest.fail("\n".join(map(_said, errors)), pytrace=False)

    def _check_out_each(self, state: ItemState, engines: Iterable[object]) -> None:
        from sandbox import _api
        from sandbox.errors import AlreadyOwnerError

        for engine in engines:
            began = time.perf_counter()
            try:
                sandbox = _api.checkout(
                    engine,
                    shared=state.plan.options.shared,
                    owner=state.owner,
                    **state.plan.options.checkout,
                )
            except AlreadyOwnerError:
                continue  # another engine of the same database
            finally:
                state.checkout += time.perf_counter() - began
            state.sandboxes.append(sandbox)

    # -- who runs fixtures and coroutines ----------------------------------------------------------

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
    ) -> Generator[None, object, object]:
        """A fixture that outlives the test is set up as nobody; see contexts.as_nobody."""
        if self.state is None:
            return (yield)
        wider = fixturedef.scope != "function"
        if self.state.owner is None:
            return (yield from self._remember(wider))
        with contexts.acting(self, fixturedef, request, wider=wider):
            if not wider:
                return (yield)
            with contexts.as_nobody(fixturedef):
                try:
                    return (yield from self._remember(wider))
                except Exception as error:
                    if _is_about_ownership(error):
                        error.add_note(contexts.explain(fixturedef))
                    raise

    def _remember(self, wider: bool) -> Generator[None, object, object]:
        """Tell what a wider fixture checks out from what a test forgets."""
        if not wider:
            return (yield)
        before = set(_held())
        try:
            return (yield)
        finally:
            self._of_wider_fixtures.update(set(_held()) - before)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> Generator[None, object, object]:
        """A coroutine that anyio runs acts as the test's owner."""
        if self.state is None or self.state.owner is None:
            return (yield)
        with contexts.acting_test(self, pyfuncitem):
            return (yield)


def _held() -> list[Sandbox]:
    api = sys.modules.get("sandbox._api")
    return api._registry.held() if api is not None else []


def _check_in(sandboxes: Iterable[Sandbox]) -> list[SandboxError]:
    from sandbox import _api

    errors: list[SandboxError] = []
    for sandbox in sandboxes:
        if sandbox.closed:
            continue
        try:
            _api.checkin(sandbox)
        except SandboxError as error:
            errors.append(error)
    return errors


def _said(error: SandboxError) -> str:
    return f"{type(error).__name__}: {error}"


def _is_about_ownership(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OwnershipError):
            return True
        error = error.__cause__ or error.__context__
    return False

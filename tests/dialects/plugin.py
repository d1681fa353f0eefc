"""The pytest plugin of the suite's runs: what became of each case and, if asked, a sandbox.

Sandboxed, everything that the suite does from the set-up of a class or a test to the end of its
teardown happens in one sandbox: its tables, its commits, its reflections. A class whose tables are
made once for all of its tests has one, elsewhere each test has its own. Outside of a sandbox the
suite gets no connection at all (mode "manual"), and after each an eye from outside sees the
database as it was.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy.dialects.sqlite.provision  # noqa: F401 - ours comes after it
from sqlalchemy import event
from sqlalchemy.testing import asyncio as suite_asyncio
from sqlalchemy.testing import config
from sqlalchemy.testing.provision import post_configure_engine

import sandbox
from tests.dialects.outside import Outside

__all__ = ("Outcomes", "Sandboxing")

suite: Any = config
"""SQLAlchemy's, where the engine under test is ``db``."""


LOCK_TIMEOUT = 2
"""Seconds; nobody else uses the database, so that who waits for a lock waits in vain."""


@post_configure_engine.for_db("sqlite")
def _attach(url: Any, engine: Any, follower: Any) -> None:
    """As the suite does, but its files stay when an engine is disposed of."""
    del url, follower
    path = f"{engine.driver}_test_schema.db"

    @event.listens_for(engine, "connect")
    def connect(connection: Any, record: Any) -> None:
        connection.execute(f'ATTACH DATABASE "{path}" AS test_schema')


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("sandboxed suite")
    group.addoption("--sandboxed", action="store_true", help="run the suite in sandboxes")
    group.addoption("--outcomes", type=Path, required=False, help="where each case is reported")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--outcomes")
    if path is not None:
        config.pluginmanager.register(Outcomes(path))
    if config.getoption("--sandboxed"):
        config.pluginmanager.register(Sandboxing())


class Outcomes:
    """Writes one line of JSON for each case: what it is called, how it ended, why."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cases: dict[str, tuple[str, str]] = {}
        self._names: dict[str, str] = {}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        self._names.update((item.nodeid, _case(item)) for item in items)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = self._names[report.nodeid]
        before = self._cases.get(name, ("", ""))
        if report.failed:
            why = f"{before[1]}\n{report.longreprtext}".strip()
            self._cases[name] = ("failed", why)
        elif before[0] not in {"failed", "skipped"}:
            self._cases[name] = (report.outcome, "")

    def pytest_sessionfinish(self) -> None:
        with self._path.open("w") as lines:
            for name, (outcome, why) in sorted(self._cases.items()):
                line = {"case": name, "outcome": outcome, "why": why}
                lines.write(json.dumps(line) + "\n")


class Sandboxing:
    """Puts the suite's database in sandboxes."""

    def __init__(self) -> None:
        self._sandbox: sandbox.Sandbox | None = None
        self._outside: Outside | None = None
        self._before: set[tuple[str, ...]] = set()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        # Until here the suite has asked the database what it can do.
        self._outside = Outside(suite.db.url)
        self._before = self._outside.look()
        sandbox.mode(suite.db, "manual")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if self._sandbox is None:
            # Shared: an asynchronous suite runs each step in a task of its own.
            self._sandbox = sandbox.checkout(suite.db, shared=True, lock_timeout=LOCK_TIMEOUT)

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_call(self, item: pytest.Item) -> None:
        # The class's tables, committed.
        self._check_outside()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Iterator[None]:
        try:
            return (yield)
        finally:
            if not _goes_on(item, nextitem):
                taken, self._sandbox = self._sandbox, None
                suite_asyncio._maybe_async_provisioning(_checkin, taken)
                self._check_outside()

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        # The suite's own cleaning up finds nothing, but wants to look.
        if self._outside is not None:
            sandbox.mode(suite.db, "auto")
            self._check_outside()
            self._outside.close()

    def _check_outside(self) -> None:
        assert self._outside is not None
        now = self._outside.look()
        assert now == self._before, f"seen from outside: {sorted(now ^ self._before)}"


def _checkin(taken: sandbox.Sandbox) -> None:
    if suite.any_async:
        from sqlalchemy.util.concurrency import await_only

        await_only(sandbox.acheckin(taken))
    else:
        sandbox.checkin(taken)


def _goes_on(item: Any, following: Any) -> bool:
    """Whether the next test is in the same sandbox: one of a class that keeps its tables."""
    # Importing it makes pytest fixtures, by means that the session start sets up.
    from sqlalchemy.testing import fixtures

    return (
        following is not None
        and issubclass(item.cls, fixtures.TablesTest)
        and following.getparent(pytest.Class) is item.getparent(pytest.Class)
    )


def _case(item: Any) -> str:
    """``Class::test[parameters]``, without the database in the name of the class."""
    name = getattr(item.cls, "_sa_orig_cls_name", item.cls.__name__)
    return f"{name}::{item.name}"

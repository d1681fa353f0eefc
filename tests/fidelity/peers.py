"""The peers' columns, in a process of their own: ``python -m tests.fidelity.peers recipe <url>``.

What they leave behind (connections, aborted transactions, warnings) is not this run's. Prints the
outcomes as JSON, by the scenario's name.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import unittest
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import sqlalchemy as sa

from tests.fidelity.rows import Row
from tests.fidelity.scenarios import ROWS
from tests.fidelity.worlds import PATIENCE, Handle, Recipe, World, error_name, outcome_of


class DjangoHandle(Handle):
    """``atomic()`` on the connection of a thread: the main one's, or one of its own."""

    def __init__(self, automatic: bool, thread: ThreadPoolExecutor | None) -> None:
        self._automatic = automatic
        self._thread = thread
        self._atomic: Any = None

    def run(self, sql: str) -> list[Any]:
        return self._there(self._run, sql)

    def commit(self) -> None:
        self._there(self._end, None)

    def rollback(self) -> None:
        self._there(self._end, _RolledBack())

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.rollback()
        if self._thread is not None:
            self._thread.submit(_close_connections).result()
            self._thread.shutdown()

    def _there(self, work: Callable[..., Any], *arguments: Any) -> Any:
        if self._thread is None:
            return work(*arguments)
        return self._thread.submit(work, *arguments).result(20)

    def _run(self, sql: str) -> list[Any]:
        from django.db import connection, transaction

        if not self._automatic and self._atomic is None:
            self._atomic = transaction.atomic()
            self._atomic.__enter__()
        with connection.cursor() as cursor:
            cursor.execute(sql)
            return [row[0] for row in cursor.fetchall()] if cursor.description else []

    def _end(self, error: Exception | None) -> None:
        atomic, self._atomic = self._atomic, None
        if atomic is not None:
            atomic.__exit__(type(error) if error else None, error, None)


class _RolledBack(Exception):
    """What an application raises through ``atomic()`` to have it rolled back."""


def _close_connections() -> None:
    from django.db import connections

    connections.close_all()


class Django(World):
    """Django's TestCase; Django has one connection for each thread, so sessions beside the first
    have threads of their own, as they would in an application.
    """

    name = "Django TestCase"

    def __init__(self, url: str) -> None:
        self.url = url
        self._in_use = False

    def session(self) -> Handle:
        return self._handle(automatic=False)

    def automatic(self) -> Handle:
        return self._handle(automatic=True)

    def _handle(self, *, automatic: bool) -> Handle:
        if threading.current_thread() is not threading.main_thread():
            return DjangoHandle(automatic, None)
        if self._in_use:
            return DjangoHandle(automatic, ThreadPoolExecutor(1))
        world, self._in_use = self, True

        class First(DjangoHandle):
            def close(self) -> None:
                world._in_use = False
                super().close()

        return First(automatic, None)

    @contextlib.contextmanager
    def listener(self, channel: str) -> Iterator[Callable[[], list[str]]]:
        from django.db import connection

        thread = ThreadPoolExecutor(1)

        def listen() -> Any:
            with connection.cursor() as cursor:
                cursor.execute(f"LISTEN {channel}")
            return connection.connection

        driver = thread.submit(listen).result()
        try:
            yield lambda: [n.payload for n in driver.notifies(timeout=PATIENCE, stop_after=1)]
        finally:
            thread.submit(_close_connections).result()
            thread.shutdown()

    def thread_ends(self) -> None:
        _close_connections()


def _django_column(url: str) -> dict[str, str]:
    import django
    from django.conf import settings

    parsed = sa.make_url(url)
    settings.configure(
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.postgresql",
                "NAME": parsed.database,
                "USER": parsed.username,
                "HOST": parsed.query.get("host") or parsed.host,
                "PORT": parsed.query.get("port") or parsed.port,
            }
        },
        USE_TZ=True,
    )
    django.setup()
    from django.test import TestCase
    from django.test.utils import setup_test_environment

    setup_test_environment()

    class Scenarios(TestCase):  # type: ignore[misc]
        """The scenario of the row, inside of what TestCase puts around it."""

        row: Row
        world: Django
        outcome = "never ran"

        def runTest(self) -> None:
            try:
                type(self).outcome = self.row.scenario(self.world)
            except Exception as error:
                type(self).outcome = error_name(error)

    class TestOfDjango:
        """The isolation is the test case's, which runs whole."""

        name = Django.name

        def __init__(self) -> None:
            self.url = url

        @contextlib.contextmanager
        def test(self) -> Iterator[None]:
            yield

    def run(row: Row) -> Callable[[Any], str]:
        def scenario(_: Any) -> str:
            Scenarios.row, Scenarios.world = row, Django(url)
            result = _Result()
            unittest.TestSuite([Scenarios()]).run(result)
            _close_connections()
            ends = [f"{error_name(error)} at the test's end" for error in result.raised]
            return "; ".join([Scenarios.outcome, *ends])

        return scenario

    return {row.name: outcome_of(TestOfDjango(), run(row)) for row in ROWS}


class _Result(unittest.TestResult):
    """Keeps the errors themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.raised: list[BaseException] = []

    def addError(self, test: Any, err: Any) -> None:
        super().addError(test, err)
        self.raised.append(err[1])


def _recipe_column(url: str) -> dict[str, str]:
    found = {}
    for row in ROWS:
        world = Recipe(url)
        found[row.name] = outcome_of(world, row.scenario)
        world.close()
    return found


if __name__ == "__main__":
    column = {"recipe": _recipe_column, "django": _django_column}[sys.argv[1]](sys.argv[2])
    sys.stdout.write(json.dumps(column))
    sys.stdout.flush()
    # What a peer left behind need not be tidied up by the interpreter's exit.
    os._exit(0)

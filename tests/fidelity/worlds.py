"""The worlds in which a scenario runs: what an application would use in each to do the same.

A scenario opens sessions and says run, commit, rollback, as an application does. A world makes
them of what its users have: a ``Session`` of SQLAlchemy, or in Django's world ``atomic()`` on the
connection of the thread.
"""

from __future__ import annotations

import contextlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Self, TypeVar

import psycopg
import sqlalchemy as sa
from sqlalchemy.orm import Session

import sandbox
from sandbox.errors import SandboxError
from tests.fidelity import schema

T = TypeVar("T")

__all__ = ("Handle", "Ours", "Production", "Recipe", "World", "error_name", "outcome_of")

PATIENCE = 2.0


def error_name(error: BaseException) -> str:
    """The server's or the sandbox's error, whatever the library wrapped it in."""
    if isinstance(error, sa.exc.DBAPIError) and error.orig is not None:
        return type(error.orig).__name__
    if isinstance(error, SandboxError):
        return type(error).__name__
    if isinstance(error.__cause__, psycopg.Error):
        return type(error.__cause__).__name__
    return type(error).__name__


class Handle(ABC):
    """A session of the application."""

    @abstractmethod
    def run(self, sql: str) -> list[Any]:
        """The rows, each as its first column; begins a transaction where there is none."""

    @abstractmethod
    def commit(self) -> None: ...

    @abstractmethod
    def rollback(self) -> None: ...

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def fails(self, sql: str) -> str:
        """The name of the error that a statement raises, or nothing."""
        return attempt(lambda: self.run(sql))

    def names(self) -> list[str]:
        return [str(name) for name in self.run("SELECT name FROM items ORDER BY name")]


def attempt(work: Callable[[], Any]) -> str:
    """The name of the error that comes out, or nothing."""
    try:
        work()
    except Exception as error:
        return error_name(error)
    return ""


class World(ABC):
    """How an application gets its sessions, and what is around each of its tests."""

    name: str
    url: str

    @abstractmethod
    def session(self) -> Handle:
        """A session, beside those that are open."""

    @abstractmethod
    def automatic(self) -> Handle:
        """A connection that commits each statement by itself."""

    @abstractmethod
    @contextlib.contextmanager
    def listener(self, channel: str) -> Iterator[Callable[[], list[str]]]:
        """A connection of the application that listens; gives what it has heard."""
        yield list

    def in_thread(self, work: Callable[[], T]) -> T:
        """Run in a thread, as a worker of the application would, and wait for it."""
        results: list[T] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                results.append(work())
            except BaseException as error:
                errors.append(error)
            finally:
                self.thread_ends()

        thread = threading.Thread(target=run, name="worker", daemon=True)
        thread.start()
        thread.join(20)
        assert not thread.is_alive(), "the thread waits for ever"
        if errors:
            raise errors[0]
        return results[0]

    def thread_ends(self) -> None:
        """A thread that has used sessions is about to end."""
        return

    def outside(self, sql: str) -> list[Any]:
        """What a connection sees that has nothing to do with the test."""
        with psycopg.connect(self.url) as connection:
            return [row[0] for row in connection.execute(sql)]


class _SessionHandle(Handle):
    def __init__(self, session: Session) -> None:
        self._session = session

    def run(self, sql: str) -> list[Any]:
        return _rows(self._session.connection().exec_driver_sql(sql))

    def commit(self) -> None:
        self._session.commit()

    def rollback(self) -> None:
        self._session.rollback()

    def close(self) -> None:
        self._session.close()


class _AutomaticHandle(Handle):
    def __init__(self, engine: sa.Engine) -> None:
        self._connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")

    def run(self, sql: str) -> list[Any]:
        return _rows(self._connection.exec_driver_sql(sql))

    def commit(self) -> None:
        return

    def rollback(self) -> None:
        return

    def close(self) -> None:
        self._connection.close()


def _rows(result: sa.CursorResult[Any]) -> list[Any]:
    return [row[0] for row in result] if result.returns_rows else []


class _SQLAlchemyWorld(World):
    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = sa.create_engine(
            sa.make_url(url).set(drivername="postgresql+psycopg"), pool_size=5
        )

    def session(self) -> Handle:
        return _SessionHandle(Session(self.engine))

    def automatic(self) -> Handle:
        return _AutomaticHandle(self.engine)

    @contextlib.contextmanager
    def listener(self, channel: str) -> Iterator[Callable[[], list[str]]]:
        raw = self.engine.raw_connection()
        driver: Any = raw.driver_connection
        driver.autocommit = True
        driver.cursor().execute(f"LISTEN {channel}")
        try:
            yield lambda: [n.payload for n in driver.notifies(timeout=PATIENCE, stop_after=1)]
        finally:
            raw.invalidate()

    def close(self) -> None:
        self.engine.dispose()


class Production(_SQLAlchemyWorld):
    """No test at all: real commits."""

    name = "production"

    @contextlib.contextmanager
    def test(self) -> Iterator[None]:
        yield


class Ours(_SQLAlchemyWorld):
    """A sandbox."""

    name = "sandbox"

    @contextlib.contextmanager
    def test(self) -> Iterator[None]:
        with sandbox.sandboxed(self.engine, nest_after=0.05, busy_after=0.5) as box:
            sandbox.allow(box, "worker*")
            yield


class Recipe(_SQLAlchemyWorld):
    """SQLAlchemy's "Joining a Session into an External Transaction": every session of the
    application, as well as can be, is bound to the test's connection.
    """

    name = "SQLAlchemy recipe"
    _connection: sa.Connection

    def session(self) -> Handle:
        return _SessionHandle(
            Session(bind=self._connection, join_transaction_mode="create_savepoint")
        )

    @contextlib.contextmanager
    def test(self) -> Iterator[None]:
        self._connection = self.engine.connect()
        transaction = self._connection.begin()
        try:
            yield
        finally:
            with contextlib.suppress(Exception):
                transaction.rollback()
            self._connection.close()


def outcome_of(world: Any, scenario: Callable[[World], str]) -> str:
    """Run a scenario as one test of a world: what it tells, and whether anything was left."""
    outcome = "never ran"
    try:
        with world.test():
            try:
                outcome = scenario(world)
            except Exception as error:
                outcome = error_name(error)
    except Exception as error:
        # The isolation itself has something to say at the test's end.
        outcome = f"{outcome}; {error_name(error)} at the test's end"
    if world.name != Production.name and schema.left_behind(world.url):
        outcome = f"{outcome}; LEAK"
    schema.clean(world.url)
    return outcome

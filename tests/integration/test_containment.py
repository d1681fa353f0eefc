"""Everyday code of an application that knows nothing of tests: nothing of it escapes.

Each behaviour runs under the sandbox and under SQLAlchemy's documented recipe ("Joining a Session
into an External Transaction"), applied as well as it can be: the application's session makers are
bound to the test's connection. The table in README.md is what these runs gave.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session, sessionmaker

import sandbox
from sandbox.databases.backends import EmbeddedPostgres
from tests.fix_db import items, metadata

README = Path(__file__).parents[2] / "README.md"


class Application:
    """A module-level engine, a session maker, and their asynchronous twins."""

    def __init__(self, url: str) -> None:
        self.url = sa.make_url(url)
        self.engine = sa.create_engine(self.url.set(drivername="postgresql+psycopg"))
        self.Session = sessionmaker(self.engine)
        self.async_engine = create_async_engine(self.url.set(drivername="postgresql+asyncpg"))
        self.AsyncSession = async_sessionmaker(self.async_engine)

    def committed(self) -> list[str]:
        """What somebody else sees."""
        import psycopg

        url = self.url.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(url) as connection:
            return [name for (name,) in connection.execute("SELECT name FROM items ORDER BY name")]

    def clean(self) -> None:
        import psycopg

        url = self.url.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(url) as connection:
            connection.execute("DELETE FROM items")


def insert(name: str) -> sa.Insert:
    return sa.insert(items).values(name=name)


SELECT = sa.select(items.c.name).order_by(items.c.name)

# -- the behaviours: each returns what the application sees, and what it should see -----------


def session_commit(app: Application) -> tuple[Any, Any]:
    with app.Session() as session:
        session.execute(insert("a"))
        session.commit()
        return session.scalars(SELECT).all(), ["a"]


def sessionmaker_begin(app: Application) -> tuple[Any, Any]:
    with app.Session.begin() as session:
        session.execute(insert("a"))
    with app.Session() as session:
        return session.scalars(SELECT).all(), ["a"]


def engine_begin(app: Application) -> tuple[Any, Any]:
    with app.engine.begin() as connection:
        connection.execute(insert("a"))
    with app.engine.connect() as connection:
        return connection.scalars(SELECT).all(), ["a"]


def connect_commit(app: Application) -> tuple[Any, Any]:
    with app.engine.connect() as connection:
        connection.execute(insert("a"))
        connection.commit()
        return connection.scalars(SELECT).all(), ["a"]


def raw_commit(app: Application) -> tuple[Any, Any]:
    raw = app.engine.raw_connection()
    with contextlib.closing(raw):
        raw.cursor().execute("INSERT INTO items (name) VALUES ('a')")
        raw.commit()
        cursor = raw.cursor()
        cursor.execute("SELECT name FROM items")
        return cursor.fetchall(), [("a",)]


def autocommit(app: Application) -> tuple[Any, Any]:
    with app.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(insert("a"))
        return connection.scalars(SELECT).all(), ["a"]


def one_thread(app: Application) -> tuple[Any, Any]:
    def work() -> None:
        with app.Session() as session:
            session.execute(insert("a"))
            session.commit()

    in_threads([work])
    with app.Session() as session:
        return session.scalars(SELECT).all(), ["a"]


def four_threads(app: Application) -> tuple[Any, Any]:
    def work(number: int) -> None:
        for step in range(10):
            with app.Session() as session:
                session.execute(insert(f"{number}-{step}"))
                session.commit()

    in_threads([functools.partial(work, number) for number in range(4)])
    with app.Session() as session:
        return len(session.scalars(SELECT).all()), 40


def rollback_keeps_the_commit(app: Application) -> tuple[Any, Any]:
    with app.Session() as session:
        session.execute(insert("a"))
        session.commit()
        session.execute(insert("b"))
        session.flush()
        session.rollback()
        return session.scalars(SELECT).all(), ["a"]


def integrity_error(app: Application) -> tuple[Any, Any]:
    with app.Session() as session:
        session.execute(insert("a"))
        session.commit()
        with contextlib.suppress(sa.exc.IntegrityError):
            session.execute(insert("a"))
        session.rollback()
        session.execute(insert("b"))
        session.commit()
        return session.scalars(SELECT).all(), ["a", "b"]


async def async_session_commit(app: Application) -> tuple[Any, Any]:
    async with app.AsyncSession() as session:
        await session.execute(insert("a"))
        await session.commit()
        return (await session.scalars(SELECT)).all(), ["a"]


async def async_engine_begin(app: Application) -> tuple[Any, Any]:
    async with app.async_engine.begin() as connection:
        await connection.execute(insert("a"))
    async with app.async_engine.connect() as connection:
        return (await connection.scalars(SELECT)).all(), ["a"]


async def async_raw_connection(app: Application) -> tuple[Any, Any]:
    raw = await app.async_engine.raw_connection()
    driver: Any = raw.driver_connection
    await driver.execute("INSERT INTO items (name) VALUES ('a')")
    rows = await driver.fetch("SELECT name FROM items")
    await asyncio.to_thread(lambda: None)
    async with app.async_engine.connect():
        pass
    await _close(raw)
    return [row["name"] for row in rows], ["a"]


async def _close(raw: Any) -> None:
    from sqlalchemy.util.concurrency import greenlet_spawn

    await greenlet_spawn(raw.close)


async def gather(app: Application) -> tuple[Any, Any]:
    async def work(number: int) -> None:
        for step in range(10):
            async with app.AsyncSession() as session:
                await session.execute(insert(f"{number}-{step}"))
                await session.commit()

    await asyncio.gather(*(work(number) for number in range(4)))
    async with app.AsyncSession() as session:
        return len((await session.scalars(SELECT)).all()), 40


async def to_thread(app: Application) -> tuple[Any, Any]:
    def work() -> list[str]:
        with app.Session() as session:
            session.execute(insert("a"))
            session.commit()
            return list(session.scalars(SELECT).all())

    return await asyncio.to_thread(work), ["a"]


def own_loop(app: Application) -> tuple[Any, Any]:
    async def write(name: str) -> None:
        async with app.AsyncSession() as session:
            await session.execute(insert(name))
            await session.commit()

    async def read() -> list[str]:
        async with app.AsyncSession() as session:
            return list((await session.scalars(SELECT)).all())

    asyncio.run(write("a"))
    asyncio.run(write("b"))
    return asyncio.run(read()), ["a", "b"]


def in_threads(jobs: list[Callable[[], None]]) -> None:
    """Threads as an application starts them; what they raise is raised here."""
    errors: list[BaseException] = []

    def guarded(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(job,), name="worker") for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    if errors:
        raise errors[0]


@dataclass(frozen=True)
class Row:
    title: str
    behaviour: Callable[[Application], Any]


ROWS = (
    Row("`Session`: add, commit", session_commit),
    Row("`sessionmaker.begin()`", sessionmaker_begin),
    Row("`engine.begin()`", engine_begin),
    Row("`engine.connect()`, `commit()`", connect_commit),
    Row("`engine.raw_connection()`, `commit()`", raw_commit),
    Row("AUTOCOMMIT connection", autocommit),
    Row("commit in a thread", one_thread),
    Row("4 threads, 10 commits each", four_threads),
    Row("commit, flush, rollback keeps the commit", rollback_keeps_the_commit),
    Row("IntegrityError, rollback, go on", integrity_error),
    Row("`AsyncSession` commit", async_session_commit),
    Row("`AsyncEngine.begin()`", async_engine_begin),
    Row("asyncpg's own connection, `execute()`", async_raw_connection),
    Row("`asyncio.gather` of 4 x 10 commits", gather),
    Row("sync session in `asyncio.to_thread`", to_thread),
    Row("event loops of its own, `asyncio.run` thrice", own_loop),
)


@pytest.fixture(scope="module")
def url(server: EmbeddedPostgres) -> str:
    server.create_database("test_containment")
    url = server.url("test_containment", "postgresql+psycopg")
    engine = sa.create_engine(url)
    metadata.create_all(engine)
    engine.dispose()
    return url


@pytest.fixture
def application(url: str) -> Iterator[Application]:
    app = Application(url)
    yield app
    app.engine.dispose()
    asyncio.run(app.async_engine.dispose())
    sandbox.stop()
    app.clean()


def run(app: Application, row: Row) -> tuple[Any, Any]:
    if asyncio.iscoroutinefunction(row.behaviour):
        result: tuple[Any, Any] = asyncio.run(row.behaviour(app))
        return result
    seen: tuple[Any, Any] = row.behaviour(app)
    return seen


def under_sandbox(app: Application, row: Row) -> str:
    with sandbox.sandboxed(app.engine) as ours:
        sandbox.allow(ours, "worker*")
        return outcome(app, row)


def under_recipe(app: Application, row: Row) -> str:
    if asyncio.iscoroutinefunction(row.behaviour):
        return asyncio.run(_under_async_recipe(app, row))
    connection = app.engine.connect()
    transaction = connection.begin()
    app.Session.configure(bind=connection, join_transaction_mode="create_savepoint")
    try:
        return outcome(app, row)
    finally:
        with contextlib.suppress(Exception):
            transaction.rollback()
        connection.close()


async def _under_async_recipe(app: Application, row: Row) -> str:
    connection = await app.async_engine.connect()
    transaction = await connection.begin()
    app.AsyncSession.configure(bind=connection, join_transaction_mode="create_savepoint")
    try:
        try:
            seen, expected = await row.behaviour(app)
        except Exception as error:
            return await asyncio.to_thread(_verdict, app, error, None, None)
        return await asyncio.to_thread(_verdict, app, None, seen, expected)
    finally:
        with contextlib.suppress(Exception):
            await transaction.rollback()
        with contextlib.suppress(Exception):
            await connection.close()
        await app.async_engine.dispose()


def outcome(app: Application, row: Row) -> str:
    try:
        seen, expected = run(app, row)
    except Exception as error:
        return _verdict(app, error, None, None)
    return _verdict(app, None, seen, expected)


def _verdict(app: Application, error: Exception | None, seen: Any, expected: Any) -> str:
    verdict = "ok"
    if error is not None:
        verdict = "error"
    elif list(seen) != expected if isinstance(expected, list) else seen != expected:
        verdict = "WRONG"
    if app.committed():
        verdict = "LEAK" if verdict == "ok" else f"{verdict}, LEAK"
    return verdict


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.behaviour.__name__)
def test_contained_with_unchanged_code(application: Application, row: Row) -> None:
    assert under_sandbox(application, row) == "ok"
    assert application.committed() == []


def test_the_table_in_the_readme_is_what_the_runs_gave(url: str) -> None:
    # The recipe's leaks leave connections and coroutines lying about, which would be reported as
    # this process's: it has one of its own.
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", __name__, url],
        capture_output=True,
        text=True,
        check=True,
        cwd=README.parent,
    )
    recipe = json.loads(ran.stdout)
    lines = ["| behaviour | SQLAlchemy recipe | sandbox |", "| --- | --- | --- |"]
    for row in ROWS:
        app = Application(url)
        ours = under_sandbox(app, row)
        app.engine.dispose()
        asyncio.run(app.async_engine.dispose())
        lines.append(f"| {row.title} | {recipe[row.title]} | {ours} |")
    sandbox.stop()
    table = "\n".join(lines)
    assert table in README.read_text(), f"README.md should say:\n\n{table}"


def test_two_drivers_on_one_database_do_not_see_each_others_work(application: Application) -> None:
    """A limit: asyncpg and psycopg cannot share one real connection, so each has its own."""

    async def use(engine: AsyncEngine) -> list[str]:
        async with AsyncSession(engine) as session:
            await session.execute(insert("a"))
            await session.commit()
            return list((await session.scalars(SELECT)).all())

    with sandbox.sandboxed(application.async_engine):
        assert asyncio.run(use(application.async_engine)) == ["a"]
        with Session(application.engine) as session:
            assert session.scalars(SELECT).all() == []


def _recipe_column(url: str) -> dict[str, str]:
    results = {}
    for row in ROWS:
        app = Application(url)
        results[row.title] = under_recipe(app, row)
        app.engine.dispose()
        app.clean()
    return results


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_recipe_column(sys.argv[1])))
    sys.stdout.flush()
    # What the recipe left behind need not be tidied up by the interpreter's exit.
    os._exit(0)

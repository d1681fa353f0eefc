"""Waiting for one another inside a sandbox: counted, told with both stacks, and never for ever."""

from __future__ import annotations

import asyncio
import contextvars
import re
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.util.concurrency import greenlet_spawn

import sandbox
from sandbox.core.owner import run_as, set_owner
from sandbox.errors import InterleavedTransactionError, SandboxBusyError
from tests.fix_db import App, items

# SQLAlchemy's, for connections whose end was refused or interrupted.
pytestmark = pytest.mark.filterwarnings("ignore:The garbage collector is trying to clean up")

INSERT = sa.insert(items)


@pytest.fixture
def engine(make_app: Callable[[str], App]) -> sa.Engine:
    return make_app("psycopg").make_engine()


def places(text: str, heading: str) -> list[str]:
    """The functions of the frames listed under a heading, the innermost first."""
    found = re.search(rf"{heading}\n((?:    .*\n?)+)", text)
    assert found is not None, text
    return re.findall(r"test_waiting\.py:\d+ \((\w+)\)", found[1])


class Other:
    """Another thread of the same sandbox that begins a transaction, writes, and is told to end."""

    def __init__(self, engine: sa.Engine, owner: sandbox.Owner, name: str) -> None:
        self._engine, self._owner, self._name = engine, owner, name
        self._begun, self._end = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with run_as(self._owner), self._engine.begin() as connection:
            connection.execute(INSERT, {"name": self._name})
            self.stands_here()

    def stands_here(self) -> None:
        self._begun.set()
        self._end.wait(20)

    def __enter__(self) -> Other:
        self._thread.start()
        assert self._begun.wait(20)
        return self

    def __exit__(self, *exc: object) -> None:
        self._end.set()
        self._thread.join(20)


def test_the_error_shows_both_stacks_of_threads(engine: sa.Engine) -> None:
    with sandbox.sandboxed(engine, nest_after=0, busy_after=0.01) as ours:
        outer = engine.connect()
        outer.execute(INSERT, {"name": "outer"})

        def goes_on() -> None:
            outer.execute(INSERT, {"name": "again"})

        with Other(engine, ours.owner, "inner"):
            with pytest.raises(SandboxBusyError) as caught:
                goes_on()
            text = str(caught.value)
        outer.close()
    here = "test_the_error_shows_both_stacks_of_threads"
    assert places(text, "The one that waits is at") == ["goes_on", here]
    assert places(text, "its transaction began at") == [here]
    assert places(text, "The one it waits for began at") == ["_run"]
    assert places(text, "is now at") == ["stands_here", "_run"]
    assert text.index("is now at") < text.index("Commit or roll back the inner one first")


def test_the_error_shows_both_stacks_of_tasks(make_app: Callable[[str], App]) -> None:
    engine = AsyncEngine(make_app("asyncpg").make_engine())

    async def inner(begun: asyncio.Event, end: asyncio.Event) -> None:
        async with AsyncSession(engine) as session:
            await session.execute(INSERT, {"name": "inner"})
            begun.set()
            await stands_here(end)
            await session.commit()

    async def stands_here(end: asyncio.Event) -> None:
        await end.wait()

    async def main() -> str:
        begun, end = asyncio.Event(), asyncio.Event()
        async with sandbox.sandboxed(engine, busy_after=0.01):
            async with AsyncSession(engine) as session:
                await session.execute(INSERT, {"name": "outer"})
                task = asyncio.create_task(inner(begun, end))
                await begun.wait()
                with pytest.raises(SandboxBusyError) as caught:
                    await session.execute(INSERT, {"name": "again"})
                end.set()
                await task
        await engine.dispose()
        return str(caught.value)

    text = asyncio.run(main())
    assert places(text, "The one that waits is at") == ["main"]
    assert places(text, "The one it waits for began at") == ["inner"]
    assert places(text, "is now at") == ["stands_here", "inner"]


def test_the_holder_of_a_running_statement_is_shown_inside_it(
    make_app: Callable[[str], App],
) -> None:
    """A synchronous function in a greenlet, whose task waits for the server."""
    app = make_app("psycopg_async")
    engine = AsyncEngine(app.make_engine())

    def sleeps(connection: sa.Connection) -> None:
        connection.execute(sa.text("SELECT pg_sleep(20)"))

    async def slow() -> None:
        async with engine.connect() as connection:
            await connection.run_sync(sleeps)

    async def main() -> str:
        async with sandbox.sandboxed(engine, busy_after=0.05) as ours:
            task = asyncio.create_task(slow())
            while ours.stats.statements == 0:
                await asyncio.sleep(0)
            with pytest.raises(SandboxBusyError) as caught:
                async with engine.connect() as connection:
                    await connection.execute(sa.select(items))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await engine.dispose()
        return str(caught.value)

    text = asyncio.run(main())
    assert "is still running" in text
    assert places(text, "is now at") == ["sleeps", "slow"]


def test_a_holder_whose_thread_has_ended_is_said_to_be_gone(engine: sa.Engine) -> None:
    kept: list[Any] = []

    def begins(owner: sandbox.Owner) -> None:
        with run_as(owner):
            connection = engine.connect()
            connection.execute(INSERT, {"name": "inner"})
            kept.append(connection)

    with sandbox.sandboxed(engine, nest_after=0, busy_after=0.01) as ours:
        outer = engine.connect()
        outer.execute(INSERT, {"name": "outer"})
        thread = threading.Thread(target=begins, args=[ours.owner])
        thread.start()
        thread.join()
        with pytest.raises(SandboxBusyError, match="its thread or task is over"):
            outer.execute(INSERT, {"name": "again"})
        kept.pop().close()
        outer.close()


def test_a_rollback_over_anothers_commit_tells_where_both_began(engine: sa.Engine) -> None:
    def outer_begins() -> sa.Connection:
        connection = engine.connect()
        connection.execute(INSERT, {"name": "outer"})
        return connection

    def inner_commits() -> None:
        with engine.begin() as connection:
            connection.execute(INSERT, {"name": "inner"})

    with sandbox.sandboxed(engine):
        outer = outer_begins()
        inner_commits()
        outer.rollback()
        with pytest.raises(InterleavedTransactionError) as caught:
            inner_commits()
        outer.close()
    text = str(caught.value)
    here = "test_a_rollback_over_anothers_commit_tells_where_both_began"
    assert places(text, "The one that rolled back began at") == ["outer_begins", here]
    assert places(text, "The one that was undone began at") == ["inner_commits", here]


def test_a_wait_is_counted_and_remembered_with_both_places(engine: sa.Engine) -> None:
    with sandbox.sandboxed(engine, nest_after=0.05) as ours:
        with Other(engine, ours.owner, "a"), engine.begin() as connection:
            connection.execute(INSERT, {"name": "b"})
        stats = ours.stats
    assert stats.waits == 1
    assert stats.waited >= 0.05
    (wait,) = stats.longest
    assert 0.05 <= wait.seconds == pytest.approx(stats.waited)
    assert re.search(r"test_waiting\.py:\d+ \(test_a_wait_is_counted", wait.waiter)
    assert re.search(r"test_waiting\.py:\d+ \(_run\)$", wait.holder)


def test_a_wait_for_a_running_statement_is_one_too(engine: sa.Engine) -> None:
    """The mutex: a read waits for nobody's transaction, but for the statement under way."""
    with sandbox.sandboxed(engine) as ours:

        def slow() -> None:
            with run_as(ours.owner), engine.connect() as connection:
                connection.execute(sa.text("SELECT pg_sleep(0.1)"))

        thread = threading.Thread(target=slow)
        thread.start()
        while ours.stats.statements == 0:
            pass
        with engine.connect() as connection:
            connection.execute(sa.select(items))
        thread.join()
        wait = ours.stats.longest[0]
    assert ours.stats.waits > 0
    assert re.search(r"test_waiting\.py:\d+ \(slow\)$", wait.holder)


def test_a_wait_that_is_given_up_counts(make_app: Callable[[str], App]) -> None:
    engine = AsyncEngine(make_app("asyncpg").make_engine())

    async def insert(name: str) -> None:
        async with engine.begin() as connection:
            await connection.execute(INSERT, {"name": name})

    async def main() -> sandbox.Stats:
        async with sandbox.sandboxed(engine, nest_after=60) as ours:
            async with AsyncSession(engine) as session:
                await session.execute(INSERT, {"name": "a"})
                # A context without ours: a sibling, which does not nest at once.
                context = contextvars.Context()
                context.run(set_owner, ours.owner)
                waiter = asyncio.create_task(insert("b"), context=context)
                while ours.stats.waits == 0:
                    await asyncio.sleep(0)
                waiter.cancel()
                await asyncio.gather(waiter, return_exceptions=True)
        await engine.dispose()
        return ours.stats

    stats = asyncio.run(main())
    assert stats.waits == 1
    assert stats.waited > 0


def test_only_the_longest_waits_are_kept() -> None:
    from sandbox.connection.waits import KEPT, Stats, Wait

    stats = Stats()
    for number in range(100):
        seconds = (number * 37 % 100) / 10
        stats.begin_wait()
        stats.end_wait(seconds, partial(Wait, seconds, "here", "there"))
    assert stats.waits == 100
    assert stats.waited == pytest.approx(sum(range(100)) / 10)
    assert [wait.seconds for wait in stats.longest] == [n / 10 for n in range(99, 99 - KEPT, -1)]


def test_no_time_to_wait_is_none(engine: sa.Engine) -> None:
    with sandbox.sandboxed(engine, nest_after=0) as ours:
        with Other(engine, ours.owner, "a"), engine.begin() as connection:
            connection.execute(INSERT, {"name": "b"})
        assert ours.stats.longest == []


def test_greenlets_begin_where_their_task_is(make_app: Callable[[str], App]) -> None:
    """Ten tasks at once, none of which ends up with the place of another."""
    engine = AsyncEngine(make_app("psycopg_async").make_engine())

    async def main() -> None:
        async with sandbox.sandboxed(engine):
            await asyncio.gather(*(greenlet_spawn(_add, engine.sync_engine, n) for n in range(10)))
        await engine.dispose()

    asyncio.run(main())


def _add(engine: sa.Engine, number: int) -> None:
    with engine.begin() as connection:
        connection.execute(INSERT, {"name": str(number)})
        virtual: Any = connection.connection.dbapi_connection
        assert re.search(r"test_waiting\.py:\d+ \(_add\)$", virtual._transaction.where)

"""Ends in the middle of things: check-ins, loops, engines and cursors that go while others run."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.util.concurrency import greenlet_spawn

import sandbox
from sandbox.adapters.sqlalchemy.io import background_loop
from sandbox.errors import OwnerExitedError, SandboxBusyError, SandboxError
from tests.fix_db import App, items, metadata

SELECT = sa.select(items.c.name).order_by(items.c.id)
PID = sa.text("SELECT pg_backend_pid()")


def add(engine: sa.Engine, name: str) -> None:
    with engine.begin() as connection:
        connection.execute(sa.insert(items).values(name=name))


def seen(engine: sa.Engine) -> list[str]:
    with engine.connect() as connection:
        return list(connection.scalars(SELECT))


async def work(engine: AsyncEngine, name: str) -> None:
    async with AsyncSession(engine) as session:
        await session.execute(sa.insert(items).values(name=name))
        await session.commit()


async def process(engine: AsyncEngine) -> int:
    async with engine.connect() as connection:
        return int(await connection.scalar(PID) or 0)


def until(condition: Callable[[], Any]) -> None:
    """Wait for another process or thread; a test's time limit ends what never comes."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it never happened"


def connections(app: App, at_most: int | None = None) -> int:
    """How many connections the server has to this database, beside the one that asks.

    Servers take a moment to end a connection: waits until there are so few.
    """
    with psycopg.connect(app.outside_url, autocommit=True) as connection:
        found = 0

        def few() -> bool:
            nonlocal found
            row = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
            ).fetchone()
            found = row[0] if row is not None else 0
            return at_most is None or found <= at_most

        until(few)
        return found


def is_sleeping(app: App) -> bool:
    with psycopg.connect(app.outside_url, autocommit=True) as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            " AND query LIKE '%pg_sleep%' AND state = 'active' AND datname = current_database()"
        ).fetchone()
        return row is not None and row[0] > 0


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    """A loop that lasts, as session-scoped ones do."""
    with asyncio.Runner() as lasting:
        yield lasting


def make_lasting(runner: asyncio.Runner, engine: AsyncEngine) -> None:
    """From its second test on, a sandbox of this loop has its connection there."""

    async def test() -> None:
        async with sandbox.sandboxed(engine):
            await work(engine, "a")

    runner.run(test())


# -- the check-in ----------------------------------------------------------------------------------


def test_a_statement_that_ran_during_the_checkin_is_the_last_of_its_transaction(
    make_app: Callable[[str], App],
) -> None:
    app = make_app("psycopg")
    engine = app.make_engine()
    outcome: list[Any] = []
    next_test = threading.Event()

    def straggler() -> None:
        with engine.connect() as connection:
            connection.execute(sa.text("INSERT INTO items (name) SELECT 'lost' FROM pg_sleep(0.2)"))
            next_test.wait(20)
            try:
                outcome.append(connection.scalars(SELECT).all())
            except OwnerExitedError as error:
                outcome.append(error)

    ours = sandbox.checkout(engine)
    thread = threading.Thread(target=straggler, name="straggler")
    sandbox.allow(ours, thread)
    thread.start()
    until(lambda: is_sleeping(app))
    sandbox.checkin(engine)
    with sandbox.sandboxed(engine):
        add(engine, "the next test's")
        next_test.set()
        thread.join()
    assert isinstance(outcome[0], OwnerExitedError)


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg_async"])
@pytest.mark.parametrize("lasting", [False, True])
def test_acheckin_waits_for_a_statement_without_blocking_the_loop(
    make_app: Callable[[str], App], runner: asyncio.Runner, driver: str, lasting: bool
) -> None:
    app = make_app(driver)
    engine = AsyncEngine(app.make_engine())
    if lasting:
        make_lasting(runner, engine)

    async def sleep() -> None:
        async with engine.connect() as connection:
            await connection.execute(sa.text("SELECT pg_sleep(0.2)"))

    async def interrupted() -> int:
        async with sandbox.sandboxed(engine):
            before = await process(engine)
            task = asyncio.create_task(sleep())
            while not await asyncio.to_thread(is_sleeping, app):
                pass
        await asyncio.gather(task, return_exceptions=True)
        return before

    async def after() -> int:
        async with sandbox.sandboxed(engine):
            return await process(engine)

    if lasting:
        assert runner.run(interrupted()) == runner.run(after())
    else:
        assert asyncio.run(interrupted()) == asyncio.run(after())
    sandbox.stop()


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg_async"])
@pytest.mark.parametrize("lasting", [False, True])
def test_a_cancelled_acheckin_has_rolled_back_and_given_back(
    make_app: Callable[[str], App], runner: asyncio.Runner, driver: str, lasting: bool
) -> None:
    app = make_app(driver)
    engine = AsyncEngine(app.make_engine())
    if lasting:
        make_lasting(runner, engine)

    async def main() -> None:
        for steps in (None, None, *range(12)):
            ours = sandbox.checkout(engine)
            await work(engine, "a")
            if steps is None:
                await sandbox.acheckin(ours)
                count = connections(app)
                continue
            task = asyncio.create_task(sandbox.acheckin(ours))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            if not ours.closed:  # it was cancelled before it began
                await sandbox.acheckin(ours)
            connections(app, at_most=count)

    runner.run(main())
    sandbox.stop()


def test_checkin_inside_the_connections_own_running_loop_is_refused_and_loses_nothing(
    make_app: Callable[[str], App], runner: asyncio.Runner
) -> None:
    engine = AsyncEngine(make_app("asyncpg").make_engine())
    make_lasting(runner, engine)

    async def main() -> None:
        ours = sandbox.checkout(engine)
        await work(engine, "a")
        before = await process(engine)
        with pytest.raises(SandboxError, match=r"await sandbox\.acheckin"):
            sandbox.checkin(engine)
        await work(engine, "b")
        assert await greenlet_spawn(seen, engine.sync_engine) == ["a", "b"]
        await sandbox.acheckin(ours)
        async with sandbox.sandboxed(engine):
            assert await process(engine) == before

    runner.run(main())
    sandbox.stop()


def test_a_checkin_after_the_server_ended_the_connection_is_no_escape(pg_app: App) -> None:
    engine = pg_app.make_engine()

    def lose() -> None:
        with engine.connect() as connection:
            pid = connection.scalar(PID)
            add(engine, "a")
            with psycopg.connect(pg_app.outside_url, autocommit=True) as outside:
                outside.execute("SELECT pg_terminate_backend(%s)", [pid])
            with pytest.raises(Exception):  # noqa: B017 - what drivers say differs
                connection.execute(SELECT)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with sandbox.sandboxed(engine):
            pg_app.run(lose)
    with sandbox.sandboxed(engine):
        pg_app.run(add, engine, "a")


def test_a_pooled_connection_that_could_not_be_rolled_back_is_idle_in_the_next_test(
    pg_app: App,
) -> None:
    """SQLAlchemy takes a commit that raised for a rollback, and pools the connection."""
    engine = pg_app.make_engine(pool_size=1, max_overflow=1)

    def one() -> None:
        failed, other = engine.connect(), engine.raw_connection()
        failed.execute(sa.insert(items).values(name="a"))
        failed.begin_nested()
        with pytest.raises(sa.exc.DBAPIError):
            failed.exec_driver_sql("SELECT * FROM nowhere")
        other.cursor().execute("INSERT INTO items (name) VALUES ('b')")
        with pytest.raises(SandboxBusyError):
            failed.commit()
        failed.close()
        other.close()

    def two() -> None:
        with engine.connect() as first, engine.connect() as second:
            first.execute(SELECT)
            second.execute(sa.insert(items).values(name="c"))

    for case in (one, two):
        with sandbox.sandboxed(engine, busy_after=0.0):
            pg_app.run(case)


def test_a_forgotten_transaction_below_one_that_has_failed(pg_app: App) -> None:
    """Both are rolled back by who comes next, the lower one with the whole transaction."""
    engine = pg_app.make_engine()

    def case() -> None:
        forgotten, failed = sandbox.get_conn(engine), sandbox.get_conn(engine)
        forgotten.cursor().execute("INSERT INTO items (name) VALUES ('lost')")
        with pytest.raises(Exception, match="nowhere"):
            failed.cursor().execute("SELECT * FROM nowhere")
        del forgotten
        gc.collect()
        assert seen(engine) == []
        add(engine, "a")
        assert seen(engine) == ["a"]
        failed.close()

    with sandbox.sandboxed(engine):
        pg_app.run(case)


# -- event loops -----------------------------------------------------------------------------------


def test_a_task_cancelled_before_its_call_arrives_at_the_connections_loop(
    make_app: Callable[[str], App],
) -> None:
    """The loop that has the connection is busy, and the call is called off before it starts."""
    engine = AsyncEngine(make_app("asyncpg").make_engine())

    async def main() -> None:
        async with sandbox.sandboxed(engine):
            await work(engine, "first")
            for steps in range(8):
                go = threading.Event()
                background_loop().call_soon_threadsafe(go.wait, 5)
                task = asyncio.create_task(work(engine, f"cancelled-{steps}"))
                for _ in range(steps):
                    await asyncio.sleep(0)
                task.cancel()
                for _ in range(4):
                    await asyncio.sleep(0)
                go.set()
                await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), 5)
                await work(engine, f"kept-{steps}")
            names = await greenlet_spawn(seen, engine.sync_engine)
            assert [n for n in names if n.startswith("kept")] == [f"kept-{n}" for n in range(8)]
        await engine.dispose()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        asyncio.run(main())


def test_a_loop_that_was_closed_with_a_sandbox_open(
    make_app: Callable[[str], App],
) -> None:
    app = make_app("asyncpg")
    engine = AsyncEngine(app.make_engine())
    with asyncio.Runner() as runner:
        make_lasting(runner, engine)
        ours = sandbox.checkout(engine)
        runner.run(work(engine, "a"), context=contextvars.copy_context())
    sandbox.checkin(ours)
    with sandbox.sandboxed(engine):
        asyncio.run(work(engine, "a"), debug=False)
    sandbox.stop()


def test_a_loop_that_does_not_run_is_an_error_and_no_deadlock(
    make_app: Callable[[str], App], runner: asyncio.Runner
) -> None:
    """A fixture on the session's loop, the test on one of its own."""
    engine = AsyncEngine(make_app("asyncpg").make_engine())
    make_lasting(runner, engine)

    with asyncio.Runner() as other:
        ours = sandbox.checkout(engine)
        runner.run(work(engine, "a"), context=contextvars.copy_context())
        with pytest.raises(SandboxError, match="event loop"):
            other.run(asyncio.wait_for(work(engine, "b"), 5), context=contextvars.copy_context())
        sandbox.checkin(ours)
        # It has learned: what lives on the background loop serves both.
        ours = sandbox.checkout(engine)
        runner.run(work(engine, "a"), context=contextvars.copy_context())
        other.run(work(engine, "b"), context=contextvars.copy_context())
        sandbox.checkin(ours)
    sandbox.stop()


def test_connections_of_closed_loops_do_not_pile_up(make_app: Callable[[str], App]) -> None:
    app = make_app("asyncpg")
    engine = AsyncEngine(app.make_engine())
    for _ in range(6):
        with asyncio.Runner() as runner:
            make_lasting(runner, engine)
            make_lasting(runner, engine)
    # The background loop's, the last loop's, and one that was asked for when it was noticed.
    connections(app, at_most=3)
    sandbox.stop()


def test_a_task_cancelled_while_its_connection_is_prepared_leaves_none_behind(
    make_app: Callable[[str], App],
) -> None:
    app = make_app("psycopg_async")
    engine = AsyncEngine(app.make_engine())
    cancelled = 0

    async def main() -> None:
        async with sandbox.sandboxed(engine):
            await work(engine, "a")
        for _ in range(5):
            calls: list[Any] = []
            # Of the same kind, so that its listeners run on the idle connection too.
            other = AsyncEngine(app.make_engine())

            def prepare(connection: Any, record: Any, calls: list[Any] = calls) -> None:
                calls.append(record)
                task = asyncio.current_task()
                if len(calls) == 2 and task is not None:
                    task.cancel()
                connection.cursor().execute("SET lock_timeout = 1000")

            sa.event.listen(other.sync_engine, "connect", prepare)
            async with sandbox.sandboxed(engine):
                task = asyncio.create_task(work(other, "a"))
                await asyncio.gather(task, return_exceptions=True)
                nonlocal cancelled
                cancelled += task.cancelled()
            await other.dispose()
        await engine.dispose()

    asyncio.run(main())
    assert cancelled > 1
    connections(app, at_most=2)
    sandbox.stop()


# -- cursors on the server -------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "asyncpg", "psycopg_async"])
def test_a_fetch_that_fails_is_its_transactions_failure_alone(
    make_app: Callable[[str], App], driver: str
) -> None:
    app = make_app(driver)
    engine = app.make_engine()
    rows = sa.text("SELECT 1 / (200 - n) FROM generate_series(1, 300) AS n")

    def case(nested: bool) -> None:
        with engine.connect() as failing, engine.connect() as other:
            result = failing.execution_options(stream_results=True, max_row_buffer=5).execute(rows)
            if nested:
                other.execute(sa.insert(items).values(name="a"))
            with pytest.raises(Exception, match="division by zero"):
                result.fetchall()
            if not nested:
                other.execute(sa.insert(items).values(name="a"))
            assert other.scalars(SELECT).all() == ["a"]
            other.commit()
            with pytest.raises(sa.exc.DBAPIError, match="current transaction is aborted"):
                failing.execute(SELECT)
            failing.rollback()
            if not nested:
                assert seen(engine) == ["a"]

    for nested in (False, True):
        with sandbox.sandboxed(engine):
            app.run(case, nested)


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "asyncpg", "psycopg_async"])
@pytest.mark.parametrize("end", ["rollback", "commit", "rollback to"])
def test_a_cursor_closed_after_its_transaction(
    make_app: Callable[[str], App], driver: str, end: str
) -> None:
    app = make_app(driver)
    engine = app.make_engine()

    def case() -> None:
        raw = engine.raw_connection()
        connection: Any = raw.dbapi_connection
        if driver == "asyncpg":
            cursor = connection.cursor(server_side=True)
        else:
            cursor = connection.cursor("mine")
        if end == "rollback to":
            plain = connection.cursor()
            plain.execute("SAVEPOINT here")
        cursor.execute("SELECT * FROM generate_series(1, 100)")
        assert cursor.fetchone()[0] == 1
        if end == "rollback to":
            plain.execute("ROLLBACK TO SAVEPOINT here")
            connection.rollback()
        else:
            getattr(connection, end)()
        with contextlib.suppress(Exception):  # the driver may say that it is gone
            cursor.close()
        raw.close()
        add(engine, "a")
        assert seen(engine) == ["a"]

    with sandbox.sandboxed(engine):
        app.run(case)


# -- databases in memory ---------------------------------------------------------------------------


def test_threads_that_are_the_first_to_use_a_database_in_memory_get_the_same() -> None:

    def first(engine: sa.Engine, start: threading.Barrier, number: int) -> None:
        start.wait(20)
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE TABLE t{number} (x)")
            connection.commit()

    for _ in range(20):
        engine = sa.create_engine("sqlite://")
        with sandbox.sandboxed(engine):
            pass
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(partial(first, engine, threading.Barrier(4)), range(4)))
        assert len(sa.inspect(engine).get_table_names()) == 4
        engine.dispose()
    sandbox.stop()


def test_a_second_owner_of_a_database_in_memory_is_refused() -> None:
    """It is one connection, and has one transaction."""
    engine = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
    metadata.create_all(engine)
    with sandbox.sandboxed(engine):
        add(engine, "a")
        with sandbox.run_as(sandbox.Owner("second")):
            with sandbox.sandboxed(engine):
                with pytest.raises(SandboxBusyError, match="in memory"):
                    add(engine, "b")
        assert seen(engine) == ["a"]
    assert seen(engine) == []
    with sandbox.sandboxed(engine):
        add(engine, "c")
    assert seen(engine) == []
    engine.dispose()
    sandbox.stop()


def test_dispose_drops_a_database_in_memory_also_after_a_sandbox_with_ddl() -> None:
    engine = sa.create_engine("sqlite://")
    with sandbox.sandboxed(engine):
        metadata.create_all(engine)
    metadata.create_all(engine)
    engine.dispose()
    assert sa.inspect(engine).get_table_names() == []
    engine.dispose()
    sandbox.stop()


# -- passing through -------------------------------------------------------------------------------


def test_a_commit_that_fails_can_be_rolled_back_while_passing_through(
    make_app: Callable[[str], App],
) -> None:
    app = make_app("pysqlite")
    engine = app.make_engine()
    with sandbox.sandboxed(engine):
        pass
    raw = engine.raw_connection()
    cursor = raw.cursor()
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute("CREATE TEMP TABLE parent (id INTEGER PRIMARY KEY)")
    cursor.execute("CREATE TEMP TABLE child (id REFERENCES parent DEFERRABLE INITIALLY DEFERRED)")
    cursor.execute("INSERT INTO items (name) VALUES ('a')")
    cursor.execute("INSERT INTO child VALUES (7)")
    with pytest.raises(Exception, match="FOREIGN KEY"):
        raw.commit()
    raw.rollback()
    cursor.execute("INSERT INTO items (name) VALUES ('b')")
    raw.commit()
    raw.close()
    assert app.names() == ["b"]
    app.empty()


def test_a_script_commits_as_it_goes_while_passing_through(make_app: Callable[[str], App]) -> None:
    app = make_app("pysqlite")
    engine = app.make_engine()
    with sandbox.sandboxed(engine):
        pass
    raw = engine.raw_connection()
    raw.cursor().executescript("INSERT INTO items (name) VALUES ('a'); SELECT 1;")
    raw.close()
    assert app.names() == ["a"]
    app.empty()


# -- pools and memory ------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", [sa.StaticPool, sa.NullPool, sa.QueuePool])
def test_dispose_in_the_middle_of_a_sandbox(
    make_app: Callable[[str], App], pool: type[sa.Pool]
) -> None:
    engine = make_app("psycopg").make_engine(poolclass=pool)
    with sandbox.sandboxed(engine) as ours:
        add(engine, "a")
        session = Session(engine)
        session.execute(sa.insert(items).values(name="b"))
        engine.dispose(close=pool is not sa.StaticPool)
        session.commit()
        session.close()
        add(engine, "c")
        assert seen(engine) == ["a", "b", "c"]
        assert not ours.closed


def test_engines_made_and_thrown_away_by_each_test_leave_nothing(
    make_app: Callable[[str], App],
) -> None:
    app = make_app("psycopg")
    keep = app.make_engine()
    alive: list[weakref.ref[Any]] = []

    def one_test() -> None:
        engine = sa.create_engine(app.url, poolclass=sa.NullPool)
        with sandbox.sandboxed(engine) as ours:
            add(engine, "a")
            with Session(engine) as session:
                session.execute(SELECT)
                connection: Any = session.connection().connection.dbapi_connection
                alive.append(weakref.ref(connection._target))
            alive.append(weakref.ref(ours))
            alive.append(weakref.ref(engine))
            alive.append(weakref.ref(engine.pool._sandbox_source))  # type: ignore[attr-defined]

    add(keep, "outside")
    app.empty()
    for _ in range(100):
        one_test()
    gc.collect()
    assert sum(ref() is not None for ref in alive) <= 8  # the first and the last
    before = len(gc.get_objects())
    for _ in range(100):
        one_test()
    alive.clear()
    gc.collect()
    assert len(gc.get_objects()) - before < 100


def test_engines_in_memory_made_by_each_test_leave_nothing() -> None:
    def one_test() -> None:
        engine = sa.create_engine("sqlite://")
        with sandbox.sandboxed(engine):
            with engine.connect() as connection:
                connection.exec_driver_sql("SELECT 1")
        engine.dispose()

    for _ in range(20):
        one_test()
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(200):
        one_test()
    gc.collect()
    assert len(gc.get_objects()) - before < 200
    sandbox.stop()


def test_open_transactions_that_were_forgotten_leave_the_context(
    make_app: Callable[[str], App],
) -> None:
    from sandbox.core.lineage import _lineage

    engine = make_app("psycopg").make_engine()

    def forget() -> int:
        for _ in range(6):
            with sandbox.sandboxed(engine):
                virtual = sandbox.get_conn(engine)
                virtual.cursor().execute("INSERT INTO items (name) VALUES ('lost')")
                other = sandbox.get_conn(engine)
                other.cursor().execute("SELECT 1")
                del virtual, other
                gc.collect()
        with sandbox.sandboxed(engine):
            add(engine, "a")
            return len(_lineage.get())

    # A context of its own: sessions that earlier tests forgot may still be in this one.
    assert contextvars.Context().run(forget) <= 2

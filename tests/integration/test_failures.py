"""What goes wrong: statements cancelled, connections lost, transactions ended behind our back."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import threading
import warnings
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.util.concurrency import greenlet_spawn

import sandbox
from sandbox.errors import (
    BrokenSandboxError,
    ConfigurationError,
    SandboxEscapeError,
    UnsupportedTargetError,
)
from tests.fix_db import App, items, terminate

# SQLAlchemy's, for connections whose end was refused or interrupted.
pytestmark = pytest.mark.filterwarnings("ignore:The garbage collector is trying to clean up")

SELECT = sa.select(items.c.name).order_by(items.c.id)


def add(engine: sa.Engine, name: str) -> None:
    with engine.begin() as connection:
        connection.execute(sa.insert(items).values(name=name))


def add_many(engine: sa.Engine, names: list[str]) -> None:
    for name in names:
        add(engine, name)


def seen(engine: sa.Engine) -> list[str]:
    with engine.connect() as connection:
        return list(connection.scalars(SELECT))


def real_connection(engine: sa.Engine) -> Any:
    """The driver's connection below the sandbox, as no application ever sees it."""
    with engine.connect() as connection:
        connection.execute(SELECT)
        virtual: Any = connection.connection.dbapi_connection
        return virtual._target.real


def pid(engine: sa.Engine) -> int:
    with engine.connect() as connection:
        return int(connection.scalar(sa.text("SELECT pg_backend_pid()")) or 0)


# -- escapes -------------------------------------------------------------------------------------


def test_a_commit_on_a_path_that_we_do_not_see_fails_the_checkin(make_app: Any) -> None:
    app = make_app("psycopg")
    engine = app.make_engine()
    sandbox.checkout(engine)
    add(engine, "a")
    real_connection(engine).execute("COMMIT")
    with pytest.raises(SandboxEscapeError, match="was ended by something the sandbox did not see"):
        sandbox.checkin(engine)
    assert app.names() == ["a"]
    app.empty()
    # Everything was released all the same.
    with sandbox.sandboxed(engine):
        add(engine, "a")
        assert seen(engine) == ["a"]


def test_an_escape_is_noticed_at_the_next_statement(make_app: Any) -> None:
    app = make_app("psycopg")
    engine = app.make_engine()
    sandbox.checkout(engine)
    add(engine, "a")
    real_connection(engine).execute("COMMIT")
    with pytest.raises((SandboxEscapeError, sa.exc.DBAPIError)):
        add(engine, "b")
    with pytest.raises((SandboxEscapeError, BrokenSandboxError)):
        add(engine, "c")
    with pytest.raises(SandboxEscapeError):
        sandbox.checkin(engine)
    app.empty()


def test_a_commit_inside_a_function_is_the_servers_error(pg_app: App) -> None:
    engine = pg_app.make_engine()

    def case() -> None:
        add(engine, "a")
        with engine.connect() as connection, pytest.raises(sa.exc.DBAPIError):
            connection.exec_driver_sql("DO $$ BEGIN COMMIT; END $$")
        assert seen(engine) == ["a"]

    with sandbox.sandboxed(engine):
        pg_app.run(case)


# -- statements that do not come back ------------------------------------------------------------


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg_async"])
def test_a_cancelled_task_harms_nobody(make_app: Callable[[str], App], driver: str) -> None:
    app = make_app(driver)
    engine = AsyncEngine(app.make_engine())

    async def slow(started: asyncio.Event) -> None:
        async with AsyncSession(engine) as session:
            await session.execute(sa.insert(items).values(name="lost"))
            started.set()
            await session.execute(sa.text("SELECT pg_sleep(30)"))

    async def main() -> None:
        async with sandbox.sandboxed(engine):
            await greenlet_spawn(add, engine.sync_engine, "a")
            started = asyncio.Event()
            task = asyncio.create_task(slow(started))
            await started.wait()
            while not await _is_sleeping(app):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await greenlet_spawn(add, engine.sync_engine, "b")
            assert await greenlet_spawn(seen, engine.sync_engine) == ["a", "b"]
        await engine.dispose()

    with warnings.catch_warnings():
        # SQLAlchemy closes a connection that was cancelled in use.
        warnings.simplefilter("ignore")
        asyncio.run(main())
    assert app.names() == []


async def _is_sleeping(app: App) -> bool:
    def look() -> bool:
        with psycopg.connect(app.outside_url) as connection:
            row = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'"
                " AND state = 'active' AND datname = current_database()"
            ).fetchone()
            return row is not None and row[0] > 0

    return await asyncio.to_thread(look)


def test_a_statement_that_was_interrupted_and_still_runs_hangs_nobody(make_app: Any) -> None:
    """As pytest-timeout's signal interrupts it: psycopg cancels for KeyboardInterrupt only."""

    class InterruptedError_(BaseException):
        pass

    def interrupt(*_: object) -> None:
        raise InterruptedError_

    app = make_app("psycopg")
    engine = app.make_engine()

    def kill_when_it_sleeps() -> None:
        while not asyncio.run(_is_sleeping(app)):
            pass
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        sandbox.checkout(engine)
        killer = threading.Thread(target=kill_when_it_sleeps)
        killer.start()
        with pytest.raises(InterruptedError_), engine.connect() as connection:
            connection.execute(sa.text("SELECT pg_sleep(30)"))
        killer.join()
        sandbox.checkin(engine)
    finally:
        signal.signal(signal.SIGUSR1, before)
    with sandbox.sandboxed(engine):
        add(engine, "a")
        assert seen(engine) == ["a"]


def test_a_statement_timeout_is_the_transactions_own_failure(pg_app: App) -> None:
    engine = pg_app.make_engine()

    def case() -> None:
        add(engine, "a")
        with engine.connect() as connection:
            connection.exec_driver_sql("SET LOCAL statement_timeout = 1")
            with pytest.raises(sa.exc.DBAPIError):
                connection.exec_driver_sql("SELECT pg_sleep(10)")
        add(engine, "b")
        assert seen(engine) == ["a", "b"]

    with sandbox.sandboxed(engine):
        pg_app.run(case)


def test_a_statement_that_the_server_was_told_to_cancel_fails_alone(pg_app: App) -> None:
    """pg_cancel_backend: the transaction has failed, and the sandbox lives on."""
    engine = pg_app.make_engine()
    running = threading.Event()

    def cancel(pid: int) -> None:
        running.wait()
        with psycopg.connect(pg_app.outside_url, autocommit=True) as outside:
            query = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND query LIKE '%%pg_sleep%%'"
            while not outside.execute(query, [pid]).fetchone():
                pass
            outside.execute("SELECT pg_cancel_backend(%s)", [pid])

    def case() -> None:
        add(engine, "a")
        with engine.connect() as connection:
            pid = connection.scalar(sa.text("SELECT pg_backend_pid()"))
            canceller = threading.Thread(target=cancel, args=(pid,))
            canceller.start()
            connection.execute(sa.insert(items).values(name="lost"))
            running.set()
            with pytest.raises(sa.exc.DBAPIError, match="cancel"):
                connection.exec_driver_sql("SELECT pg_sleep(50)")
            canceller.join()
        add(engine, "b")
        assert seen(engine) == ["a", "b"]

    with sandbox.sandboxed(engine):
        pg_app.run(case)


@pytest.mark.parametrize("hidden", ["COMMIT AND CHAIN", "COMMIT; BEGIN", "ROLLBACK; BEGIN"])
@pytest.mark.filterwarnings("ignore:.*ended the transaction around it")
def test_a_transaction_that_was_exchanged_is_found_at_the_checkin(pg_app: App, hidden: str) -> None:
    """The connection is in a transaction all the time; but not in ours."""
    engine = pg_app.make_engine()

    def case() -> None:
        with engine.connect() as connection:
            raw: Any = connection.connection.dbapi_connection
            connection.execute(sa.insert(items).values(name="a"))
            real = raw._target.real
            raw._io.call(real, raw._target.driver.send, real, [hidden])

    with pytest.raises(SandboxEscapeError), sandbox.sandboxed(engine):
        pg_app.run(case)
    pg_app.empty()


def test_an_application_name_of_the_applications_own_is_no_escape(pg_app: App) -> None:
    engine = pg_app.make_engine()

    def case() -> None:
        add(engine, "a")
        with engine.begin() as connection:
            connection.exec_driver_sql(
                "DO $$ BEGIN PERFORM set_config('application_name', 'x', false); END $$"
            )
            assert connection.scalar(sa.text("SHOW application_name")) == "x"

    with sandbox.sandboxed(engine):
        pg_app.run(case)


@pytest.mark.parametrize("driver", ["psycopg", "psycopg_async", "psycopg2"])
def test_a_failure_on_a_path_that_we_do_not_see_is_no_escape(
    make_app: Callable[[str], App], driver: str
) -> None:
    """It undoes settings at once, as the end of the transaction would."""
    app = make_app(driver)
    engine = app.make_engine()

    def fail(real: Any) -> None:
        if driver == "psycopg2":
            real.cursor().execute("SELECT * FROM nowhere")
        else:
            getattr(real, "_connection", real).pgconn.exec_(b"SELECT * FROM nowhere")

    def case() -> None:
        connection = engine.connect()
        raw: Any = connection.connection.dbapi_connection
        connection.execute(sa.insert(items).values(name="a"))
        with contextlib.suppress(Exception):
            fail(raw._target.real)
        connection.rollback()
        connection.close()

    with sandbox.sandboxed(engine):
        app.run(case)


def test_a_cancelled_waiter_loses_nothing(make_app: Callable[[str], App]) -> None:
    engine = AsyncEngine(make_app("asyncpg").make_engine())

    async def main() -> None:
        async with sandbox.sandboxed(engine) as ours:
            async with AsyncSession(engine) as session:
                await session.execute(sa.insert(items).values(name="a"))
                # A context without ours: a sibling, which waits for the open transaction.
                context = threading_context(ours.owner)
                waiter = asyncio.create_task(
                    greenlet_spawn(add, engine.sync_engine, "b"), context=context
                )
                while ours.stats.waits == 0 and not waiter.done():
                    await asyncio.sleep(0.001)
                waiter.cancel()
                await asyncio.gather(waiter, return_exceptions=True)
                await session.commit()
            await greenlet_spawn(add, engine.sync_engine, "c")
            assert (await greenlet_spawn(seen, engine.sync_engine))[-1] == "c"
        await engine.dispose()

    asyncio.run(main())


def threading_context(owner: sandbox.Owner) -> Any:
    """A fresh context that knows the owner and no transaction."""
    import contextvars

    context = contextvars.Context()

    def enter() -> None:
        from sandbox.core.owner import set_owner

        set_owner(owner)

    context.run(enter)
    return context


# -- lost connections ----------------------------------------------------------------------------


def test_a_lost_connection_breaks_the_sandbox_and_not_the_next(pg_app: App) -> None:
    engine = pg_app.make_engine()

    def case() -> None:
        add(engine, "a")
        process = pid(engine)
        terminate(pg_app, process)
        with pytest.raises((sa.exc.DBAPIError, BrokenSandboxError)):
            add(engine, "b")
        with pytest.raises(BrokenSandboxError, match="was lost"):
            add(engine, "c")

    def healthy() -> None:
        add(engine, "a")
        assert seen(engine) == ["a"]

    with sandbox.sandboxed(engine):
        pg_app.run(case)
    with sandbox.sandboxed(engine):
        pg_app.run(healthy)


def test_an_idle_connection_that_was_lost_is_replaced(pg_app: App) -> None:
    engine = pg_app.make_engine()
    with sandbox.sandboxed(engine):
        pg_app.run(add, engine, "a")
        process = pg_app.run(pid, engine)
    terminate(pg_app, process)
    with sandbox.sandboxed(engine):
        pg_app.run(add, engine, "a")
        assert pg_app.run(seen, engine) == ["a"]


# -- garbage --------------------------------------------------------------------------------------


def test_a_forgotten_connection_is_rolled_back(make_app: Any) -> None:
    engine = make_app("psycopg").make_engine()
    with sandbox.sandboxed(engine):
        raw = engine.raw_connection()
        raw.cursor().execute("INSERT INTO items (name) VALUES ('lost')")
        del raw
        gc.collect()
        add(engine, "a")
        assert seen(engine) == ["a"]


def test_a_forgotten_virtual_connection_is_rolled_back(make_app: Any) -> None:
    engine = make_app("psycopg").make_engine()
    with sandbox.sandboxed(engine):
        virtual = sandbox.get_conn(engine)
        virtual.cursor().execute("INSERT INTO items (name) VALUES ('lost')")
        del virtual
        gc.collect()
        add(engine, "a")
        assert seen(engine) == ["a"]


def test_a_forgotten_session_of_an_asynchronous_engine(make_app: Any) -> None:
    app = make_app("asyncpg")
    engine = AsyncEngine(app.make_engine())

    async def main() -> None:
        async with sandbox.sandboxed(engine):
            session: AsyncSession | None = AsyncSession(engine)
            assert session is not None
            await session.execute(sa.insert(items).values(name="lost"))
            session = None
            gc.collect()
            await greenlet_spawn(add, engine.sync_engine, "a")
            assert await greenlet_spawn(seen, engine.sync_engine) == ["a"]
        await engine.dispose()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SQLAlchemy's, for the session that was not closed
        asyncio.run(main())
    assert app.names() == []


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [None, "postgresql://", object(), 7, Session()])
def test_what_is_no_engine_cannot_be_checked_out(target: object) -> None:
    with pytest.raises(UnsupportedTargetError, match="an Engine or an AsyncEngine"):
        sandbox.checkout(target)
    assert sandbox.current_owner() is None


def test_an_engine_of_an_unsupported_dialect() -> None:
    from sqlalchemy.dialects.sqlite import pysqlite

    class Other(pysqlite.SQLiteDialect_pysqlite):
        driver = "other"
        supports_statement_cache = True

    sa.dialects.registry.impls["sqlite.other"] = lambda: Other
    try:
        engine = sa.create_engine("sqlite+other://")
    finally:
        del sa.dialects.registry.impls["sqlite.other"]
    with pytest.raises(UnsupportedTargetError, match=r"sqlite\+other.*Supported"):
        sandbox.checkout(engine)


def test_unknown_options(make_app: Any) -> None:
    engine = make_app("psycopg").make_engine()
    with pytest.raises(ConfigurationError, match="isolation='schema'"):
        sandbox.checkout(engine, isolation="schema")
    with pytest.raises(ConfigurationError, match="isolation level 'STRICT'"):
        sandbox.checkout(engine, isolation_level="strict")
    with pytest.raises(ConfigurationError, match="mode 'open'"):
        sandbox.mode(engine, "open")


def test_a_wrong_url_is_the_drivers_own_error() -> None:
    engine = sa.create_engine("postgresql+psycopg://nobody@127.0.0.1:1/nothing_test")
    with sandbox.sandboxed(engine):
        with pytest.raises(sa.exc.OperationalError):
            engine.connect()
    sandbox.stop()


def test_stop_is_refused_while_somebody_is_sandboxed(make_app: Any) -> None:
    engine = make_app("psycopg").make_engine()
    with sandbox.sandboxed(engine) as ours:
        with pytest.raises(sandbox.errors.SandboxError, match="Check in first") as caught:
            sandbox.stop()
        assert ours.label in str(caught.value)
    sandbox.stop()


def test_threads_that_write_at_once_lose_nothing(make_app: Any) -> None:
    app = make_app("psycopg")
    engine = app.make_engine()
    with sandbox.sandboxed(engine, shared=True) as ours:
        threads = [
            threading.Thread(target=add_many, args=(engine, [f"{n}-{i}" for i in range(20)]))
            for n in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(seen(engine)) == 120
        assert ours.stats.statements >= 120


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg_async", "aiosqlite"])
@pytest.mark.parametrize("lasting", [False, True])
def test_tasks_cancelled_at_any_moment_leave_the_sandbox_well(
    make_app: Callable[[str], App], driver: str, lasting: bool
) -> None:
    """Cancel after each number of steps of the loop: between control statements, in a wait, …"""
    app = make_app(driver)
    engine = AsyncEngine(app.make_engine())

    async def work(name: str) -> None:
        async with AsyncSession(engine) as session:
            await session.execute(sa.insert(items).values(name=name))
            await session.commit()

    async def main() -> None:
        async with sandbox.sandboxed(engine):
            expected = {"first"}
            await work("first")
            for steps in range(60):
                one = asyncio.create_task(work(f"cancelled-{steps}"))
                other = asyncio.create_task(work(f"kept-{steps}"))
                for _ in range(steps):
                    await asyncio.sleep(0)
                one.cancel()
                await asyncio.gather(one, return_exceptions=True)
                await other
                expected.add(f"kept-{steps}")
            async with AsyncSession(engine) as session:
                names = set((await session.scalars(SELECT)).all())
            assert expected <= names
        await engine.dispose()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with asyncio.Runner() as runner:
            import contextvars

            for _ in range(2 if lasting else 1):
                runner.run(main(), context=contextvars.copy_context())
            sandbox.stop()
    assert app.names() == []

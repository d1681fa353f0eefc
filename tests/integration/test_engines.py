"""Engines as applications make them: nothing about them has to change."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import pool as sa_pool
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

import sandbox
from sandbox.errors import (
    IsolationLevelWarning,
    SandboxBusyError,
    UnsupportedInSandboxError,
)
from tests.fix_db import App, items, terminate

SELECT = sa.select(items.c.name).order_by(items.c.id)


def add(engine: sa.Engine, name: str) -> None:
    with engine.begin() as connection:
        connection.execute(sa.insert(items).values(name=name))


def seen(engine: sa.Engine) -> list[str]:
    with engine.connect() as connection:
        return list(connection.scalars(SELECT))


# -- engines made before and after ---------------------------------------------------------------


def test_an_engine_made_before_and_one_made_after_the_checkout_share_the_sandbox(app: App) -> None:
    before = app.make_engine()
    with sandbox.sandboxed(before):
        app.run(add, before, "a")
        after = app.make_engine()
        app.run(add, after, "b")
        assert app.run(seen, before) == ["a", "b"]


def test_an_engine_with_connections_in_its_pool_is_taken_over(app: App) -> None:
    engine = app.make_engine()
    app.run(seen, engine)  # a real connection lies in the pool now
    with sandbox.sandboxed(engine):
        app.run(add, engine, "a")
        assert app.run(seen, engine) == ["a"]


def test_a_session_made_before_the_checkout_works_in_it_and_after_it(make_app: Any) -> None:
    app = make_app("psycopg")
    engine = app.make_engine()
    session = Session(engine)
    assert session.scalars(SELECT).all() == []
    session.commit()
    with sandbox.sandboxed(engine):
        session.execute(sa.insert(items).values(name="a"))
        session.commit()
        assert session.scalars(SELECT).all() == ["a"]
        session.commit()
    assert session.scalars(SELECT).all() == []
    session.close()


def test_a_connection_held_across_checkouts_binds_anew_with_each_transaction(app: App) -> None:
    engine = app.make_engine()
    sandbox.mode(engine, "auto")

    def case() -> None:
        connection = engine.connect()
        for _ in range(2):
            sandbox.checkout(engine)
            connection.execute(sa.insert(items).values(name="a"))
            connection.commit()
            assert connection.scalars(SELECT).all() == ["a"]
            connection.rollback()
            sandbox.checkin()
            assert connection.scalars(SELECT).all() == []
            connection.rollback()
        connection.close()

    app.run(case)


def test_scoped_session(make_app: Any) -> None:
    engine = make_app("psycopg").make_engine()
    registry = scoped_session(sessionmaker(engine))
    for _ in range(2):
        with sandbox.sandboxed(engine):
            registry.execute(sa.insert(items).values(name="a"))
            registry.commit()
            registry.remove()
            assert registry.scalars(SELECT).all() == ["a"]
            registry.remove()


# -- pools ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pool_class", [sa_pool.QueuePool, sa_pool.NullPool, sa_pool.StaticPool, sa_pool.AssertionPool]
)
def test_the_pool_keeps_its_class_and_limits(make_app: Any, pool_class: type[sa.Pool]) -> None:
    engine = make_app("psycopg").make_engine(poolclass=pool_class)
    with sandbox.sandboxed(engine):
        assert isinstance(engine.pool, pool_class)
        assert type(engine.pool).__name__ == pool_class.__name__
        add(engine, "a")
        assert seen(engine) == ["a"]


def test_an_exhausted_pool_times_out_as_in_production(make_app: Any) -> None:
    engine = make_app("psycopg").make_engine(pool_size=1, max_overflow=0, pool_timeout=0.01)
    with sandbox.sandboxed(engine):
        held = engine.connect()
        with pytest.raises(sa.exc.TimeoutError):
            engine.connect()
        assert engine.pool.checkedout() == 1
        held.close()


def test_pre_ping(app: App) -> None:
    engine = app.make_engine(pool_pre_ping=True)
    with sandbox.sandboxed(engine):
        for name in "ab":
            app.run(add, engine, name)
        assert app.run(seen, engine) == ["a", "b"]
    assert app.names() == []
    # On real connections too, where it matters.
    sandbox.mode(engine, "auto")
    assert app.run(seen, engine) == []


def test_pre_ping_replaces_a_real_connection_that_was_lost(make_app: Any) -> None:
    app = make_app("psycopg")
    engine = app.make_engine(pool_pre_ping=True)
    sandbox.mode(engine, "auto")
    with engine.connect() as connection:
        process = connection.scalar(sa.text("SELECT pg_backend_pid()"))
    terminate(app, process)
    assert seen(engine) == []


def test_a_pool_that_the_application_made(make_app: Any) -> None:
    import psycopg

    app = make_app("psycopg")
    url = sa.make_url(app.url).set(drivername="postgresql").render_as_string(hide_password=False)
    connect: Any = lambda: psycopg.connect(url)  # noqa: E731
    pool = sa_pool.QueuePool(connect)
    engine = sa.create_engine("postgresql+psycopg://", pool=pool)
    app.engines.append(engine)
    with sandbox.sandboxed(engine):
        add(engine, "a")
        assert seen(engine) == ["a"]
    pool.dispose()


def test_creator(make_app: Any) -> None:
    """An engine whose URL says nothing is known by where its connections lead."""
    import psycopg

    app = make_app("psycopg")
    url = sa.make_url(app.url).set(drivername="postgresql").render_as_string(hide_password=False)
    named = app.make_engine()
    with sandbox.sandboxed(named):
        engine = sa.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(url))
        app.engines.append(engine)
        add(engine, "a")
        assert seen(named) == ["a"]
    assert app.names() == []


def test_engines_with_harmless_arguments_of_their_own_share_the_connection(make_app: Any) -> None:
    app = make_app("psycopg")
    plain = app.make_engine()
    other = app.make_engine(connect_args={"prepare_threshold": None, "application_name": "other"})
    with sandbox.sandboxed(plain):
        add(plain, "a")
        assert seen(other) == ["a"]


def test_async_creator(make_app: Any) -> None:
    import asyncpg

    app = make_app("asyncpg")
    url = sa.make_url(app.url)
    host, port = url.query["host"], int(str(url.query["port"]))

    async def connect() -> Any:
        return await asyncpg.connect(host=host, port=port, user=url.username, database=url.database)

    named = app.make_engine()
    with sandbox.sandboxed(named):
        engine = create_async_engine("postgresql+asyncpg://", async_creator=connect)
        app.engines.append(engine)
        app.run(add, engine.sync_engine, "a")
        assert app.run(seen, engine.sync_engine) == ["a"]
    assert app.names() == []


# -- listeners -----------------------------------------------------------------------------------


def test_connect_listeners_prepare_real_connections(pg_app: App) -> None:
    engine = pg_app.make_engine()
    prepared: list[Any] = []

    @sa.event.listens_for(engine, "connect")
    def prepare(connection: Any, record: Any) -> None:
        prepared.append(connection)
        record.info["prepared"] = True
        cursor = connection.cursor()
        cursor.execute("SET search_path TO elsewhere, public")
        cursor.close()
        connection.commit()

    def path() -> str:
        with engine.connect() as connection:
            assert connection.connection.info["prepared"]
            return str(connection.scalar(sa.text("SHOW search_path")))

    for _ in range(3):
        with sandbox.sandboxed(engine):
            assert pg_app.run(path) == "elsewhere, public"
            assert pg_app.run(path) == "elsewhere, public"
    # One real connection served them all, and virtual ones are none.
    assert len(prepared) == 1
    assert not any(repr(connection).startswith("<sandbox") for connection in prepared)


def test_a_listener_added_later_runs_on_the_connections_to_come(make_app: Any) -> None:
    engine = make_app("psycopg").make_engine()
    with sandbox.sandboxed(engine):
        add(engine, "a")
    calls: list[Any] = []
    sa.event.listen(engine, "connect", lambda *args: calls.append(args))
    sandbox.stop()  # the real connection goes
    with sandbox.sandboxed(engine):
        add(engine, "a")
    assert len(calls) == 1


def test_what_listeners_set_is_of_their_engine_although_it_shares_the_connection(
    make_app: Any,
) -> None:
    app = make_app("psycopg")
    first, second, third = app.make_engine(), app.make_engine(), app.make_engine()
    sa.event.listen(first, "connect", lambda c, _: c.execute("SET work_mem = '7MB'"))
    sa.event.listen(second, "connect", lambda c, _: c.execute("SET temp_buffers = '9MB'"))

    def shown(engine: sa.Engine) -> tuple[str, str]:
        with engine.connect() as connection:
            asked = [connection.scalar(sa.text(f"SHOW {n}")) for n in ("work_mem", "temp_buffers")]
            return asked[0], asked[1]

    for order in ((first, second, third), (third, second, first)):
        with sandbox.sandboxed(first):
            add(order[0], "a")
            seen_by = {engine: shown(engine) for engine in order}
            assert seen_by == {first: ("7MB", "8MB"), second: ("4MB", "9MB"), third: ("4MB", "8MB")}
            assert seen(order[2]) == ["a"]


def test_checkout_and_checkin_listeners_fire_as_in_production(app: App) -> None:
    engine = app.make_engine()
    calls: list[str] = []
    sa.event.listen(engine, "checkout", lambda *_: calls.append("checkout"))
    sa.event.listen(engine, "checkin", lambda *_: calls.append("checkin"))
    with sandbox.sandboxed(engine):
        app.run(seen, engine)
    assert calls == ["checkout", "checkin"]


def test_a_checkout_listener_may_use_the_connection(make_app: Any) -> None:
    engine = make_app("psycopg").make_engine()

    @sa.event.listens_for(engine, "checkout")
    def check(connection: Any, record: Any, proxy: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("SELECT 1")
        cursor.close()

    with sandbox.sandboxed(engine):
        add(engine, "a")
        assert seen(engine) == ["a"]


def test_the_recipe_for_pysqlite_transactions(make_app: Any) -> None:
    """SQLAlchemy's documented listeners that make sqlite3 begin transactions properly."""
    engine = make_app("pysqlite").make_engine()

    @sa.event.listens_for(engine, "connect")
    def connect(connection: Any, record: Any) -> None:
        connection.isolation_level = None

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    with sandbox.sandboxed(engine):
        add(engine, "a")
        with engine.connect() as connection:
            connection.execute(sa.insert(items).values(name="b"))
            connection.rollback()
        assert seen(engine) == ["a"]


def test_a_do_connect_listener_may_make_the_connection(make_app: Any) -> None:
    app = make_app("psycopg")
    engine = app.make_engine()
    calls: list[Any] = []

    @sa.event.listens_for(engine, "do_connect")
    def token(dialect: Any, record: Any, args: Any, params: Any) -> None:
        calls.append(params)
        params["options"] = "-c lock_timeout=7s"

    with sandbox.sandboxed(engine):
        with engine.connect() as connection:
            assert connection.scalar(sa.text("SHOW lock_timeout")) == "7s"
    assert len(calls) == 1


# -- what else a connection is -------------------------------------------------------------------


def test_isinstance_answers_for_the_driver(app: App) -> None:
    engine = app.make_engine()

    def kinds() -> tuple[type, type]:
        with engine.connect() as connection:
            real = connection.connection.dbapi_connection
            return real.__class__, connection.connection.driver_connection.__class__

    sandbox.mode(engine, "auto")
    with sandbox.sandboxed(engine):
        dbapi_class, driver_class = app.run(kinds)
    expected = {
        "psycopg": ("psycopg", "Connection"),
        "psycopg2": ("psycopg2.extensions", "connection"),
        "asyncpg": ("asyncpg.connection", "Connection"),
        "psycopg_async": ("psycopg", "AsyncConnection"),
        "pysqlite": ("sqlite3", "Connection"),
        "aiosqlite": ("aiosqlite.core", "Connection"),
    }[app.driver]
    assert (driver_class.__module__, driver_class.__name__) == expected
    if app.is_async:
        assert dbapi_class.__name__.startswith("AsyncAdapt_")


def test_psycopg_type_info_and_pgvector(make_app: Any) -> None:
    from pgvector.psycopg import register_vector
    from psycopg.types import TypeInfo

    engine = make_app("psycopg").make_engine()
    with sandbox.sandboxed(engine):
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE EXTENSION vector")
            connection.exec_driver_sql("CREATE TYPE mood AS ENUM ('sad', 'ok')")
        with engine.connect() as connection:
            driver: Any = connection.connection.driver_connection
            info = TypeInfo.fetch(driver, "mood")
            assert info is not None
            assert info.name == "mood"
            register_vector(driver)
            value = connection.exec_driver_sql("SELECT '[1,2,3]'::vector").scalar()
            assert list(value.to_list()) == [1, 2, 3]


def test_psycopg_conveniences_are_contained(make_app: Any) -> None:
    import psycopg

    app = make_app("psycopg")
    engine = app.make_engine()
    with sandbox.sandboxed(engine):
        raw: Any = engine.raw_connection()
        driver = raw.driver_connection
        assert driver.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        with driver.transaction():
            driver.execute("INSERT INTO items (name) VALUES (%s)", ["a"])
            assert driver.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
            with pytest.raises(ZeroDivisionError), driver.transaction():
                driver.execute("INSERT INTO items (name) VALUES ('b')")
                _ = 1 / 0
            with driver.transaction(force_rollback=True):
                driver.execute("INSERT INTO items (name) VALUES ('c')")
        with driver.cursor(row_factory=psycopg.rows.dict_row) as cursor:
            assert cursor.execute("SELECT name FROM items").fetchall() == [{"name": "a"}]
        with pytest.raises(psycopg.ProgrammingError):
            driver.autocommit = True
        raw.close()
    assert app.names() == []


def test_a_row_factory_is_the_virtual_connections_own(make_app: Any) -> None:
    import sqlite3

    engine = make_app("pysqlite").make_engine()
    with sandbox.sandboxed(engine):
        raw: Any = engine.raw_connection()
        raw.dbapi_connection.row_factory = sqlite3.Row
        assert raw.dbapi_connection.row_factory is sqlite3.Row
        row = raw.dbapi_connection.execute("SELECT 1 AS one").fetchone()
        assert row["one"] == 1
        raw.close()
        with engine.connect() as connection:
            assert connection.exec_driver_sql("SELECT 1").fetchall() == [(1,)]


def test_sqlite_executescript_does_not_end_the_sandbox(make_app: Any) -> None:
    app = make_app("pysqlite")
    engine = app.make_engine()
    with sandbox.sandboxed(engine):
        raw: Any = engine.raw_connection()
        raw.cursor().executescript(
            "INSERT INTO items (name) VALUES ('a'); -- first\n"
            "BEGIN; INSERT INTO items (name) VALUES ('b;c'); COMMIT;"
        )
        raw.close()
        assert seen(engine) == ["a", "b;c"]
    assert app.names() == []


def test_the_asynchronous_drivers_own_connection(make_app: Any) -> None:
    app = make_app("asyncpg")
    engine = app.make_engine()

    async def main() -> list[str]:
        async with AsyncEngine(engine).connect() as connection:
            raw = await connection.get_raw_connection()
            driver: Any = raw.driver_connection
            async with driver.transaction():
                await driver.execute("INSERT INTO items (name) VALUES ($1)", "a")
                with pytest.raises(ZeroDivisionError):
                    async with driver.transaction():
                        await driver.execute("INSERT INTO items (name) VALUES ($1)", "b")
                        _ = 1 / 0
            await driver.copy_records_to_table(
                "items", records=[(1_000_000, "c")], columns=["id", "name"]
            )
            await connection.commit()
            return list((await connection.scalars(sa.select(items.c.name))).all())

    with sandbox.sandboxed(engine):
        assert sorted(asyncio.run(main())) == ["a", "c"]
    assert app.names() == []


def test_run_sync_and_stream(make_app: Any) -> None:
    app = make_app("asyncpg")
    engine = AsyncEngine(app.make_engine())

    async def main() -> list[str]:
        async with AsyncSession(engine) as session:
            await session.run_sync(
                lambda sync: sync.execute(
                    sa.insert(items), [{"name": f"n{number:03}"} for number in range(100)]
                )
            )
            await session.commit()
            result = await session.stream(SELECT)
            return [name async for name in result.scalars()]

    with sandbox.sandboxed(engine):
        assert len(asyncio.run(main())) == 100
    assert app.names() == []


# -- isolation levels ----------------------------------------------------------------------------


def test_the_first_transaction_gives_the_sandbox_its_isolation_level(pg_app: App) -> None:
    engine = pg_app.make_engine(isolation_level="SERIALIZABLE")

    def level() -> str:
        with engine.connect() as connection:
            return str(connection.scalar(sa.text("SHOW transaction_isolation")))

    with sandbox.sandboxed(engine):
        assert pg_app.run(level) == "serializable"


def test_the_isolation_level_of_the_checkout(pg_app: App) -> None:
    engine = pg_app.make_engine()

    def level() -> str:
        with engine.connect() as connection:
            return str(connection.scalar(sa.text("SHOW transaction_isolation")))

    with sandbox.sandboxed(engine, isolation_level="repeatable read"):
        assert pg_app.run(level) == "repeatable read"


def test_a_stronger_level_that_comes_too_late_is_refused(pg_app: App) -> None:
    engine = pg_app.make_engine()

    def case() -> None:
        add(engine, "a")
        serializable = engine.execution_options(isolation_level="SERIALIZABLE")
        with pytest.raises(UnsupportedInSandboxError, match="Check out with isolation_level="):
            seen(serializable)
        with engine.connect() as connection:
            with pytest.raises(UnsupportedInSandboxError):
                connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
            connection.rollback()
            assert connection.scalars(SELECT).all() == ["a"]

    with sandbox.sandboxed(engine):
        pg_app.run(case)


def test_a_stronger_level_is_taken_while_nothing_was_written(pg_app: App) -> None:
    engine = pg_app.make_engine()

    def case() -> None:
        assert seen(engine) == []
        with engine.execution_options(isolation_level="SERIALIZABLE").connect() as connection:
            raw: Any = connection.connection.dbapi_connection
            assert connection.scalars(SELECT).all() == []
            assert raw._target.stack.isolation == "SERIALIZABLE"
        add(engine, "a")

    with sandbox.sandboxed(engine):
        pg_app.run(case)


def test_session_characteristics_are_those_of_the_transactions_to_come(pg_app: App) -> None:
    engine = pg_app.make_engine()

    def case() -> None:
        raw = engine.raw_connection()
        cursor = raw.cursor()
        cursor.execute("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        raw.commit()
        cursor.execute("SELECT name FROM items")
        cursor.execute("SHOW transaction_isolation")
        assert [tuple(row) for row in cursor.fetchall()] == [("serializable",)]
        virtual: Any = raw.dbapi_connection
        assert virtual._target.stack.isolation == "SERIALIZABLE"
        cursor.close()
        raw.close()

    with sandbox.sandboxed(engine):
        pg_app.run(case)


def test_by_policy_it_is_warned_about(pg_app: App) -> None:
    engine = pg_app.make_engine()

    def case() -> None:
        add(engine, "a")
        serializable = engine.execution_options(isolation_level="SERIALIZABLE")
        expected = "asked for SERIALIZABLE.*#isolationlevelwarning"
        with pytest.warns(IsolationLevelWarning, match=expected):
            assert seen(serializable) == ["a"]
        with engine.connect() as connection:
            with pytest.warns(IsolationLevelWarning):
                connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
            assert connection.scalars(SELECT).all() == ["a"]

    with sandbox.sandboxed(engine, late_isolation="warn"):
        pg_app.run(case)


def test_get_isolation_level_leaves_no_transaction_behind(make_app: Any) -> None:
    engine = make_app("psycopg").make_engine()
    with sandbox.sandboxed(engine):
        with engine.connect() as connection:
            assert connection.get_isolation_level() == "READ COMMITTED"
            assert not connection.in_transaction()
            connection.execution_options(isolation_level="AUTOCOMMIT")
            connection.execute(sa.insert(items).values(name="a"))
        assert seen(engine) == ["a"]


def test_read_only_transactions(make_app: Any) -> None:
    engine = make_app("psycopg").make_engine()
    read_only = engine.execution_options(postgresql_readonly=True)
    with sandbox.sandboxed(engine):
        with pytest.raises(sa.exc.InternalError, match="read-only"):
            add(read_only, "a")
        assert seen(read_only) == []
        add(engine, "b")
        assert seen(engine) == ["b"]


# -- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    ["VACUUM", "CREATE DATABASE other", "PREPARE TRANSACTION 'x'", "ALTER SYSTEM RESET ALL"],
)
def test_what_no_transaction_can_hold_is_refused_before_the_server_sees_it(
    pg_app: App, statement: str
) -> None:
    engine = pg_app.make_engine()

    def case() -> None:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            with pytest.raises(UnsupportedInSandboxError, match=statement.split(maxsplit=1)[0]):
                connection.exec_driver_sql(statement)
            connection.execute(sa.insert(items).values(name="a"))
        assert seen(engine) == ["a"]

    with sandbox.sandboxed(engine):
        pg_app.run(case)


def test_a_script_that_commits_is_contained(make_app: Any) -> None:
    app = make_app("psycopg")
    engine = app.make_engine()
    with sandbox.sandboxed(engine):
        with engine.connect() as connection:
            connection.exec_driver_sql(
                "INSERT INTO items (name) VALUES ('a'); COMMIT; BEGIN;"
                " INSERT INTO items (name) VALUES ('b'); ROLLBACK"
            )
        assert seen(engine) == ["a"]
    assert app.names() == []


def test_a_script_with_parameters_that_commits_is_refused(make_app: Any) -> None:
    engine = make_app("psycopg2").make_engine()
    with sandbox.sandboxed(engine):
        raw = engine.raw_connection()
        with pytest.raises(UnsupportedInSandboxError, match="parameters"):
            raw.cursor().execute("INSERT INTO items (name) VALUES (%s); COMMIT", ["a"])
        raw.close()
        assert seen(engine) == []


# -- in-memory SQLite ----------------------------------------------------------------------------


@pytest.mark.parametrize("first_used", [True, False])
def test_a_database_in_memory_keeps_its_tables(first_used: bool) -> None:
    engine = sa.create_engine("sqlite://")
    if not first_used:
        sandbox.mode(engine, "auto")
    items.metadata.create_all(engine)
    for _ in range(2):
        with sandbox.sandboxed(engine):
            add(engine, "a")
            assert seen(engine) == ["a"]
        assert seen(engine) == []
    sandbox.stop()
    engine.dispose()


def test_a_database_in_memory_with_threads() -> None:
    engine = sa.create_engine("sqlite://")
    sandbox.mode(engine, "auto")
    items.metadata.create_all(engine)
    with sandbox.sandboxed(engine) as ours:
        sandbox.allow(ours, "worker*")
        threads = [
            threading.Thread(target=add, args=(engine, f"n{number}"), name=f"worker{number}")
            for number in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(seen(engine)) == 4
    assert seen(engine) == []
    sandbox.stop()
    engine.dispose()


def test_an_asynchronous_database_in_memory() -> None:
    engine = create_async_engine("sqlite+aiosqlite://")

    async def main() -> None:
        async with engine.begin() as connection:
            await connection.run_sync(items.metadata.create_all)
        for _ in range(2):
            async with sandbox.sandboxed(engine):
                async with AsyncSession(engine) as session:
                    await session.execute(sa.insert(items).values(name="a"))
                    await session.commit()
                    assert (await session.scalars(SELECT)).all() == ["a"]
        async with engine.connect() as connection:
            assert (await connection.scalars(SELECT)).all() == []
        await engine.dispose()

    asyncio.run(main())


# -- the drivers' own ways to write --------------------------------------------------------------


def test_psycopg_copy_and_stream(make_app: Any) -> None:
    app = make_app("psycopg")
    engine = app.make_engine()
    with sandbox.sandboxed(engine):
        raw: Any = engine.raw_connection()
        cursor = raw.cursor()
        with cursor.copy("COPY items (name) FROM STDIN") as copy:
            copy.write_row(("a",))
            copy.write_row(("b",))
        assert [row[0] for row in cursor.stream("SELECT name FROM items ORDER BY id")] == ["a", "b"]
        raw.rollback()
        with cursor.copy("COPY items (name) FROM STDIN") as copy:
            copy.write_row(("c",))
        raw.commit()
        raw.close()
        assert seen(engine) == ["c"]
    assert app.names() == []


def test_a_copy_waits_for_those_above_it(make_app: Any) -> None:
    engine = make_app("psycopg").make_engine()
    with sandbox.sandboxed(engine, busy_after=0.05):
        lower, upper = engine.raw_connection(), engine.raw_connection()
        lower.cursor().execute("INSERT INTO items (name) VALUES ('a')")
        upper.cursor().execute("INSERT INTO items (name) VALUES ('b')")
        cursor: Any = lower.cursor()
        with pytest.raises(SandboxBusyError), cursor.copy("COPY items TO STDOUT") as copy:
            copy.read()
        upper.rollback()
        with cursor.copy("COPY items (name) TO STDOUT") as copy:
            assert b"".join(copy) == b"a\n"
        lower.commit()
        lower.close()
        upper.close()


def test_psycopg2_copy(make_app: Any) -> None:
    import io

    app = make_app("psycopg2")
    engine = app.make_engine()
    with sandbox.sandboxed(engine):
        raw: Any = engine.raw_connection()
        raw.cursor().copy_expert("COPY items (name) FROM STDIN", io.StringIO("a\nb\n"))
        raw.rollback()
        raw.cursor().copy_from(io.StringIO("c\n"), "items", columns=("name",))
        raw.commit()
        raw.close()
        assert seen(engine) == ["c"]
    assert app.names() == []


def test_what_we_do_not_understand_is_contained_all_the_same(make_app: Any) -> None:
    """A call that goes past us finds the outer transaction begun."""
    app = make_app("psycopg")
    engine = app.make_engine()
    with sandbox.sandboxed(engine):
        raw: Any = engine.raw_connection()
        raw.dbapi_connection.pgconn.exec_(b"INSERT INTO items (name) VALUES ('a')")
        raw.cursor().execute("INSERT INTO items (name) VALUES ('b')")
        raw.rollback()
        raw.close()
        assert seen(engine) == ["a"]
    assert app.names() == []


def test_aiosqlites_own_connection(make_app: Any) -> None:
    app = make_app("aiosqlite")
    engine = AsyncEngine(app.make_engine())

    async def main() -> None:
        async with engine.connect() as connection:
            driver: Any = (await connection.get_raw_connection()).driver_connection
            await driver.execute("INSERT INTO items (name) VALUES ('a')")
            async with driver.execute("SELECT name FROM items") as cursor:
                assert await cursor.fetchall() == [("a",)]
            await connection.commit()
        await engine.dispose()

    with sandbox.sandboxed(engine):
        asyncio.run(main())
    assert app.names() == []


def test_a_two_phase_commit_is_refused(make_app: Any) -> None:
    engine = make_app("psycopg").make_engine()
    with sandbox.sandboxed(engine), engine.connect() as connection:
        with pytest.raises(UnsupportedInSandboxError, match="two-phase"):
            connection.begin_twophase()

"""MySQL and MariaDB: deadlocks, lost connections, levels, and what a session keeps."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.util.concurrency import greenlet_spawn

import sandbox
from sandbox.errors import (
    BrokenSandboxError,
    IsolationLevelWarning,
    OwnershipError,
    SandboxBusyError,
    SandboxEscapeError,
    UnsupportedInSandboxError,
)
from tests.fix_db import items
from tests.fix_mariadb import ASYNC_MYSQL, MySQLApp, wait_until

SELECT = sa.select(items.c.name).order_by(items.c.id)


def insert(engine: sa.Engine, name: str) -> None:
    with engine.begin() as connection:
        connection.execute(sa.insert(items).values(name=name))


def seen(engine: sa.Engine) -> list[str]:
    with engine.connect() as connection:
        return list(connection.scalars(SELECT))


def scalar(engine: sa.Engine, sql: str) -> Any:
    with engine.connect() as connection:
        return connection.exec_driver_sql(sql).scalar()


@pytest.fixture
def my_sync(make_my_app: Callable[[str], MySQLApp]) -> MySQLApp:
    return make_my_app("pymysql")


# -- deadlocks -----------------------------------------------------------------------------------


@pytest.fixture
def contested(my_app: MySQLApp) -> Iterator[MySQLApp]:
    """Two rows that are really there."""
    my_app.ask("INSERT INTO items (id, name) VALUES (1, 'x'), (2, 'y')")
    yield my_app
    my_app.empty()


def test_a_deadlock_ends_the_sandbox_which_says_so(contested: MySQLApp) -> None:
    engine = contested.make_engine()

    def update(number: int) -> None:
        with engine.begin() as connection:
            connection.execute(
                sa.update(items).values(name=f"{number}").where(items.c.id == number)
            )

    def case() -> None:
        insert(engine, "a")
        update(2)
        with contextlib.closing(contested.outside()) as other:
            cursor = other.cursor()
            cursor.execute("BEGIN")
            # Who has written more is spared.
            for number in range(20):
                cursor.execute("INSERT INTO items (name) VALUES (%s)", [f"heavy {number}"])
            cursor.execute("UPDATE items SET name = 'z1' WHERE id = 1")
            thread = threading.Thread(
                target=lambda: cursor.execute("UPDATE items SET name = 'z' WHERE id = 2")
            )
            thread.start()
            wait_until(lambda: ("UPDATE items SET name = 'z' WHERE id = 2",) in waiting(contested))
            try:
                with pytest.raises(sa.exc.OperationalError, match="1213"):
                    update(1)
            finally:
                thread.join()
                other.rollback()
        with pytest.raises(BrokenSandboxError, match=r"rolled back all of it.*Deadlock"):
            insert(engine, "b")

    with sandbox.sandboxed(engine):
        contested.run(case)
    with sandbox.sandboxed(engine):
        contested.run(insert, engine, "a")
    assert contested.names() == ["x", "y"]


def waiting(app: MySQLApp) -> list[tuple[Any, ...]]:
    return app.ask(
        "SELECT trx_query FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'"
    )


def test_a_lock_that_is_waited_for_too_long_undoes_only_its_statement(contested: MySQLApp) -> None:
    engine = contested.make_engine()

    def case() -> None:
        insert(engine, "a")
        with contextlib.closing(contested.outside()) as other:
            cursor = other.cursor()
            cursor.execute("BEGIN")
            cursor.execute("UPDATE items SET name = 'z' WHERE id = 1")
            with engine.connect() as connection:
                connection.exec_driver_sql("SET SESSION innodb_lock_wait_timeout = 1")
                with pytest.raises(sa.exc.OperationalError, match="1205"):
                    connection.exec_driver_sql("UPDATE items SET name = 'q' WHERE id = 1")
        assert seen(engine) == ["x", "y", "a"]

    with sandbox.sandboxed(engine):
        contested.run(case)


# -- connections that are gone -------------------------------------------------------------------


def test_a_killed_connection_is_said_to_be_lost_and_the_next_test_has_another(
    my_app: MySQLApp,
) -> None:
    engine = my_app.make_engine()

    def case() -> None:
        insert(engine, "a")
        number = scalar(engine, "SELECT CONNECTION_ID()")
        my_app.ask(f"KILL {number}")
        wait_until(lambda: number not in [row[0] for row in my_app.others()])
        with pytest.raises(sa.exc.DBAPIError):
            insert(engine, "b")
        with pytest.raises(BrokenSandboxError):
            insert(engine, "c")

    with sandbox.sandboxed(engine):
        my_app.run(case)
    with sandbox.sandboxed(engine):
        my_app.run(insert, engine, "a")
        assert my_app.run(seen, engine) == ["a"]


def test_a_connection_killed_while_it_lay_idle_is_replaced(my_app: MySQLApp) -> None:
    engine = my_app.make_engine()
    with sandbox.sandboxed(engine):
        my_app.run(insert, engine, "a")
    for row in my_app.others():
        my_app.ask(f"KILL {row[0]}")
    wait_until(lambda: not my_app.others())
    with sandbox.sandboxed(engine):
        my_app.run(insert, engine, "a")
        assert my_app.run(seen, engine) == ["a"]


def test_a_killed_statement_harms_nobody(my_app: MySQLApp) -> None:
    engine = my_app.make_engine()

    def case() -> None:
        insert(engine, "a")
        number = scalar(engine, "SELECT CONNECTION_ID()")
        killer = threading.Thread(target=kill_sleeper, args=(my_app, number))
        killer.start()
        # MariaDB ends SLEEP() early and says so with a 1, or with an error.
        with contextlib.suppress(sa.exc.DBAPIError):
            assert scalar(engine, "SELECT SLEEP(30)") == 1
        killer.join()
        insert(engine, "b")
        assert seen(engine) == ["a", "b"]

    with sandbox.sandboxed(engine):
        my_app.run(case)


def is_asleep(app: MySQLApp) -> bool:
    return any("SLEEP" in (row[2] or "") for row in app.others())


def kill_sleeper(app: MySQLApp, number: int) -> None:
    wait_until(lambda: is_asleep(app))
    app.ask(f"KILL QUERY {number}")


@pytest.mark.parametrize("driver", ASYNC_MYSQL)
def test_a_cancelled_task_harms_nobody(make_my_app: Callable[[str], MySQLApp], driver: str) -> None:
    app = make_my_app(driver)
    engine = AsyncEngine(app.make_engine())

    async def slow(written: asyncio.Event) -> None:
        async with AsyncSession(engine) as session:
            await session.execute(sa.insert(items).values(name="lost"))
            written.set()
            await session.execute(sa.text("SELECT SLEEP(30)"))

    async def main() -> None:
        async with sandbox.sandboxed(engine):
            await greenlet_spawn(insert, engine.sync_engine, "a")
            written = asyncio.Event()
            task = asyncio.create_task(slow(written))
            await written.wait()
            while not await asyncio.to_thread(is_asleep, app):
                await asyncio.sleep(0)
            began = asyncio.get_running_loop().time()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert asyncio.get_running_loop().time() - began < 10
            await greenlet_spawn(insert, engine.sync_engine, "b")
            assert await greenlet_spawn(seen, engine.sync_engine) == ["a", "b"]
        await engine.dispose()

    with warnings.catch_warnings():
        # SQLAlchemy closes a connection that was cancelled in use.
        warnings.simplefilter("ignore")
        asyncio.run(main())
        gc.collect()
    assert app.names() == []


def test_an_interrupted_statement_breaks_the_sandbox(my_sync: MySQLApp) -> None:
    """PyMySQL closes the connection of a statement that a signal interrupts."""
    engine = my_sync.make_engine()
    with sandbox.sandboxed(engine):
        insert(engine, "a")
        with engine.connect() as connection:
            virtual: Any = connection.connection.dbapi_connection
            connection.execute(SELECT)
            virtual._target.real._force_close()
            with pytest.raises(sa.exc.DBAPIError):
                connection.execute(SELECT)
        with pytest.raises(BrokenSandboxError):
            insert(engine, "b")


# -- what no rollback takes back -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "look"),
    [
        ("SET SESSION sql_mode = 'ANSI_QUOTES'", "SELECT @@sql_mode = 'ANSI_QUOTES'"),
        ("SET @mine = 1", "SELECT coalesce(@mine, 0)"),
        ("SELECT @mine := 1", "SELECT coalesce(@mine, 0)"),
        ("SELECT GET_LOCK('mine', 0)", "SELECT 1 - IS_FREE_LOCK('mine')"),
    ],
)
def test_what_a_session_keeps_does_not_reach_the_next_test(
    my_app: MySQLApp, sql: str, look: str
) -> None:
    engine = my_app.make_engine(pool_size=1)

    def first() -> None:
        with engine.connect() as connection:
            connection.exec_driver_sql(sql)
            assert int(connection.exec_driver_sql(look).scalar() or 0) == 1

    with sandbox.sandboxed(engine):
        my_app.run(first)
    other = my_app.make_engine()
    with sandbox.sandboxed(other):
        assert int(my_app.run(scalar, other, look)) == 0


def test_a_temporary_table_ends_with_the_test(my_app: MySQLApp) -> None:
    engine = my_app.make_engine()

    def make() -> None:
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TEMPORARY TABLE extra (id integer)")
            connection.exec_driver_sql("INSERT INTO extra VALUES (1)")
        assert scalar(engine, "SELECT count(*) FROM extra") == 1

    for _ in range(2):
        with sandbox.sandboxed(engine):
            my_app.run(make)


def test_a_table_that_no_rollback_undoes_fails_the_checkin(my_app: MySQLApp) -> None:
    my_app.ask("CREATE OR REPLACE TABLE isam (id integer) ENGINE=MyISAM")
    engine = my_app.make_engine()

    def write() -> None:
        with engine.begin() as connection:
            connection.exec_driver_sql("INSERT INTO isam VALUES (1)")

    try:
        sandbox.checkout(engine)
        my_app.run(write)
        with pytest.raises(SandboxEscapeError, match="no rollback undoes"):
            sandbox.checkin(engine)
    finally:
        my_app.ask("DROP TABLE isam")


# -- isolation levels ----------------------------------------------------------------------------


def is_level_on_the_server(app: MySQLApp, level: str) -> bool:
    """Whether the one transaction that runs has it.

    The server looks itself only when it was not asked for 0.1 s.
    """

    def look() -> bool:
        rows = app.ask(
            "SELECT trx_isolation_level FROM information_schema.innodb_trx JOIN"
            " information_schema.processlist ON id = trx_mysql_thread_id WHERE db = database()"
        )
        return rows == [(level,)]

    wait_until(look, 5, 0.15)
    return True


@pytest.mark.parametrize("how", ["engine", "connection", "session text", "next text", "checkout"])
def test_the_outer_transaction_begins_with_the_level_that_is_asked_for_first(
    my_app: MySQLApp, how: str
) -> None:
    level = "SERIALIZABLE"
    engine = my_app.make_engine(**({"isolation_level": level} if how == "engine" else {}))

    def case() -> None:
        with contextlib.ExitStack() as stack:
            connection = stack.enter_context(engine.connect())
            if how == "connection":
                connection.execution_options(isolation_level=level)
            elif how == "session text":
                connection.exec_driver_sql(f"SET SESSION TRANSACTION ISOLATION LEVEL {level}")
            elif how == "next text":
                connection.exec_driver_sql(f"SET TRANSACTION ISOLATION LEVEL {level}")
            connection.execute(sa.insert(items).values(name="a"))
            assert is_level_on_the_server(my_app, level)
            if how in {"engine", "connection", "session text"}:
                assert connection.get_isolation_level() == level

    options: Any = {"isolation_level": level} if how == "checkout" else {}
    with sandbox.sandboxed(engine, **options):
        my_app.run(case)
    # The next one has the default again, on the same connection.
    plain = my_app.make_engine()

    def ordinary() -> None:
        with plain.connect() as connection:
            connection.execute(sa.insert(items).values(name="a"))
            assert is_level_on_the_server(my_app, "REPEATABLE READ")
            assert connection.get_isolation_level() == "REPEATABLE READ"

    with sandbox.sandboxed(plain):
        my_app.run(ordinary)


def test_a_level_that_is_lower_or_the_default_comes_late_without_complaint(
    my_app: MySQLApp,
) -> None:
    engine = my_app.make_engine()

    def case() -> None:
        insert(engine, "a")
        for level in ("REPEATABLE READ", "READ COMMITTED"):
            with engine.connect().execution_options(isolation_level=level) as connection:
                assert list(connection.scalars(SELECT)) == ["a"]
                assert connection.get_isolation_level() == level

    with sandbox.sandboxed(engine):
        my_app.run(case)


def test_a_higher_level_that_comes_late_is_not_pretended(my_app: MySQLApp) -> None:
    engine = my_app.make_engine()

    def case() -> None:
        insert(engine, "a")
        with pytest.raises(
            (UnsupportedInSandboxError, IsolationLevelWarning), match="SERIALIZABLE"
        ):
            with engine.connect().execution_options(isolation_level="SERIALIZABLE") as connection:
                connection.execute(sa.insert(items).values(name="b"))

    with sandbox.sandboxed(engine):
        my_app.run(case)


def test_the_level_of_a_transaction_that_runs_is_the_servers_to_refuse(my_app: MySQLApp) -> None:
    engine = my_app.make_engine()

    def case() -> None:
        with engine.connect() as connection:
            connection.execute(sa.insert(items).values(name="a"))
            with pytest.raises(sa.exc.DBAPIError, match="1568"):
                connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")

    with sandbox.sandboxed(engine):
        my_app.run(case)


def test_levels_on_connections_of_their_own_are_the_servers(my_app: MySQLApp) -> None:
    engine = my_app.make_engine()
    sandbox.mode(engine, "auto")

    def case() -> None:
        with engine.connect().execution_options(isolation_level="SERIALIZABLE") as connection:
            connection.execute(sa.insert(items).values(name="a"))
            assert is_level_on_the_server(my_app, "SERIALIZABLE")
        with engine.connect() as connection:
            connection.execute(sa.insert(items).values(name="a"))
            assert is_level_on_the_server(my_app, "REPEATABLE READ")

    my_app.run(case)


# -- PyMySQL's own -------------------------------------------------------------------------------


def test_the_drivers_own_calls(my_sync: MySQLApp) -> None:
    import pymysql
    from pymysql.cursors import DictCursor, SSCursor

    engine = my_sync.make_engine()
    with sandbox.sandboxed(engine):
        connection = sandbox.get_conn(engine)
        assert isinstance(connection, pymysql.connections.Connection)
        assert connection.open
        assert not connection.get_autocommit()
        connection.ping(reconnect=False)
        with connection.cursor(DictCursor) as cursor:
            assert cursor.execute("INSERT INTO items (name) VALUES (%s)", ["a"]) == 1
            assert cursor.lastrowid > 0
            cursor.execute("SELECT name FROM items")
            assert cursor.fetchone() == {"name": "a"}
        connection.begin()
        with connection.cursor() as cursor:
            cursor.executemany("INSERT INTO items (name) VALUES (%s)", [["b"], ["c"]])
        connection.rollback()
        connection.autocommit(True)
        connection.query("INSERT INTO items (name) VALUES ('d')")
        connection.rollback()
        with connection.cursor(SSCursor) as cursor:
            cursor.execute("SELECT name FROM items ORDER BY name")
            assert isinstance(cursor._real, SSCursor)
            # Others may speak before it has been read to the end.
            assert cursor.fetchone() == ("a",)
            assert seen(engine) == ["a", "d"]
            assert list(cursor) == [("d",)]
        with pytest.raises(UnsupportedInSandboxError, match="USE"):
            connection.select_db("mysql")
        with connection:
            pass
        assert not connection.open
        with pytest.raises(pymysql.err.InterfaceError):
            connection.cursor()


def test_several_results_are_kept_while_others_speak(my_sync: MySQLApp) -> None:
    my_sync.ask("CREATE OR REPLACE PROCEDURE twice() BEGIN SELECT 1; SELECT 2; END")
    engine = my_sync.make_engine()
    try:
        with sandbox.sandboxed(engine):
            connection = sandbox.get_conn(engine)
            cursor = connection.cursor()
            cursor.callproc("twice")
            assert cursor.fetchall() == ((1,),)
            insert(engine, "a")
            assert cursor.nextset() is True
            assert cursor.fetchall() == ((2,),)
            cursor.nextset()
            assert not cursor.nextset()
            connection.close()
    finally:
        my_sync.ask("DROP PROCEDURE twice")


def test_a_closed_pass_through_connection_fails_the_ping(my_sync: MySQLApp) -> None:
    engine = my_sync.make_engine(pool_pre_ping=True)
    sandbox.mode(engine, "auto")
    assert seen(engine) == []
    for row in my_sync.others():
        my_sync.ask(f"KILL {row[0]}")
    wait_until(lambda: not my_sync.others())
    assert seen(engine) == []


@pytest.mark.parametrize("driver", ASYNC_MYSQL)
def test_the_native_connection_is_contained_too(
    make_my_app: Callable[[str], MySQLApp], driver: str
) -> None:
    app = make_my_app(driver)
    engine = AsyncEngine(app.make_engine())

    async def main() -> None:
        async with sandbox.sandboxed(engine), engine.connect() as connection:
            raw = await connection.get_raw_connection()
            native: Any = raw.driver_connection
            await native.begin()
            async with native.cursor() as cursor:
                await cursor.execute("INSERT INTO items (name) VALUES (%s)", ("a",))
                await native.commit()
                await cursor.executemany("INSERT INTO items (name) VALUES (%s)", [("b",), ("c",)])
                await native.rollback()
                await cursor.execute("SELECT name FROM items")
                assert await cursor.fetchall() == [("a",)]
                await native.autocommit(True)
                await native.query("INSERT INTO items (name) VALUES ('d')")
                await native.rollback()
            await native.autocommit(False)
            assert await greenlet_spawn(seen, engine.sync_engine) == ["a", "d"]
            with pytest.raises(UnsupportedInSandboxError):
                await native.select_db("mysql")
            await native.ping()
        await engine.dispose()

    asyncio.run(main())


# -- owners --------------------------------------------------------------------------------------


def test_threads_reach_a_sandbox_that_is_shared_and_no_other(my_sync: MySQLApp) -> None:
    engine = my_sync.make_engine()

    def in_thread() -> BaseException | None:
        caught: list[BaseException] = []

        def run() -> None:
            try:
                insert(engine, threading.current_thread().name)
            except OwnershipError as error:
                caught.append(error)

        thread = threading.Thread(target=run, name="worker")
        thread.start()
        thread.join()
        return caught[0] if caught else None

    with sandbox.sandboxed(engine):
        assert in_thread() is not None
    with sandbox.sandboxed(engine, shared=True):
        assert in_thread() is None
        assert seen(engine) == ["worker"]


def test_a_write_below_anothers_work_is_told_to_wait(my_app: MySQLApp) -> None:
    engine = my_app.make_engine()

    def case() -> None:
        with Session(engine) as outer, Session(engine) as inner:
            outer.execute(sa.insert(items).values(name="a"))
            inner.execute(sa.insert(items).values(name="b"))
            # Reads go through, in between.
            assert len(outer.execute(SELECT).all()) == 2
            with pytest.raises(SandboxBusyError):
                outer.execute(sa.insert(items).values(name="c"))
            inner.commit()
            outer.execute(sa.insert(items).values(name="d"))
            outer.commit()
        assert seen(engine) == ["a", "b", "d"]

    with sandbox.sandboxed(engine, nest_after=0.0, busy_after=0.0):
        my_app.run(case)


# -- round trips ---------------------------------------------------------------------------------

_CONTROL = (
    "Com_begin",
    "Com_rollback",
    "Com_savepoint",
    "Com_release_savepoint",
    "Com_rollback_to_savepoint",
    "Com_set_option",
    "Com_admin_commands",
)


def test_round_trips_are_counted_as_the_server_counts_them(my_sync: MySQLApp) -> None:
    engine = my_sync.make_engine()

    def control() -> int:
        rows = dict(my_sync.ask("SHOW GLOBAL STATUS LIKE 'Com\\_%%'"))
        return sum(int(rows[name]) for name in _CONTROL)

    with sandbox.sandboxed(engine):
        insert(engine, "warm")
    # Each look from outside SETs its autocommit mode.
    look = -(control() - control())
    before = control()
    with sandbox.sandboxed(engine) as ours:
        insert(engine, "a")
        with pytest.raises(sa.exc.IntegrityError):
            insert(engine, "a")
        insert(engine, "b")
    assert control() - before - look == ours.stats.round_trips


def test_a_sandbox_that_does_nothing_costs_nothing(my_app: MySQLApp) -> None:
    engine = my_app.make_engine()
    with sandbox.sandboxed(engine):
        my_app.run(insert, engine, "a")
    with sandbox.sandboxed(engine) as ours:
        pass
    assert ours.stats.round_trips == 0

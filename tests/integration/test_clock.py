"""The database's clock: as in production by itself, and as the test says where it says."""

from __future__ import annotations

import contextlib
import datetime as dt
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
import time_machine
from freezegun import freeze_time

import sandbox
from sandbox.databases import clock as databases_clock
from sandbox.databases.backends import EmbeddedPostgres
from sandbox.errors import ClockWarning, UnsupportedInSandboxError
from tests.fix_db import POSTGRESQL, App

LONG_AGO = dt.datetime(2001, 2, 3, 4, 5, 6, 789, tzinfo=dt.UTC)
A_MINUTE = dt.timedelta(minutes=1)

# ``older`` is made before now() is replaced, ``newer`` after.
TABLE = """
CREATE TABLE {} (
    name text PRIMARY KEY,
    made timestamptz DEFAULT now(),
    begun timestamptz DEFAULT transaction_timestamp(),
    day date DEFAULT now()
)"""
BOTH = ("older", "newer")


@pytest.fixture(scope="module")
def make_database(server: EmbeddedPostgres) -> Callable[[str], str]:
    def make(driver: str) -> str:
        name = f"test_clock_{driver}"
        if not server.database_exists(name):
            server.create_database(name)
            with psycopg.connect(server.url(name), autocommit=True) as connection:
                connection.execute(TABLE.format("older"))
            databases_clock.install(server, name)
            with psycopg.connect(server.url(name), autocommit=True) as connection:
                connection.execute(TABLE.format("newer"))
        return name

    return make


@pytest.fixture(params=POSTGRESQL)
def clocked(
    request: pytest.FixtureRequest,
    server: EmbeddedPostgres,
    make_database: Callable[[str], str],
) -> Iterator[App]:
    """An application whose database follows."""
    driver = request.param
    name = make_database(driver)
    scheme = f"postgresql+{'psycopg' if driver == 'psycopg_async' else driver}"
    application = App(driver, server.url(name, scheme), server.url(name))
    yield application
    sandbox.stop()
    application.dispose()
    with psycopg.connect(application.outside_url) as connection:
        for table in BOTH:
            assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
    gc.collect()


def now(connection: sa.Connection) -> dt.datetime:
    return connection.execute(sa.select(sa.func.now())).scalar_one()


def now_of(engine: sa.Engine) -> dt.datetime:
    """A transaction's."""
    with engine.begin() as connection:
        return now(connection)


def insert(connection: sa.Connection, table: str, name: str) -> dt.datetime:
    return connection.execute(
        sa.text(f"INSERT INTO {table} (name) VALUES (:name) RETURNING made"), {"name": name}
    ).scalar_one()


def in_sandbox(app: App, case: Callable[..., Any]) -> Any:
    """Run the case as the application would, in a sandbox of its own."""
    engine = app.make_engine()

    def sandboxed() -> Any:
        with sandbox.sandboxed(engine) as box:
            return case(engine, box)

    return app.run(sandboxed)


# -- as in production ----------------------------------------------------------------------------


def test_now_moves_with_each_transaction_and_stands_still_within_one(clocked: App) -> None:
    def case(engine: sa.Engine, _: Any) -> None:
        earliest = dt.datetime.now(dt.UTC)
        for _ in range(3):
            with engine.begin() as connection:
                first = now(connection)
                insert(connection, "newer", f"{earliest}")
                assert now(connection) == first
                assert connection.scalar(sa.text("SELECT transaction_timestamp()")) == first
                assert earliest <= first < connection.scalar(sa.text("SELECT clock_timestamp()"))
            earliest = dt.datetime.now(dt.UTC)

    in_sandbox(clocked, case)


def test_a_transaction_that_only_reads_has_its_own_time_too(clocked: App) -> None:
    def case(engine: sa.Engine, _: Any) -> None:
        times = [now_of(engine) for _ in range(4)]
        assert sorted(set(times)) == times

    in_sandbox(clocked, case)


def test_a_transaction_begins_with_its_first_statement(clocked: App) -> None:
    def case(engine: sa.Engine, _: Any) -> None:
        with engine.connect() as connection:
            now_of(engine)
            before = dt.datetime.now(dt.UTC)
            assert now(connection) >= before

    in_sandbox(clocked, case)


@pytest.mark.parametrize("table", BOTH)
def test_column_defaults_follow_also_those_made_before(clocked: App, table: str) -> None:
    def case(engine: sa.Engine, _: Any) -> None:
        times = []
        for name in "abc":
            with engine.begin() as connection:
                time = now(connection)
                assert insert(connection, table, name) == time
                times.append(time)
        assert sorted(set(times)) == times
        with engine.connect() as connection:
            rows = connection.execute(
                sa.text(f"SELECT made, begun, day FROM {table} ORDER BY name")
            ).all()
        assert [tuple(row) for row in rows] == [(t, t, t.date()) for t in times]

    in_sandbox(clocked, case)


def test_each_autocommitted_statement_has_its_own_time(clocked: App) -> None:
    def case(engine: sa.Engine, _: Any) -> None:
        engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            times = [now(connection) for _ in range(3)]
            times += [insert(connection, "newer", name) for name in "abc"]
        assert sorted(set(times)) == times

    in_sandbox(clocked, case)


def test_transactions_that_interleave_keep_their_own_times(clocked: App) -> None:
    def case(engine: sa.Engine, _: Any) -> None:
        with engine.connect() as first, engine.connect() as second, engine.connect() as third:
            times = {connection: now(connection) for connection in (first, second, third)}
            assert len(set(times.values())) == 3
            for connection in (second, first, third, first, second, third, third, first):
                assert now(connection) == times[connection]
            third.rollback()
            times[third] = now(third)
            assert times[third] > max(times[first], times[second])
            for connection in (first, third, second):
                assert now(connection) == times[connection]

    in_sandbox(clocked, case)


def test_a_transaction_that_was_nested_upon_keeps_its_time(clocked: App) -> None:
    def case(engine: sa.Engine, _: Any) -> None:
        with engine.connect() as outer, engine.connect() as inner:
            outer_time = insert(outer, "newer", "outer")
            inner_time = insert(inner, "newer", "inner")
            assert outer_time < inner_time
            assert now(outer) == outer_time  # below the top, behind a guard
            assert now(inner) == inner_time
            inner.commit()
            assert insert(outer, "newer", "outer again") == outer_time
            assert now_of(engine) > inner_time
            assert now(outer) == outer_time
            outer.commit()

    in_sandbox(clocked, case)


@pytest.mark.parametrize("end", ["rollback", "commit"])
def test_the_end_of_a_savepoint_does_not_move_the_time(clocked: App, end: str) -> None:
    def case(engine: sa.Engine, _: Any) -> None:
        now_of(engine)
        with engine.begin() as connection:
            time = insert(connection, "newer", "a")
            savepoint = connection.begin_nested()
            assert insert(connection, "newer", "b") == time
            getattr(savepoint, end)()
            assert insert(connection, "newer", "c") == time

    in_sandbox(clocked, case)


def test_a_savepoint_that_failed_does_not_move_the_time(clocked: App) -> None:
    def case(engine: sa.Engine, _: Any) -> None:
        now_of(engine)
        with engine.begin() as connection:
            time = insert(connection, "newer", "a")
            with pytest.raises(sa.exc.IntegrityError), connection.begin_nested():
                insert(connection, "newer", "a")
            assert now(connection) == time

    in_sandbox(clocked, case)


def test_the_transaction_after_a_rollback_has_a_new_time(clocked: App) -> None:
    def case(engine: sa.Engine, _: Any) -> None:
        now_of(engine)
        with engine.connect() as connection:
            times = []
            for _ in range(3):
                times.append(insert(connection, "newer", "a"))
                connection.rollback()
        assert sorted(set(times)) == times

    in_sandbox(clocked, case)


def trips(app: App, work: Callable[[sa.Connection, int], Any]) -> int:
    """What five transactions that do this cost beyond their statements."""

    def case(engine: sa.Engine, box: sandbox.Sandbox) -> int:
        for number in range(5):
            with engine.connect() as connection:
                work(connection, number)
                connection.commit()
        return box.stats.round_trips

    in_sandbox(app, case)  # asks what has to be known of the database
    return in_sandbox(app, case)


def writing(connection: sa.Connection, number: int) -> None:
    connection.execute(sa.text(f"CREATE TABLE t{number} (made timestamptz DEFAULT now())"))
    connection.execute(sa.text(f"INSERT INTO t{number} DEFAULT VALUES"))
    now(connection)


def reading(connection: sa.Connection, number: int) -> None:
    connection.execute(sa.text(f"SELECT oid FROM pg_class LIMIT {number}"))


@pytest.mark.parametrize("work", [writing, reading])
def test_it_costs_no_round_trip(clocked: App, make_app: Callable[[str], App], work: Any) -> None:
    assert trips(clocked, work) == trips(make_app(clocked.driver), work)


@pytest.mark.parametrize("by", ["freezegun", "time_machine"])
def test_frozen_python_does_not_stop_the_database(clocked: App, by: str) -> None:
    def case(engine: sa.Engine, _: Any) -> None:
        before = dt.datetime.now(dt.UTC)
        with frozen(by):
            times = [now_of(engine) for _ in range(3)]
        assert before <= times[0] < times[1] < times[2]

    in_sandbox(clocked, case)


# -- as the test says ----------------------------------------------------------------------------


def frozen(by: str) -> Any:
    return (
        freeze_time(LONG_AGO, ignore=["asyncio"])
        if by == "freezegun"
        else time_machine.travel(LONG_AGO, tick=False)
    )


def test_a_fixed_time_holds_for_all_transactions_of_the_block(clocked: App) -> None:
    def case(engine: sa.Engine, _: Any) -> None:
        with sandbox.clock(LONG_AGO):
            for table in BOTH:
                with engine.begin() as connection:
                    assert insert(connection, table, "a") == LONG_AGO
                assert now_of(engine) == LONG_AGO
        assert now_of(engine) > LONG_AGO + A_MINUTE

    in_sandbox(clocked, case)


def test_the_time_may_be_set_before_the_first_statement_or_after(clocked: App) -> None:
    def case(engine: sa.Engine, _: Any) -> None:
        real = now_of(engine)
        with sandbox.clock(LONG_AGO):
            assert now_of(engine) == LONG_AGO
            with sandbox.clock(LONG_AGO + A_MINUTE):
                assert now_of(engine) == LONG_AGO + A_MINUTE
            assert now_of(engine) == LONG_AGO
        assert now_of(engine) > real

    in_sandbox(clocked, case)


def test_an_open_transaction_has_the_time_from_its_next_statement_on(clocked: App) -> None:
    def case(engine: sa.Engine, _: Any) -> None:
        with engine.connect() as connection:
            real = now(connection)
            with sandbox.clock(LONG_AGO):
                assert now(connection) == LONG_AGO
                assert insert(connection, "newer", "a") == LONG_AGO
            assert now(connection) >= real
            connection.rollback()

    in_sandbox(clocked, case)


def test_a_statement_that_does_not_name_now_has_the_time_too(clocked: App) -> None:
    """What it reads is a view, for instance."""

    def case(engine: sa.Engine, _: Any) -> None:
        with engine.begin() as connection:
            connection.execute(sa.text("CREATE VIEW today AS SELECT now() AS at"))
        view = sa.text("SELECT at FROM today")
        for at in (LONG_AGO, LONG_AGO + A_MINUTE):
            with sandbox.clock(at), engine.begin() as connection:
                assert connection.scalar(view) == at
        with engine.begin() as connection:
            assert connection.scalar(view) > LONG_AGO + A_MINUTE

    in_sandbox(clocked, case)


def test_a_moving_clock_moves_from_transaction_to_transaction(clocked: App) -> None:
    def case(engine: sa.Engine, _: Any) -> None:
        with sandbox.clock(LONG_AGO, moving=True):
            with engine.begin() as connection:
                first = now(connection)
                assert now(connection) == first
            second, third = now_of(engine), now_of(engine)
        assert LONG_AGO <= first < second < third < LONG_AGO + A_MINUTE

    in_sandbox(clocked, case)


@pytest.mark.parametrize("by", ["freezegun", "time_machine"])
def test_the_database_follows_python(clocked: App, by: str) -> None:
    def case(engine: sa.Engine, _: Any) -> None:
        with sandbox.clock():
            real = now_of(engine)
            with frozen(by) as control:
                assert now_of(engine) == LONG_AGO == dt.datetime.now(dt.UTC)
                with engine.begin() as connection:
                    assert insert(connection, "older", "a") == LONG_AGO
                    control.move_to(LONG_AGO + A_MINUTE)
                    assert now(connection) == LONG_AGO  # a transaction's time stands
                assert now_of(engine) == LONG_AGO + A_MINUTE
            assert real < now_of(engine)

    in_sandbox(clocked, case)


def test_the_time_goes_with_the_sandbox(clocked: App) -> None:
    engine = clocked.make_engine()
    process = sa.text("SELECT pg_backend_pid(), current_setting('sandbox.now', true)")

    def first() -> Any:
        with sandbox.sandboxed(engine), sandbox.clock(LONG_AGO), engine.begin() as connection:
            assert now(connection) == LONG_AGO
            return connection.execute(process).one()[0]

    def second() -> Any:
        with sandbox.sandboxed(engine), engine.begin() as connection:
            assert now(connection) > LONG_AGO + A_MINUTE
            return connection.execute(process).one()

    used = clocked.run(first)
    with psycopg.connect(clocked.outside_url) as outside:
        row = outside.execute("SELECT now()").fetchone()
        assert row is not None
        assert row[0] > LONG_AGO + A_MINUTE
    again, setting = clocked.run(second)
    # An event loop of its own means a connection of its own.
    assert again == used or clocked.is_async
    assert not setting or setting.startswith(str(dt.datetime.now(dt.UTC).year))


@pytest.mark.parametrize("other", [LONG_AGO + A_MINUTE, None])
def test_a_sandbox_in_another_thread_has_its_own_clock(
    clocked: App, other: dt.datetime | None
) -> None:
    turns = threading.Barrier(2, timeout=20)
    times: list[dt.datetime | None] = [None, None]

    def test(number: int, engine: sa.Engine, at: dt.datetime | None) -> None:
        with sandbox.sandboxed(engine), contextlib.ExitStack() as stack:
            if at is not None:
                stack.enter_context(sandbox.clock(at))
            turns.wait()
            times[number] = now_of(engine)
            turns.wait()

    threads = [
        threading.Thread(target=clocked.run, args=(test, number, clocked.make_engine(), at))
        for number, at in enumerate([LONG_AGO, other])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first, second = times
    assert first == LONG_AGO
    assert second is not None
    assert second == other or (other is None and second > LONG_AGO + A_MINUTE)


# -- databases that are not ours -----------------------------------------------------------------


def test_every_driver_finds_the_shadow(clocked: App, server: EmbeddedPostgres) -> None:
    name = f"test_clock_shadow_{clocked.driver}"
    server.create_database(name)
    databases_clock.arrange(server.url(name, "postgresql+psycopg"), "shadow")
    scheme = sa.make_url(clocked.url).drivername
    shadowed = App(clocked.driver, server.url(name, scheme), server.url(name))

    def case(engine: sa.Engine, _: Any) -> None:
        times = [now_of(engine) for _ in range(3)]
        assert sorted(set(times)) == times
        with sandbox.clock(LONG_AGO), engine.begin() as connection:
            assert now(connection) == LONG_AGO
            connection.execute(sa.text("CREATE TABLE t (made timestamptz DEFAULT now())"))
            assert connection.scalar(sa.text("SELECT 't'::regclass::text")) == "t"
            where = "SELECT relnamespace::regnamespace::text FROM pg_class WHERE relname = 't'"
            assert connection.scalar(sa.text(where)) == "public"

    for _ in range(2):
        in_sandbox(shadowed, case)
    sandbox.stop()
    shadowed.dispose()
    server.drop_database(name)


# -- what cannot follow --------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["CURRENT_TIMESTAMP", "current_date", "localtimestamp(0)"])
def test_key_words_are_warned_about_while_a_clock_is_set(clocked: App, text: str) -> None:
    def case(engine: sa.Engine, _: Any) -> None:
        with engine.begin() as connection:
            connection.execute(sa.text(f"SELECT {text}"))
            with sandbox.clock(LONG_AGO):
                with pytest.warns(ClockWarning, match=r"test_clock\.py"):
                    connection.execute(sa.text(f"SELECT {text}"))
                connection.execute(sa.text(f"SELECT {text}"))  # once is enough
                connection.execute(sa.text("SELECT 'current_date'"))

    in_sandbox(clocked, case)


def test_a_database_that_does_not_follow_is_refused(pg_app: App) -> None:
    def known(engine: sa.Engine, _: Any) -> None:
        real = now_of(engine)
        with pytest.raises(UnsupportedInSandboxError, match="sandbox_clock = replace"):
            sandbox.clock(LONG_AGO).__enter__()
        assert now_of(engine) == real  # as the server has it: the sandbox is one transaction

    def unknown(engine: sa.Engine, _: Any) -> None:
        with sandbox.clock(LONG_AGO):
            for _ in range(2):  # an application that tries again gets no other time in silence
                with pytest.raises(UnsupportedInSandboxError, match="sandbox_clock = replace"):
                    now_of(engine)
        assert now_of(engine) > LONG_AGO

    in_sandbox(pg_app, unknown)
    in_sandbox(pg_app, known)

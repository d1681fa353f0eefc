"""What a real COMMIT does beyond keeping the rows, and a sandbox's commit does too.

Deferred constraints and triggers, SET LOCAL, ON COMMIT, cursors, READ ONLY and isolation levels.
Each case runs on real connections first, which proves that it says what production does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

import sandbox
from sandbox.databases.backends import EmbeddedPostgres
from sandbox.errors import (
    InterleavedTransactionError,
    IsolationLevelWarning,
    SandboxBusyError,
    UnsupportedInSandboxError,
)
from tests.fidelity.cases import constraints, levels, objects, settings
from tests.fidelity.cases.words import SCHEMA, TABLES, one, run
from tests.fix_db import POSTGRESQL, App, items, metadata

Case = Callable[[sa.Engine], None]


@pytest.fixture(scope="module")
def make_url(server: EmbeddedPostgres) -> Iterator[Callable[[str], tuple[str, str]]]:
    made: list[str] = []
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("CREATE ROLE reader_of_tests")

    def make(driver: str) -> tuple[str, str]:
        name = f"test_emulation_{driver}"
        if name not in made:
            server.create_database(name)
            made.append(name)
            engine = sa.create_engine(server.url(name, "postgresql+psycopg"))
            with engine.begin() as connection:
                metadata.create_all(connection)
                connection.exec_driver_sql(SCHEMA)
            engine.dispose()
        sqlalchemy_name = "psycopg" if driver == "psycopg_async" else driver
        return server.url(name, f"postgresql+{sqlalchemy_name}"), server.url(name)

    yield make
    for name in made:
        server.drop_database(name)
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("DROP ROLE reader_of_tests")


@pytest.fixture(params=POSTGRESQL)
def app(
    request: pytest.FixtureRequest, make_url: Callable[[str], tuple[str, str]]
) -> Iterator[App]:
    application = App(request.param, *make_url(request.param))
    yield application
    sandbox.stop()
    application.dispose()
    left = count_all(application)
    clean(application)
    assert left == 0, "rows left behind"


def count_all(app: App) -> int:
    with psycopg.connect(app.outside_url) as connection:
        return sum(
            connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # type: ignore[index]
            for table in TABLES.split(", ")
        )


def clean(app: App) -> None:
    with psycopg.connect(app.outside_url) as connection:
        connection.execute(f"TRUNCATE {TABLES}")


CASES: tuple[Case, ...] = (
    *constraints.CASES,
    *settings.CASES,
    *objects.CASES,
    *levels.CASES,
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_in_a_sandbox_as_in_production(app: App, case: Case) -> None:
    app.run(_in_production, app.make_engine(), case)
    clean(app)

    engine = app.make_engine()
    with sandbox.sandboxed(engine, busy_after=2):
        app.run(case, engine)
        assert count_all(app) == 0


def _in_production(engine: sa.Engine, case: Case) -> None:
    try:
        case(engine)
    finally:
        engine.dispose()


# The first transaction of a sandbox decides on the level.
FIRST = {
    levels.serializable_from_the_first,
    levels.serializable_by_statement,
    levels.what_was_asked_is_read_back,
}


@pytest.mark.parametrize(
    "case", [case for case in CASES if case not in FIRST], ids=lambda case: case.__name__
)
def test_also_where_something_went_before(app: App, case: Case) -> None:
    """The first transaction of a sandbox is the outer one; this case's are all inside of it."""
    engine = app.make_engine()

    def later() -> None:
        with engine.begin() as connection:
            run(connection, "INSERT INTO accounts VALUES (0, 0)")
            run(connection, "DELETE FROM accounts")
        case(engine)

    with sandbox.sandboxed(engine, busy_after=2):
        app.run(later)


# -- what cannot be as in production ---------------------------------------------------------------


def _late(engine: sa.Engine) -> str:
    with engine.begin() as connection:
        run(connection, "INSERT INTO items (name) VALUES ('a')")
    with engine.connect().execution_options(isolation_level="SERIALIZABLE") as connection:
        return str(one(connection, "SHOW transaction_isolation"))


def test_a_stronger_level_that_comes_late_is_refused(app: App) -> None:
    engine = app.make_engine()
    with sandbox.sandboxed(engine):
        with pytest.raises(UnsupportedInSandboxError, match=r"(?s)SERIALIZABLE.*isolation_level="):
            app.run(_late, engine)


def test_a_stronger_level_as_text_that_comes_late_is_refused(app: App) -> None:
    engine = app.make_engine()

    def late() -> None:
        with engine.connect() as connection:
            run(connection, "INSERT INTO items (name) VALUES ('a')")
            connection.commit()
            run(connection, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")

    with sandbox.sandboxed(engine):
        with pytest.raises(UnsupportedInSandboxError, match=r"(?s)REPEATABLE READ.*isolation"):
            app.run(late)


def test_after_the_refusal_the_sandbox_goes_on(app: App) -> None:
    engine = app.make_engine()

    def go_on() -> list[Any]:
        with pytest.raises(UnsupportedInSandboxError):
            _late(engine)
        with engine.begin() as connection:
            run(connection, "INSERT INTO items (name) VALUES ('b')")
            return run(connection, "SELECT name FROM items ORDER BY name")

    with sandbox.sandboxed(engine):
        assert app.run(go_on) == ["a", "b"]


def test_a_stronger_level_that_comes_late_is_let_through_with_a_warning(app: App) -> None:
    engine = app.make_engine()
    with sandbox.sandboxed(engine, late_isolation="warn"):
        with pytest.warns(IsolationLevelWarning, match="SERIALIZABLE"):
            assert app.run(_late, engine) == "serializable"


def test_the_level_of_the_checkout_is_the_outer_transactions(app: App) -> None:
    engine = app.make_engine()
    with sandbox.sandboxed(engine, isolation_level="SERIALIZABLE"):
        assert app.run(_late, engine) == "serializable"


def test_a_constraint_that_both_have_violated_is_reported_by_the_last_commit(app: App) -> None:
    """The server does not say whose row it is; but it is never kept in silence."""
    engine = app.make_engine()

    def both() -> None:
        with Session(engine) as parent:
            run(parent, "INSERT INTO children VALUES (1, 1)")
            with Session(engine) as child:
                run(child, "INSERT INTO children VALUES (2, -1)")
                child.commit()
            run(parent, "INSERT INTO parents VALUES (1)")
            with pytest.raises(sa.exc.IntegrityError, match="children_parent"):
                parent.commit()
            parent.rollback()
            with pytest.raises(InterleavedTransactionError):
                run(parent, "SELECT id FROM children")

    with sandbox.sandboxed(engine):
        app.run(both)


def test_a_parents_violation_undoes_the_childs_commit_and_says_so(app: App) -> None:
    """The child's work lies inside of the parent's, which is rolled back."""
    assert app.run(_parent_never_repairs, app.make_engine()) == [7]
    clean(app)

    engine = app.make_engine()
    with sandbox.sandboxed(engine):
        with pytest.raises(InterleavedTransactionError):
            app.run(_parent_never_repairs, engine)


def _parent_never_repairs(engine: sa.Engine) -> list[Any]:
    with Session(engine) as parent:
        run(parent, "INSERT INTO children VALUES (1, -1)")
        with Session(engine) as child:
            run(child, "INSERT INTO parents VALUES (7)")
            child.commit()
        with pytest.raises(sa.exc.IntegrityError, match="children_parent"):
            parent.commit()
        parent.rollback()
    with engine.connect() as connection:
        found = run(connection, "SELECT id FROM parents")
    engine.dispose()
    return found


def test_a_write_inside_anothers_that_has_become_read_only_is_refused(app: App) -> None:
    """The server would take it for a write of the other, which may not write any more."""
    engine = app.make_engine()

    def both() -> None:
        with engine.connect() as first, engine.connect() as second:
            run(first, "INSERT INTO items (name) VALUES ('a')")
            run(first, "SET TRANSACTION READ ONLY")
            with pytest.raises(SandboxBusyError, match="has written and then become READ ONLY"):
                run(second, "INSERT INTO items (name) VALUES ('b')")
            second.rollback()
            first.commit()
            run(second, "INSERT INTO items (name) VALUES ('b')")
            second.commit()
            assert run(second, "SELECT name FROM items ORDER BY name") == ["a", "b"]

    with sandbox.sandboxed(engine):
        app.run(both)


# -- round trips -----------------------------------------------------------------------------------


@pytest.fixture(params=POSTGRESQL)
def without_deferrable(request: pytest.FixtureRequest, make_app: Callable[[str], App]) -> App:
    """An application whose schema has no deferrable constraint."""
    return make_app(request.param)


def _commits(engine: sa.Engine, count: int) -> None:
    for number in range(count):
        with engine.begin() as connection:
            connection.execute(sa.insert(items).values(name=str(number)))


def _added(app: App, engine: sa.Engine, count: int) -> int:
    with sandbox.sandboxed(engine) as box:
        app.run(_commits, engine, count)
    return box.stats.round_trips


def test_without_deferrable_constraints_a_commit_costs_nothing_more(
    without_deferrable: App,
) -> None:
    app = without_deferrable
    engine = app.make_engine()
    for _ in range(3):
        _added(app, engine, 1)

    # BEGIN, a SAVEPOINT for each that is not the first, ROLLBACK.
    assert [_added(app, engine, count) for count in (1, 2, 4)] == [2, 3, 5]


def test_deferrable_constraints_cost_a_commit_that_wrote_one_round_trip(app: App) -> None:
    engine = app.make_engine()
    for _ in range(3):
        _added(app, engine, 1)

    # The SAVEPOINT, and the check.
    assert _added(app, engine, 3) - _added(app, engine, 2) == 2


COSTS = (
    ("INSERT INTO items (name) VALUES ('a')", "COMMIT", 1),
    ("SELECT name FROM items", "COMMIT", 0),
    ("SET LOCAL app.tenant = 'one'", "COMMIT", 1),
    ("NOTIFY orders", "COMMIT", 1),
    ("DECLARE reader CURSOR FOR SELECT 1", "COMMIT", 2),
    ("CREATE TEMP TABLE heap (x integer) ON COMMIT DROP", "COMMIT", 3),
    ("SET LOCAL app.tenant = 'one'", "ROLLBACK", 1),
    ("SELECT name FROM items", "ROLLBACK", 0),
)


@pytest.mark.filterwarnings("ignore::sandbox.errors.UndeliveredNotificationWarning")
@pytest.mark.parametrize(("statement", "end", "cost"), COSTS)
def test_round_trips_of_one_more_transaction(
    without_deferrable: App, statement: str, end: str, cost: int
) -> None:
    """What one more transaction of this kind adds: the savepoint, and what its end has to do."""
    app = without_deferrable
    engine = app.make_engine()

    def work(count: int) -> None:
        with engine.connect() as connection:
            # The first transaction needs no savepoint.
            run(connection, "DELETE FROM items")
            connection.commit()
            for _ in range(count):
                run(connection, statement.replace("'a'", f"'{_}'"))
                connection.commit() if end == "COMMIT" else connection.rollback()

    def added(count: int) -> int:
        with sandbox.sandboxed(engine) as box:
            app.run(work, count)
        return box.stats.round_trips

    for _ in range(3):
        added(1)
    assert added(4) - added(3) == cost


# -- SQLite ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["pysqlite", "aiosqlite"])
def test_on_sqlite_a_savepoint_alone_is_committed_when_it_is_released(
    make_app: Callable[[str], App], driver: str
) -> None:
    """The sqlite3 module begins no transaction for a SAVEPOINT, so that one is its own."""
    app = make_app(driver)

    def savepoint_alone(engine: sa.Engine) -> list[Any]:
        with engine.connect() as connection:
            with connection.begin_nested():
                run(connection, "INSERT INTO items (name) VALUES ('a')")
            connection.rollback()
            seen = run(connection, "SELECT name FROM items")
        engine.dispose()
        return seen

    in_production = app.run(savepoint_alone, app.make_engine())
    app.empty()
    engine = app.make_engine()
    with sandbox.sandboxed(engine):
        assert app.run(savepoint_alone, engine) == in_production

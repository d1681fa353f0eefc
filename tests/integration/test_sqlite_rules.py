"""SQLite's own rules, in a sandbox as on a connection of one's own."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

import sandbox
from tests.fix_db import App, items

DRIVERS = ("pysqlite", "aiosqlite")
RETURNING = "INSERT INTO items (name) VALUES ('a'), ('b'), ('c') RETURNING name"


def names(engine: sa.Engine) -> list[str]:
    with engine.connect() as connection:
        return list(connection.scalars(sa.select(items.c.name).order_by(items.c.id)))


def clear(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.delete(items))


Runner = Callable[[App, Callable[[sa.Engine], None]], None]


@pytest.fixture(params=["sandboxed", "passing through"])
def run(request: pytest.FixtureRequest) -> Runner:
    """Run a case in a sandbox, or on connections of its own, where it holds as well."""

    def runner(app: App, case: Callable[[sa.Engine], None]) -> None:
        engine = app.make_engine()
        if request.param == "sandboxed":
            with sandbox.sandboxed(engine):
                app.run(case, engine)
        else:
            sandbox.mode(engine, "auto")
            app.run(case, engine)
            app.run(clear, engine)

    return runner


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("autocommit", [True, False])
def test_a_savepoint_that_began_the_transaction_commits_it_when_it_is_released(
    make_app: Callable[[str], App],
    run: Runner,
    driver: str,
    autocommit: bool,
) -> None:
    def case(engine: sa.Engine) -> None:
        level = {"isolation_level": "AUTOCOMMIT"} if autocommit else {}
        with engine.connect().execution_options(**level) as connection:
            connection.exec_driver_sql("SAVEPOINT outer_one")
            connection.exec_driver_sql("INSERT INTO items (name) VALUES ('a')")
            connection.exec_driver_sql("SAVEPOINT inner_one")
            connection.exec_driver_sql("INSERT INTO items (name) VALUES ('b')")
            connection.exec_driver_sql("RELEASE inner_one")
            connection.exec_driver_sql("ROLLBACK TO outer_one")
            connection.exec_driver_sql("INSERT INTO items (name) VALUES ('c')")
            connection.exec_driver_sql("RELEASE outer_one")
            connection.rollback()
        assert names(engine) == ["c"]

    run(make_app(driver), case)


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_savepoint_inside_a_transaction_does_not_commit_it(
    make_app: Callable[[str], App],
    run: Runner,
    driver: str,
) -> None:
    def case(engine: sa.Engine) -> None:
        with engine.connect() as connection:
            connection.exec_driver_sql("INSERT INTO items (name) VALUES ('a')")
            connection.exec_driver_sql("SAVEPOINT one")
            connection.exec_driver_sql("RELEASE one")
            connection.rollback()
        assert names(engine) == []

    run(make_app(driver), case)


def test_rows_of_a_write_that_wait_to_be_fetched_refuse_the_commit(
    make_app: Callable[[str], App],
    run: Runner,
) -> None:
    def case(engine: sa.Engine) -> None:
        raw = engine.raw_connection()
        cursor: Any = raw.cursor()
        cursor.execute(RETURNING)
        assert cursor.fetchone() == ("a",)
        with pytest.raises(sqlite3.OperationalError, match="SQL statements in progress"):
            raw.commit()
        assert cursor.fetchmany(1) == [("b",)]
        assert list(cursor) == [("c",)]
        raw.commit()
        cursor.execute("SELECT name FROM items")
        assert cursor.fetchone() == ("a",)
        raw.commit()
        cursor.execute("DELETE FROM items RETURNING name")
        raw.rollback()
        cursor.execute(RETURNING.replace("'a'", "'d'").replace("'b'", "'e'").replace("'c'", "'f'"))
        cursor.close()
        raw.commit()
        raw.close()
        assert names(engine) == ["a", "b", "c", "d", "e", "f"]

    run(make_app("pysqlite"), case)


def test_rows_of_a_write_that_wait_to_be_fetched_hinder_nobody(
    make_app: Callable[[str], App],
) -> None:
    engine = make_app("pysqlite").make_engine()
    with sandbox.sandboxed(engine):
        first, second = engine.raw_connection(), engine.raw_connection()
        cursor = first.cursor()
        cursor.execute(RETURNING)
        assert cursor.fetchone() == ("a",)
        other = second.cursor()
        other.execute("INSERT INTO items (name) VALUES ('x')")
        second.commit()
        assert [name for (name,) in cursor.fetchall()] == ["b", "c"]
        first.commit()
        first.close()
        second.close()
        assert names(engine) == ["a", "b", "c", "x"]

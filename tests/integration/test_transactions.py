"""What an application does in its transactions, sandboxed, on every driver.

One case list: synchronous drivers run it as it stands, asynchronous ones in SQLAlchemy's greenlet.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

import sandbox
from tests.fix_db import DRIVERS, App, items

Case = Callable[[sa.Engine], None]


def names(connection: sa.Connection | Session) -> list[str]:
    return list(connection.execute(sa.select(items.c.name).order_by(items.c.id)).scalars())


def add(connection: sa.Connection | Session, *new: str) -> None:
    for name in new:
        connection.execute(sa.insert(items).values(name=name))


def core_begin_commits(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        add(connection, "a")
    with engine.connect() as connection:
        assert names(connection) == ["a"]


def core_begin_rolls_back_on_error(engine: sa.Engine) -> None:
    with pytest.raises(ZeroDivisionError), engine.begin() as connection:
        add(connection, "a")
        _ = 1 / 0
    with engine.connect() as connection:
        assert names(connection) == []


def commit_as_you_go(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        add(connection, "a")
        connection.commit()
        add(connection, "b")
        connection.rollback()
        assert names(connection) == ["a"]
        connection.commit()
        add(connection, "c")
        connection.commit()
        assert names(connection) == ["a", "c"]


def what_is_not_committed_is_gone(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        add(connection, "a")
    with engine.connect() as connection:
        assert names(connection) == []


def orm_session_commits_and_rolls_back(engine: sa.Engine) -> None:
    with Session(engine) as session:
        add(session, "a")
        session.commit()
        add(session, "b")
        session.rollback()
        assert names(session) == ["a"]


def orm_begin_nested(engine: sa.Engine) -> None:
    with Session(engine) as session:
        add(session, "a")
        with session.begin_nested():
            add(session, "b")
        with pytest.raises(ZeroDivisionError), session.begin_nested():
            add(session, "c")
            _ = 1 / 0
        add(session, "d")
        session.commit()
        assert names(session) == ["a", "b", "d"]


def nested_three_deep(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        add(connection, "a")
        outer = connection.begin_nested()
        add(connection, "b")
        inner = connection.begin_nested()
        add(connection, "c")
        inner.commit()
        outer.rollback()
        add(connection, "d")
        assert names(connection) == ["a", "d"]


def duplicate_key_then_rollback_then_go_on(engine: sa.Engine) -> None:
    with Session(engine) as session:
        add(session, "a")
        session.commit()
        with pytest.raises(sa.exc.IntegrityError):
            add(session, "a")
        session.rollback()
        add(session, "b")
        session.commit()
        assert names(session) == ["a", "b"]


def duplicate_key_inside_a_savepoint(engine: sa.Engine) -> None:
    with Session(engine) as session:
        add(session, "a")
        with pytest.raises(sa.exc.IntegrityError), session.begin_nested():
            add(session, "a")
        add(session, "b")
        session.commit()
        assert names(session) == ["a", "b"]


def autocommit_connection(engine: sa.Engine) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        add(connection, "a")
        add(connection, "b")
        assert names(connection) == ["a", "b"]
    with engine.connect() as connection:
        assert names(connection) == ["a", "b"]


def autocommit_survives_a_failing_statement(engine: sa.Engine) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        add(connection, "a")
        with pytest.raises(sa.exc.IntegrityError):
            add(connection, "a")
        with pytest.raises(sa.exc.DBAPIError):
            connection.execute(sa.text("SELECT * FROM nowhere"))
        add(connection, "b")
        assert names(connection) == ["a", "b"]


def autocommit_engine(engine: sa.Engine) -> None:
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        add(connection, "a")
    with engine.connect() as connection:
        add(connection, "b")
        connection.rollback()
        assert names(connection) == ["a"]


def raw_connection(engine: sa.Engine) -> None:
    raw = engine.raw_connection()
    try:
        cursor = raw.cursor()
        cursor.execute("INSERT INTO items (name) VALUES ('a')")
        cursor.close()
        raw.commit()
        cursor = raw.cursor()
        cursor.execute("INSERT INTO items (name) VALUES ('b')")
        raw.rollback()
        cursor.execute("SELECT name FROM items")
        assert [tuple(row) for row in cursor.fetchall()] == [("a",)]
        cursor.close()
    finally:
        raw.close()


def commit_as_text(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        add(connection, "a")
        connection.exec_driver_sql("COMMIT")
        add(connection, "b")
        connection.exec_driver_sql("ROLLBACK")
        assert names(connection) == ["a"]


def begin_as_text_in_autocommit(engine: sa.Engine) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("BEGIN")
        add(connection, "a")
        connection.exec_driver_sql("ROLLBACK")
        connection.exec_driver_sql("BEGIN")
        add(connection, "b")
        connection.exec_driver_sql("COMMIT")
        add(connection, "c")
        assert names(connection) == ["b", "c"]


def savepoints_as_text(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        add(connection, "a")
        connection.exec_driver_sql("SAVEPOINT here")
        add(connection, "b")
        connection.exec_driver_sql("SAVEPOINT here")
        add(connection, "c")
        connection.exec_driver_sql("ROLLBACK TO SAVEPOINT here")
        connection.exec_driver_sql("RELEASE SAVEPOINT here")
        connection.exec_driver_sql("ROLLBACK TO SAVEPOINT here")
        connection.commit()
        assert names(connection) == ["a"]


def an_unknown_savepoint_is_the_servers_error(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        add(connection, "a")
        with pytest.raises(sa.exc.DBAPIError, match=r"(?i)savepoint"):
            connection.exec_driver_sql("ROLLBACK TO SAVEPOINT nowhere")
        connection.rollback()
        assert names(connection) == []


def a_savepoint_name_is_used_again_by_the_next_transaction(engine: sa.Engine) -> None:
    for name in ("a", "b"):
        with engine.begin() as connection:
            with connection.begin_nested():
                add(connection, name)
    with engine.connect() as connection:
        assert names(connection) == ["a", "b"]


def two_connections_one_after_the_other(engine: sa.Engine) -> None:
    first, second = engine.connect(), engine.connect()
    add(first, "a")
    first.commit()
    assert names(second) == ["a"]
    add(second, "b")
    second.commit()
    assert names(first) == ["a", "b"]
    first.close()
    second.close()


def a_session_inside_anothers_transaction(engine: sa.Engine) -> None:
    with Session(engine) as outer:
        add(outer, "a")
        with Session(engine) as inner:
            add(inner, "b")
            inner.commit()
        outer.commit()
        assert names(outer) == ["a", "b"]


def a_reader_left_open_hinders_nobody(engine: sa.Engine) -> None:
    with Session(engine) as reader:
        assert names(reader) == []
        with Session(engine) as writer:
            add(writer, "a")
            writer.commit()
            add(writer, "b")
            writer.rollback()
        assert names(reader) == ["a"]
        add(reader, "c")
        reader.commit()
        assert names(reader) == ["a", "c"]


def executemany_and_returning(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.insert(items), [{"name": name} for name in "abc"])
        ids = connection.execute(
            sa.insert(items).returning(items.c.id), [{"name": name} for name in "de"]
        ).scalars()
        assert len(list(ids)) == 2
    with engine.connect() as connection:
        assert names(connection) == list("abcde")


def server_side_cursor(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.insert(items), [{"name": f"n{number:03}"} for number in range(120)])
    with engine.connect() as connection:
        streaming = connection.execution_options(stream_results=True, yield_per=20)
        result = streaming.execute(sa.select(items.c.name).order_by(items.c.name))
        assert len([row for part in result.partitions() for row in part]) == 120


def schema_changes_are_contained(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE extra (id integer primary key)")
        connection.exec_driver_sql("INSERT INTO extra VALUES (1)")
    assert sa.inspect(engine).has_table("extra")


def dispose_keeps_the_sandbox(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        add(connection, "a")
    engine.dispose()
    with engine.connect() as connection:
        assert names(connection) == ["a"]


CASES: tuple[Case, ...] = (
    core_begin_commits,
    core_begin_rolls_back_on_error,
    commit_as_you_go,
    what_is_not_committed_is_gone,
    orm_session_commits_and_rolls_back,
    orm_begin_nested,
    nested_three_deep,
    duplicate_key_then_rollback_then_go_on,
    duplicate_key_inside_a_savepoint,
    autocommit_connection,
    autocommit_survives_a_failing_statement,
    autocommit_engine,
    raw_connection,
    commit_as_text,
    begin_as_text_in_autocommit,
    savepoints_as_text,
    an_unknown_savepoint_is_the_servers_error,
    a_savepoint_name_is_used_again_by_the_next_transaction,
    two_connections_one_after_the_other,
    a_session_inside_anothers_transaction,
    a_reader_left_open_hinders_nobody,
    executemany_and_returning,
    server_side_cursor,
    schema_changes_are_contained,
    dispose_keeps_the_sandbox,
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_sandboxed_as_in_production_and_nothing_left(app: App, case: Case) -> None:
    engine = app.make_engine()
    with sandbox.sandboxed(engine):
        app.run(case, engine)
    assert app.names() == []


# What cannot be done on real connections of these databases, by anybody.
IMPOSSIBLE = {
    # A second writer waits for the file.
    ("pysqlite", a_session_inside_anothers_transaction),
    ("aiosqlite", a_session_inside_anothers_transaction),
    # These drivers do not see a COMMIT that is text, and do not begin again after it.
    ("psycopg2", commit_as_text),
    ("asyncpg", commit_as_text),
}
REAL = [(d, case) for d in DRIVERS for case in CASES if (d, case) not in IMPOSSIBLE]


@pytest.mark.parametrize(("driver", "case"), REAL, ids=lambda p: getattr(p, "__name__", p))
def test_passing_through_as_in_production(
    make_app: Callable[[str], App], driver: str, case: Case
) -> None:
    """The same cases on real connections: they hold in production, and in mode auto."""
    app = make_app(driver)
    engine = app.make_engine()
    sandbox.mode(engine, "auto")
    app.run(case, engine)
    app.run(_clean_up, engine)


def _clean_up(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.delete(items))
        connection.exec_driver_sql("DROP TABLE IF EXISTS extra")

"""Temporary tables and cursors."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from tests.fidelity.cases.words import autocommit, run

__all__ = ("CASES",)


def on_commit_drop(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        for _ in range(2):
            run(connection, 'CREATE TEMP TABLE "A Heap" (x integer) ON COMMIT DROP')
            run(connection, 'INSERT INTO "A Heap" VALUES (1)')
            assert run(connection, 'SELECT x FROM "A Heap"') == [1]
            connection.commit()
        with pytest.raises(sa.exc.ProgrammingError, match="A Heap"):
            run(connection, 'SELECT x FROM "A Heap"')
        connection.rollback()
        run(connection, "CREATE TEMPORARY TABLE heap ON COMMIT DROP AS SELECT 1 AS x")
        connection.rollback()
        run(connection, "CREATE TEMPORARY TABLE heap ON COMMIT DROP AS SELECT 1 AS x")
        run(connection, "DROP TABLE heap")
        connection.commit()


def on_commit_delete_rows(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        run(connection, "CREATE TEMP TABLE heap (x integer) ON COMMIT DELETE ROWS")
        run(connection, "INSERT INTO heap VALUES (1)")
        connection.commit()
        for _ in range(2):
            assert run(connection, "SELECT x FROM heap") == []
            run(connection, "INSERT INTO heap VALUES (2)")
            assert run(connection, "SELECT x FROM heap") == [2]
            connection.commit()
        run(connection, "DROP TABLE heap")
        connection.commit()


def on_commit_preserve_rows(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        run(connection, "CREATE TEMP TABLE heap (x integer) ON COMMIT PRESERVE ROWS")
        run(connection, "INSERT INTO heap VALUES (1)")
        connection.commit()
        assert run(connection, "SELECT x FROM heap") == [1]
        run(connection, "DROP TABLE heap")
        connection.commit()


def on_commit_in_autocommit(engine: sa.Engine) -> None:
    with autocommit(engine) as connection:
        run(connection, "CREATE TEMP TABLE heap (x integer) ON COMMIT DROP")
        with pytest.raises(sa.exc.ProgrammingError, match="heap"):
            run(connection, "SELECT x FROM heap")


def on_commit_drop_by_another_role(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        run(connection, "CREATE TEMP TABLE heap (x integer) ON COMMIT DROP")
        run(connection, "SET LOCAL ROLE reader_of_tests")
        connection.commit()
        with pytest.raises(sa.exc.ProgrammingError, match="heap"):
            run(connection, "SELECT x FROM heap")


def on_commit_drop_in_a_read_only_transaction(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        run(connection, "CREATE TEMP TABLE heap (x integer) ON COMMIT DROP")
        run(connection, "SET TRANSACTION READ ONLY")
        connection.commit()
        with pytest.raises(sa.exc.ProgrammingError, match="heap"):
            run(connection, "SELECT x FROM heap")


def on_commit_drop_beside_a_read_only_one(engine: sa.Engine) -> None:
    with engine.connect() as writer, engine.connect() as reader:
        run(writer, "CREATE TEMP TABLE heap (x integer) ON COMMIT DROP")
        run(reader, "SET TRANSACTION READ ONLY")
        run(reader, "SELECT name FROM items")
        writer.commit()
        with pytest.raises(sa.exc.ProgrammingError, match="heap"):
            run(writer, "SELECT x FROM heap")


def cursor_without_hold(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        for _ in range(2):
            run(connection, "DECLARE reader CURSOR FOR SELECT 1")
            assert run(connection, "FETCH reader") == [1]
            connection.commit()
        with pytest.raises(sa.exc.DBAPIError, match="reader"):
            run(connection, "FETCH reader")


def cursor_with_hold(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        run(connection, "DECLARE reader CURSOR WITH HOLD FOR SELECT generate_series(1, 3)")
        assert run(connection, "FETCH reader") == [1]
        connection.commit()
        assert run(connection, "FETCH reader") == [2]
        connection.rollback()
        run(connection, "CLOSE reader")
        connection.commit()
        with pytest.raises(sa.exc.DBAPIError, match="reader"):
            run(connection, "FETCH reader")


CASES = (
    on_commit_drop,
    on_commit_delete_rows,
    on_commit_preserve_rows,
    on_commit_in_autocommit,
    on_commit_drop_by_another_role,
    on_commit_drop_in_a_read_only_transaction,
    on_commit_drop_beside_a_read_only_one,
    cursor_without_hold,
    cursor_with_hold,
)

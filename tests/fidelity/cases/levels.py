"""READ ONLY and isolation levels."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from tests.fidelity.cases.words import one, run

__all__ = ("CASES",)


def read_only_refuses_writes(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        for begin in ("SET TRANSACTION READ ONLY", "SET LOCAL transaction_read_only = on"):
            run(connection, begin)
            assert run(connection, "SELECT name FROM items") == []
            with pytest.raises(sa.exc.DBAPIError, match="read-only"):
                run(connection, "INSERT INTO items (name) VALUES ('a')")
            connection.rollback()
    with engine.connect().execution_options(postgresql_readonly=True) as connection:
        assert one(connection, "SHOW transaction_read_only") == "on"
        with pytest.raises(sa.exc.DBAPIError, match="read-only"):
            run(connection, "INSERT INTO items (name) VALUES ('a')")


def read_only_ends_with_its_transaction(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        for number, end in enumerate((connection.commit, connection.rollback)):
            run(connection, "SET TRANSACTION READ ONLY")
            run(connection, "SELECT name FROM items")
            end()
            run(connection, f"INSERT INTO items (name) VALUES ('{number}')")
            connection.commit()


def read_only_is_not_anothers(engine: sa.Engine) -> None:
    with engine.connect() as reader, engine.connect() as writer:
        run(reader, "SET TRANSACTION READ ONLY")
        assert run(reader, "SELECT name FROM items") == []
        run(writer, "INSERT INTO items (name) VALUES ('a')")
        writer.commit()
        assert run(reader, "SELECT name FROM items") == ["a"]
        with pytest.raises(sa.exc.DBAPIError, match="read-only"):
            run(reader, "INSERT INTO items (name) VALUES ('b')")


def serializable_from_the_first(engine: sa.Engine) -> None:
    with engine.connect().execution_options(isolation_level="SERIALIZABLE") as connection:
        run(connection, "INSERT INTO items (name) VALUES ('a')")
        assert one(connection, "SHOW transaction_isolation") == "serializable"
        assert one(connection, "SHOW TRANSACTION ISOLATION LEVEL") == "serializable"
        assert connection.get_isolation_level() == "SERIALIZABLE"
        connection.commit()


def serializable_by_statement(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        run(connection, "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        assert one(connection, "SHOW transaction_isolation") == "serializable"
        run(connection, "INSERT INTO items (name) VALUES ('a')")
        connection.commit()
        assert one(connection, "SHOW transaction_isolation") == "read committed"


def what_was_asked_is_read_back(engine: sa.Engine) -> None:
    with engine.connect().execution_options(isolation_level="SERIALIZABLE") as connection:
        run(connection, "INSERT INTO items (name) VALUES ('a')")
        connection.commit()
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        assert connection.get_isolation_level() == "REPEATABLE READ"
        assert one(connection, "SHOW transaction_isolation") == "repeatable read"
    with engine.connect() as connection:
        assert connection.get_isolation_level() == "READ COMMITTED"
        assert one(connection, "SHOW transaction_isolation") == "read committed"
        assert connection.default_isolation_level == "READ COMMITTED"


CASES = (
    read_only_refuses_writes,
    read_only_ends_with_its_transaction,
    read_only_is_not_anothers,
    serializable_from_the_first,
    serializable_by_statement,
    what_was_asked_is_read_back,
)

"""SET, SET LOCAL, set_config() and roles."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from tests.fidelity.cases.words import autocommit, one, run, tenant

__all__ = ("CASES",)


def set_local_ends_at_commit_and_rollback(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        for end in (connection.commit, connection.rollback):
            run(connection, "SET LOCAL app.tenant = 'one'")
            assert tenant(connection) == "one"
            end()
            assert tenant(connection) == ""
            connection.rollback()


def set_local_in_its_forms(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        zone = one(connection, "SHOW TimeZone")
        path = one(connection, "SHOW search_path")
        run(connection, "SET LOCAL TIME ZONE 'Asia/Tokyo'")
        run(connection, "set local Search_Path to other, public")
        run(connection, "SET LOCAL statement_timeout TO '7s'")
        run(connection, "SELECT * FROM only_here")
        assert one(connection, "SHOW TimeZone") == "Asia/Tokyo"
        connection.commit()
        assert one(connection, "SHOW TimeZone") == zone
        assert one(connection, "SHOW search_path") == path
        assert one(connection, "SHOW statement_timeout") == "0"
        with pytest.raises(sa.exc.ProgrammingError, match="only_here"):
            run(connection, "SELECT * FROM only_here")


def set_config_in_its_forms(engine: sa.Engine) -> None:
    with engine.connect() as connection:

        def literal() -> None:
            run(connection, "SELECT set_config('app.tenant', 'one', true)")

        def bound() -> None:
            connection.execute(
                sa.text("SELECT set_config(:name, :value, true)"),
                {"name": "app.tenant", "value": "one"},
            )

        def built() -> None:
            connection.execute(sa.select(sa.func.set_config("app.tenant", "one", True)))

        def bound_flag() -> None:
            connection.execute(
                sa.text("SELECT pg_catalog.set_config(:name, 'one', CAST(:flag AS boolean))"),
                {"name": "app.tenant", "flag": True},
            )

        for form in (literal, bound, built, bound_flag):
            form()
            assert tenant(connection) == "one", form.__name__
            connection.commit()
            assert tenant(connection) == "", form.__name__
            connection.commit()


def set_local_is_not_seen_by_another(engine: sa.Engine) -> None:
    with engine.connect() as first, engine.connect() as second:
        run(first, "SET LOCAL app.tenant = 'first'")
        assert tenant(second) == ""
        run(second, "SET LOCAL app.tenant = 'second'")
        assert tenant(second) == "second"
        assert tenant(first) == "first"
        run(first, "INSERT INTO items (name) VALUES ('a')")
        assert tenant(second) == "second"
        first.commit()
        assert tenant(second) == "second"
        assert tenant(first) == ""
        second.rollback()
        assert tenant(second) == ""


def set_local_over_a_session_setting(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        run(connection, "SET app.tenant = 'session'")
        connection.commit()
        run(connection, "SET LOCAL app.tenant = 'local'")
        assert tenant(connection) == "local"
        connection.commit()
        assert tenant(connection) == "session"
        run(connection, "RESET app.tenant")
        connection.commit()


def set_local_in_a_savepoint(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        run(connection, "SET LOCAL app.tenant = 'outer'")
        nested = connection.begin_nested()
        run(connection, "SET LOCAL app.tenant = 'undone'")
        nested.rollback()
        assert tenant(connection) == "outer"
        with connection.begin_nested():
            run(connection, "SET LOCAL app.tenant = 'inner'")
        assert tenant(connection) == "inner"
        connection.commit()
        assert tenant(connection) == ""


def set_local_of_another_value_each_time(engine: sa.Engine) -> None:
    """What multi-tenant applications do for row level security, request by request."""
    for name in ("one", "two"):
        with engine.begin() as connection:
            assert tenant(connection) == ""
            connection.execute(sa.select(sa.func.set_config("app.tenant", name, True)))
            run(connection, f"INSERT INTO items (name) VALUES ('{name}')")
            assert tenant(connection) == name


def set_local_role(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        user = one(connection, "SELECT current_user")
        run(connection, "SET LOCAL ROLE reader_of_tests")
        assert one(connection, "SELECT current_user") == "reader_of_tests"
        with pytest.raises(sa.exc.ProgrammingError, match="permission denied"):
            run(connection, "INSERT INTO audit VALUES ('x')")
        connection.rollback()
        assert one(connection, "SELECT current_user") == user
        run(connection, "SET LOCAL ROLE reader_of_tests")
        connection.commit()
        assert one(connection, "SELECT current_user") == user


def set_local_role_and_reset_all(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        user = one(connection, "SELECT current_user")
        run(connection, "SET LOCAL ROLE reader_of_tests")
        run(connection, "SET CONSTRAINTS ALL DEFERRED")
        run(connection, "RESET ALL")
        assert one(connection, "SELECT current_user") == "reader_of_tests"
        connection.commit()
        assert one(connection, "SELECT current_user") == user


def set_role_stays_with_its_connection(engine: sa.Engine) -> None:
    with engine.connect() as first, engine.connect() as second:
        user = one(first, "SELECT current_user")
        run(first, "SET ROLE reader_of_tests")
        first.commit()
        assert one(second, "SELECT current_user") == user
        assert one(first, "SELECT current_user") == "reader_of_tests"
        run(first, "RESET ROLE")
        first.commit()
        assert one(first, "SELECT current_user") == user


def session_setting_stays_with_its_connection(engine: sa.Engine) -> None:
    with engine.connect() as first, engine.connect() as second:
        run(first, "SET app.tenant = 'first'")
        first.commit()
        assert tenant(second) == ""
        assert tenant(first) == "first"
        second.execute(sa.select(sa.func.set_config("app.tenant", "second", False)))
        second.commit()
        assert tenant(first) == "first"
        assert tenant(second) == "second"
        for connection in (first, second):
            run(connection, "RESET app.tenant")
            connection.commit()


def session_setting_is_undone_by_its_rollback(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        run(connection, "SET app.tenant = 'undone'")
        assert tenant(connection) == "undone"
        connection.rollback()
        assert tenant(connection) == ""
        run(connection, "SET app.tenant = 'kept'")
        connection.commit()
        run(connection, "SET app.tenant = 'undone'")
        connection.rollback()
        assert tenant(connection) == "kept"
        run(connection, "RESET app.tenant")
        connection.commit()


def session_setting_survives_a_failed_read_only_transaction(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        run(connection, "SELECT set_config('app.tenant', 'kept', false)")
        connection.commit()
        run(connection, "DECLARE reader CURSOR FOR SELECT 1")
        run(connection, "SET TRANSACTION READ ONLY")
        with pytest.raises(sa.exc.DBAPIError, match="read-only"):
            run(connection, "INSERT INTO items (name) VALUES ('a')")
        connection.commit()
        assert tenant(connection) == "kept"
        run(connection, "RESET app.tenant")
        connection.commit()


def settings_in_autocommit(engine: sa.Engine) -> None:
    with autocommit(engine) as connection:
        connection.execute(sa.select(sa.func.set_config("app.tenant", "local", True)))
        assert tenant(connection) == ""
        run(connection, "SET app.tenant = 'session'")
        assert tenant(connection) == "session"
        run(connection, "RESET app.tenant")


def a_setting_survives_anothers_failed_statement(engine: sa.Engine) -> None:
    with engine.connect() as first, engine.connect() as second:
        run(first, "INSERT INTO items (name) VALUES ('a')")
        for number in range(2):
            with pytest.raises(sa.exc.DBAPIError):
                run(second, "SELECT * FROM nowhere")
            if number == 0:
                run(first, "SET app.tenant = 'first'")
        assert tenant(first) == "first"
        second.rollback()
        assert tenant(first) == "first"
        run(first, "RESET app.tenant")
        first.commit()


CASES = (
    set_local_ends_at_commit_and_rollback,
    set_local_in_its_forms,
    set_config_in_its_forms,
    set_local_is_not_seen_by_another,
    set_local_over_a_session_setting,
    set_local_in_a_savepoint,
    set_local_of_another_value_each_time,
    set_local_role,
    set_local_role_and_reset_all,
    set_role_stays_with_its_connection,
    session_setting_stays_with_its_connection,
    session_setting_is_undone_by_its_rollback,
    session_setting_survives_a_failed_read_only_transaction,
    settings_in_autocommit,
    a_setting_survives_anothers_failed_statement,
)

"""A database that the user named, dropped and made again, empty, as it was made at first."""

from __future__ import annotations

import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sandbox.databases import urls
from sandbox.errors import SandboxError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy import Connection

__all__ = ("filled_table", "obstacle", "renew")

_BOOKS = frozenset(["alembic_version"])
_PATIENCE = 10.0
_POLL = 0.001

# Source: variable_is_guc_list_quote() of pg_dump. Their values are lists, quoted already.
_LISTS = frozenset(
    [
        "local_preload_libraries",
        "search_path",
        "session_preload_libraries",
        "shared_preload_libraries",
        "temp_tablespaces",
        "unix_socket_directories",
    ]
)


def obstacle(url: str) -> str | None:
    """Why the database cannot be made anew, or None."""
    if not urls.looks_like_test_database(url):
        return "its name does not say that it is for tests, and it would have to be dropped"
    if urls.dialect_of(url) == "sqlite":
        return None
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with _server(url) as connection:
            found = _described(connection, url)
    except SQLAlchemyError as error:
        return f"the server cannot be reached: {getattr(error, 'orig', None) or error}".strip()
    if not found["may"]:
        return (
            f"the role {found['role']} may not drop and create it (it needs CREATEDB, and to own"
            " the database)"
        )
    if found["database"].get("datacl") is not None:
        return "privileges were granted on it, which would be lost"
    return None


def filled_table(url: str) -> str | None:
    """A table with rows in it, but for what migrations note about themselves; None if there is
    none.
    """
    from sqlalchemy import NullPool, create_engine, inspect

    engine = create_engine(urls.sync_url(url), poolclass=NullPool)
    quote = engine.dialect.identifier_preparer.quote
    with engine.connect() as connection:
        found = inspect(connection)
        for schema in found.get_schema_names():
            if schema == "information_schema" or schema.startswith("pg_"):
                continue
            for table in found.get_table_names(schema):
                name = f"{quote(schema)}.{quote(table)}"
                query = f"SELECT EXISTS (SELECT 1 FROM {name})"
                if table not in _BOOKS and connection.exec_driver_sql(query).scalar():
                    return name
    return None


def renew(url: str) -> None:
    """Drop and create it; the sessions that use it are ended. There is no obstacle."""
    if urls.dialect_of(url) == "sqlite":
        path = Path(urls.sqlite_path(url) or "")
        for suffix in ("", "-journal", "-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        return
    with _server(url) as connection:
        found = _described(connection, url)
        settings = _settings(connection, url)
        name = _quoted(urls.database_name(url) or "")
        connection.exec_driver_sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        try:
            _end_sessions(connection, url)
            connection.exec_driver_sql(f"DROP DATABASE {name}")
        except BaseException:
            connection.exec_driver_sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
            raise
        connection.exec_driver_sql(_create(name, found))
        for statement in settings:
            connection.exec_driver_sql(statement)


@contextmanager
def _server(url: str) -> Iterator[Connection]:
    """A connection to the same server, but to no database of the user's."""
    from sqlalchemy import NullPool, create_engine
    from sqlalchemy.exc import OperationalError

    options: dict[str, Any] = {"poolclass": NullPool, "isolation_level": "AUTOCOMMIT"}
    synchronous = urls.sync_url(url)
    try:
        connection = create_engine(urls.with_database(synchronous, "postgres"), **options).connect()
    except OperationalError:
        connection = create_engine(
            urls.with_database(synchronous, "template1"), **options
        ).connect()
    with connection:
        yield connection


def _described(connection: Connection, url: str) -> Mapping[str, Any]:
    row = connection.exec_driver_sql(
        "SELECT to_jsonb(d) AS database, current_user AS role,"
        " pg_encoding_to_char(encoding) AS encoding, quote_ident(r.rolname) AS owner,"
        " me.rolsuper OR (me.rolcreatedb AND pg_has_role(datdba, 'MEMBER')) AS may"
        " FROM pg_database d JOIN pg_roles r ON r.oid = d.datdba"
        " JOIN pg_roles me ON me.rolname = current_user"
        f" WHERE datname = {_literal(url)}"
    ).one()
    return dict(row._mapping)


def _create(name: str, found: Mapping[str, Any]) -> str:
    """With its owner, encoding and locale."""
    database = found["database"]
    statement = (
        f"CREATE DATABASE {name} OWNER {found['owner']} TEMPLATE template0"
        f" ENCODING '{found['encoding']}' LC_COLLATE '{database['datcollate']}'"
        f" LC_CTYPE '{database['datctype']}'"
    )
    # PostgreSQL 15 and 16 call it otherwise than those after them.
    locale = database.get("datlocale") or database.get("daticulocale")
    if database.get("datlocprovider") == "i":
        statement += f" LOCALE_PROVIDER icu ICU_LOCALE '{locale}'"
    elif database.get("datlocprovider") == "b":
        statement += f" LOCALE_PROVIDER builtin BUILTIN_LOCALE '{locale}'"
    return statement


def _settings(connection: Connection, url: str) -> list[str]:
    """What ALTER DATABASE … SET, also for one role, has set."""
    rows = connection.exec_driver_sql(
        "SELECT quote_ident(r.rolname), setting FROM pg_db_role_setting s"
        " JOIN pg_database d ON d.oid = s.setdatabase LEFT JOIN pg_roles r ON r.oid = s.setrole,"
        f" unnest(s.setconfig) AS setting WHERE d.datname = {_literal(url)}"
    )
    name = _quoted(urls.database_name(url) or "")
    statements = []
    for role, setting in rows:
        key, _, value = setting.partition("=")
        if key not in _LISTS:
            value = "'" + value.replace("'", "''") + "'"
        elif not value:
            value = "''"
        target = f"ROLE {role} IN DATABASE {name}" if role else f"DATABASE {name}"
        statements.append(f'ALTER {target} SET "{key}" TO {value}')
    return statements


def _end_sessions(connection: Connection, url: str) -> None:
    """DROP DATABASE … WITH (FORCE) does the same in steps of 100 ms."""
    deadline = time.monotonic() + _PATIENCE
    while connection.exec_driver_sql(
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = {_literal(url)}"
    ).all():
        if time.monotonic() > deadline:
            raise SandboxError(f"a session of it did not end within {_PATIENCE:.0f} s")
        time.sleep(_POLL)


def _literal(url: str) -> str:
    name = (urls.database_name(url) or "").replace("'", "''")
    return f"'{name}'"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'

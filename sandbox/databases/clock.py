"""A database whose ``now()`` can be given another time.

A sandbox holds many application transactions in one real transaction, in which ``now()`` stands
still. So ``now()`` and ``transaction_timestamp()`` are replaced by functions that read the setting
which the sandbox sends with each of its savepoints, and where there is none, the real time of the
transaction.

``replace`` exchanges the functions of ``pg_catalog`` themselves: whatever calls them follows, also
column defaults made before, and copies of the database inherit it. Only a superuser may.
``shadow`` puts functions of the same names into a schema of their own, which sandboxed connections
search before ``pg_catalog``: statements follow, column defaults do not.

The functions must be such that PostgreSQL's planner puts their body in place of the call. It is the
only way in which they take effect (calls of built-in functions never look into the catalog), and it
keeps indexes and estimates as they are. Therefore they are not STRICT, unlike the originals:
``inline_function()`` in ``optimizer/util/clauses.c`` leaves alone what is STRICT and contains
COALESCE.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sandbox.core.clock import SCHEMA
from sandbox.core.settings import NOW
from sandbox.databases import urls
from sandbox.errors import ConfigurationError

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from sandbox.databases.backends import EmbeddedPostgres

__all__ = ("REPLACE_SQL", "RESTORE_SQL", "SHADOW_SQL", "arrange", "install")

_FUNCTIONS: Final = ("now", "transaction_timestamp")

# The fallback has to be a key word: each of the functions that tell the same is replaced.
_BODY: Final = (
    f"SELECT COALESCE(NULLIF(pg_catalog.current_setting('{NOW}', true), '')"
    "::pg_catalog.timestamptz, CURRENT_TIMESTAMP)"
)


def _create(schema: str) -> str:
    return "; ".join(
        f"CREATE OR REPLACE FUNCTION {schema}.{name}() RETURNS pg_catalog.timestamptz"
        f" LANGUAGE sql STABLE PARALLEL SAFE COST 1 AS $sandbox${_BODY}$sandbox$"
        for name in _FUNCTIONS
    )


REPLACE_SQL: Final = _create("pg_catalog")
"""Statements that make ``now()`` follow in one database, for every connection to it."""

RESTORE_SQL: Final = "; ".join(
    f"CREATE OR REPLACE FUNCTION pg_catalog.{name}() RETURNS pg_catalog.timestamptz"
    " LANGUAGE internal STABLE PARALLEL SAFE STRICT COST 1 AS 'now'"
    for name in _FUNCTIONS
)
"""Statements that make it what it was."""

SHADOW_SQL: Final = (
    f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}; GRANT USAGE ON SCHEMA {SCHEMA} TO PUBLIC;"
    f" {_create(SCHEMA)}"
)
"""Statements that make the functions for the connections of sandboxes to find."""

_DROP_SHADOW_SQL: Final = (
    f"DROP FUNCTION IF EXISTS {', '.join(f'{SCHEMA}.{name}()' for name in _FUNCTIONS)};"
    f" DROP SCHEMA IF EXISTS {SCHEMA}"
)

# Two runs that begin at once on one database would meet in the same rows of the catalog.
_ALONE: Final = "SELECT pg_catalog.pg_advisory_xact_lock(7308327, 1851731)"

_INSTALLED: Final = (
    f"SELECT (SELECT pg_catalog.strpos(prosrc, '{NOW}') > 0 FROM pg_catalog.pg_proc"
    " WHERE oid = 'pg_catalog.now()'::pg_catalog.regprocedure),"
    f" pg_catalog.to_regprocedure('{SCHEMA}.now()') IS NOT NULL"
)


def install(server: EmbeddedPostgres, database: str, choice: str = "auto") -> None:
    """Let ``now()`` follow in a new database of a server of ours, and in copies of it.

    Before the migrations. Blocks for some milliseconds.
    """
    if choice == "off":
        return
    import psycopg

    with psycopg.connect(server.url(database), autocommit=True) as connection:
        connection.execute(SHADOW_SQL if choice == "shadow" else REPLACE_SQL)


def arrange(url: str, choice: str) -> None:
    """Do in an existing database what ``sandbox_clock`` says; idempotent.

    ``auto`` leaves it as it is. ``off`` also takes out what an earlier run has installed. Blocks;
    not from a running event loop. Raises ConfigurationError for a database that cannot have it, or
    a role that may not do it.
    """
    if choice == "auto":
        return
    if urls.dialect_of(url) != "postgresql":
        if choice != "off":
            raise _error(choice, url, "only PostgreSQL has functions that can be replaced")
        return
    from sqlalchemy.exc import DBAPIError

    from sandbox.databases.migrations._connect import with_connection

    try:
        with_connection(url, lambda connection: _arrange(connection, choice))
    except DBAPIError as error:
        words = str(error.orig).strip().partition("\n")[0]
        raise _error(choice, url, words) from error


def _arrange(connection: Connection, choice: str) -> None:
    connection.exec_driver_sql(_ALONE)
    replaced, shadowed = connection.exec_driver_sql(_INSTALLED).one()
    script = ""
    if choice == "replace" and not replaced:
        script = REPLACE_SQL
    elif choice == "shadow" and not shadowed:
        script = SHADOW_SQL
    elif choice == "off":
        script = "; ".join(
            sql for sql, there in ((RESTORE_SQL, replaced), (_DROP_SHADOW_SQL, shadowed)) if there
        )
    for statement in filter(None, script.split("; ")):
        connection.exec_driver_sql(statement)


def _error(choice: str, url: str, why: str) -> ConfigurationError:
    other = {
        "replace": " Only a superuser may replace now(); sandbox_clock = shadow needs no more than"
        " the right to create a schema.",
        "shadow": " The role needs the right to create a schema (GRANT CREATE ON DATABASE).",
        "off": " What an earlier run installed is taken out by who installed it.",
    }
    return ConfigurationError(
        f"sandbox_clock = {choice} is not possible on {urls.hide_password(url)}: {why}."
        f"{other[choice] if urls.dialect_of(url) == 'postgresql' else ''}"
    )

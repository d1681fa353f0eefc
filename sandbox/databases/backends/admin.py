"""Databases of a server: create, drop, ask.  One connection per process, opened when needed."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from sandbox.databases.backends.binaries import INSTALL, major_of
from sandbox.errors import ConfigurationError, SandboxError

if TYPE_CHECKING:
    import psycopg

__all__ = ("Admin", "require_driver")

_KEPT = ("postgres", "template0", "template1")
_PATIENCE = 10.0
_POLL = 0.0005


class Admin:
    """The connection by which this process manages databases; for any thread, one at a time."""

    def __init__(self, host: str, port: int, user: str, version: str) -> None:
        self._where = {"host": host, "port": port, "user": user, "dbname": "postgres"}
        self._major = major_of(version)
        self._connection: psycopg.Connection[Any] | None = None
        self._lock = threading.Lock()

    def create_database(self, name: str, template: str | None) -> None:
        """Copy the template, or the server's own; SandboxError if the name is taken."""
        require_driver()
        from psycopg import errors, sql

        _check(name)
        statement = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
        if template is not None:
            statement += sql.SQL(" TEMPLATE {}").format(sql.Identifier(template))
        if self._major >= 15:
            # Writes no log: half the time of the default, and two can run at once.
            statement += sql.SQL(" STRATEGY file_copy")
        try:
            self._execute(statement)
        except errors.DuplicateDatabase as error:
            raise SandboxError(
                f"The database {name!r} exists already on the embedded server. Take another name,"
                " or drop_database() it first."
            ) from error
        except errors.ObjectInUse as error:
            raise SandboxError(
                f"The database {name!r} cannot be made from {template or 'template1'!r} while"
                " somebody is connected to that. Close those connections (dispose of the engine)"
                " first."
            ) from error
        except errors.InvalidCatalogName as error:
            raise SandboxError(
                f"The database {name!r} cannot be made: there is no template {template!r} on the"
                " embedded server."
            ) from error

    def drop_database(self, name: str) -> None:
        """Disconnect everybody and drop; nothing happens if there is none."""
        require_driver()
        from psycopg import errors, sql

        _check(name)
        if name in _KEPT:
            raise ConfigurationError(f"The database {name!r} belongs to the server itself.")
        identifier = sql.Identifier(name)
        try:
            self._execute(
                sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false IS_TEMPLATE false").format(
                    identifier
                )
            )
        except errors.InvalidCatalogName:
            return
        self._disconnect(name)
        self._execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(identifier))

    def database_exists(self, name: str) -> bool:
        """Tell whether there is a database of this name, template or not."""
        return bool(self._execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)))

    def set_password(self, password: str) -> None:
        """Let the superuser in by the port, with this password."""
        require_driver()
        from psycopg import sql

        self._execute(
            sql.SQL("ALTER ROLE {} PASSWORD {}").format(
                sql.Identifier(str(self._where["user"])), sql.Literal(password)
            )
        )

    def close(self) -> None:
        """Close the connection; the next use opens another."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def forget(self) -> None:
        """In a forked child: leave the connection, which is the parent's, alone."""
        _forgotten.append(self._connection)
        self._connection = None
        self._lock = threading.Lock()

    def _disconnect(self, name: str) -> None:
        """End every session of the database, and wait until the server has ended them.

        DROP DATABASE … WITH (FORCE) does the same in steps of 100 ms.
        """
        deadline = time.monotonic() + _PATIENCE
        ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
        while self._execute(ended, (name,)):
            if time.monotonic() > deadline:
                raise SandboxError(
                    f"The database {name!r} cannot be dropped: a session of it did not end within"
                    f" {_PATIENCE:.0f} s of being told to. pg_stat_activity shows what it does."
                )
            time.sleep(_POLL)

    def _execute(self, statement: Any, parameters: tuple[str, ...] | None = None) -> list[Any]:
        with self._lock:
            used_before = self._connection is not None
            try:
                return self._ask(statement, parameters)
            except Exception:
                # A connection that was closed behind our back (a test that terminates every
                # session) is found out by using it.
                if not used_before or self._connection is None or not self._connection.closed:
                    raise
                return self._ask(statement, parameters)

    def _ask(self, statement: Any, parameters: tuple[str, ...] | None) -> list[Any]:
        cursor = self._connected().execute(statement, parameters)
        return cursor.fetchall() if cursor.description else []

    def _connected(self) -> psycopg.Connection[Any]:
        if self._connection is None or self._connection.closed:
            require_driver()
            import psycopg

            self._connection = psycopg.connect(**self._where, autocommit=True)  # type: ignore[arg-type]
        return self._connection


_forgotten: list[Any] = []


def require_driver() -> None:
    """Raise ConfigurationError if psycopg, by which databases are managed, does not import."""
    try:
        import psycopg  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(
            "Databases of the embedded server, and passwords, are managed with psycopg, which does"
            f" not import here ({error}): {INSTALL}"
        ) from error


def _check(name: str) -> None:
    if not name or "\x00" in name or len(name.encode()) > 63:
        raise ConfigurationError(
            f"{name!r} is no name for a database: PostgreSQL takes 1 to 63 bytes, and cuts off the"
            " rest without saying so."
        )

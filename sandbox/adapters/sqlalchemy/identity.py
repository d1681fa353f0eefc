"""Which database an engine connects to."""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Hashable

    from sqlalchemy.engine import URL, Engine

__all__ = (
    "MYSQL_DRIVERS",
    "PrivateDatabase",
    "database_of_connection",
    "database_of_url",
    "describe",
    "has_own_creator",
    "in_memory",
    "user_of_connection",
)


MYSQL_DRIVERS = frozenset({"pymysql", "aiomysql", "asyncmy"})
_MYSQL = frozenset({"mysql", "mariadb"})


class PrivateDatabase:
    """A database that only this engine can reach, and that ends with it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = weakref.ref(engine)

    @property
    def gone(self) -> bool:
        """Whether the engine is no more."""
        return self._engine() is None


def has_own_creator(engine: Engine) -> bool:
    """Whether connections come from a function of the application (``creator=``)."""
    creator = getattr(engine.pool, "_creator", None)
    return getattr(creator, "__qualname__", "") != "create_engine.<locals>.connect"


def in_memory(url: URL) -> bool:
    """Whether the SQLite database lives in the connection itself."""
    if url.get_backend_name() != "sqlite":
        return False
    database = url.database or ""
    private = database in {"", ":memory:"}
    return private or (
        (":memory:" in database or url.query.get("mode") == "memory")
        and url.query.get("cache") != "shared"
    )


def database_of_url(url: URL) -> Hashable:
    """The same for every URL of one database, whatever its driver, user or options."""
    backend = url.get_backend_name()
    if backend == "sqlite":
        database = url.database or ""
        if database.startswith("file:"):
            database = database.removeprefix("file:").partition("?")[0]
        return ("sqlite", os.path.realpath(database))
    if backend in _MYSQL:
        socket = url.query.get("unix_socket")
        return _mysql(url.host, url.port, str(socket) if socket else None, url.database)
    host, port = url.host, url.port
    query_host = url.query.get("host")
    if not host and isinstance(query_host, str):
        host, _, text = query_host.partition(":") if "/" not in query_host else (query_host, "", "")
        port = int(text) if text.isdigit() else port
    query_port = url.query.get("port")
    if port is None and isinstance(query_port, str) and query_port.isdigit():
        port = int(query_port)
    return _server(backend, host, port, url.database or url.username)


def database_of_connection(driver_name: str, real: Any) -> Hashable | None:
    """The same, asked of a live connection; None where it cannot be told."""
    native = getattr(real, "_connection", real)
    if driver_name in {"psycopg", "psycopg_async", "psycopg2"}:
        info = native.info
        return _server("postgresql", info.host, info.port, info.dbname)
    if driver_name == "asyncpg":
        address, parameters = native._addr, native._params
        if isinstance(address, str):
            # A socket's path: <directory>/.s.PGSQL.<port>
            path = Path(address)
            return _server(
                "postgresql", str(path.parent), int(path.suffix[1:]), parameters.database
            )
        return _server("postgresql", address[0], address[1], parameters.database)
    if driver_name in MYSQL_DRIVERS:
        facts = ("host", "port", "unix_socket", "db")
        return _mysql(*(_mysql_fact(native, name) for name in facts))
    if driver_name in {"sqlite3", "aiosqlite"}:
        native = getattr(native, "_conn", native)
        path = native.execute("PRAGMA database_list").fetchone()[2]
        return ("sqlite", os.path.realpath(path)) if path else None
    return None


def user_of_connection(driver_name: str, real: Any) -> str | None:
    """Whom the server takes the client for; None where there are no users."""
    native = getattr(real, "_connection", real)
    if driver_name == "asyncpg":
        return str(native._params.user)
    if driver_name in {"sqlite3", "aiosqlite"}:
        return None
    if driver_name in MYSQL_DRIVERS:
        user = _mysql_fact(native, "user")
        return user.decode() if isinstance(user, bytes) else str(user)
    return str(native.info.user)


def describe(url: URL) -> str:
    """The database as messages name it, without a password."""
    if url.get_backend_name() == "sqlite":
        return f"SQLite {url.database or 'in memory'}"
    return f"database {url.database or url.username!r}"


def _mysql(host: Any, port: Any, socket: Any, database: Any) -> Hashable:
    if socket:
        return ("mysql", os.path.realpath(socket), None, database)
    return _server("mysql", host, port or 3306, database)


def _mysql_fact(native: Any, name: str) -> Any:
    """PyMySQL has it by its name, the others with an underscore."""
    return getattr(native, name, None) or getattr(native, f"_{name}", None)


def _server(backend: str, host: str | None, port: int | None, database: str | None) -> Hashable:
    host = host or "localhost"
    if host in {"127.0.0.1", "::1"}:
        host = "localhost"
    return (backend, host, port or 5432, database)

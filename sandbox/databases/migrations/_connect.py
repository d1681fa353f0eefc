"""A committed SQLAlchemy transaction for a source, by whatever driver is installed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from sandbox.databases import urls
from sandbox.databases.migrations._source import outside_event_loop
from sandbox.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

__all__ = ("has_tables", "with_connection")

_T = TypeVar("_T")


def with_connection(url: str, function: Callable[[Connection], _T]) -> _T:
    """Call a function in a transaction and commit it.

    Through a synchronous driver if possible; where only asyncpg is installed, under ``run_sync``.
    """
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    try:
        blocking = urls.sync_url(url)
    except ConfigurationError:
        return outside_event_loop(lambda: asyncio.run(_with_async_connection(url, function)))
    engine = create_engine(blocking, poolclass=NullPool)
    try:
        with engine.begin() as connection:
            return function(connection)
    finally:
        engine.dispose()


async def _with_async_connection(url: str, function: Callable[[Connection], _T]) -> _T:
    from sqlalchemy.ext.asyncio import create_async_engine
    from sqlalchemy.pool import NullPool

    engine = create_async_engine(urls.async_url(url), poolclass=NullPool)
    try:
        async with engine.begin() as connection:
            return await connection.run_sync(function)
    finally:
        await engine.dispose()


def has_tables(url: str) -> bool:
    """Whether any schema that users may write to holds a table; True where that is unknowable."""
    if urls.dialect_of(url) == "sqlite" and urls.sqlite_path(url) is None:
        return True  # every connection has a memory of its own

    def look(connection: Connection) -> bool:
        from sqlalchemy import inspect

        inspector = inspect(connection)
        schemas = [name for name in inspector.get_schema_names() if name != "information_schema"]
        return any(inspector.get_table_names(schema) for schema in schemas)

    return with_connection(url, look)

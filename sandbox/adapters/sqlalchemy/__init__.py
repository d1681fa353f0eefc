"""SQLAlchemy: engines, synchronous and asynchronous.

The place to stand is below the pool. ``Engine.raw_connection`` is the one door through which
every Core connection, Session and AsyncSession goes; the first time an engine of a database that
we watch goes through it, its pool is exchanged for one of virtual connections, as
``Engine.dispose()`` exchanges pools. Patching ``Engine.connect`` would not do: SQLAlchemy 2.1
adopts, and commits, a transaction that it finds on the connection it gets.
"""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.util.concurrency import in_greenlet

from sandbox.adapters.sqlalchemy.drivers import driver_for
from sandbox.adapters.sqlalchemy.identity import (
    PrivateDatabase,
    database_of_connection,
    database_of_url,
    describe,
    has_own_creator,
    in_memory,
)
from sandbox.adapters.sqlalchemy.io import background_loop, run_on
from sandbox.adapters.sqlalchemy.pool import adopted, is_adopted
from sandbox.adapters.sqlalchemy.source import EngineSource, Idle, discard
from sandbox.errors import UnsupportedTargetError

if TYPE_CHECKING:
    from collections.abc import Hashable

    from sqlalchemy.pool import PoolProxiedConnection

    from sandbox.connection.sandbox import Sandbox
    from sandbox.connection.virtual import VirtualConnection
    from sandbox.core.ownership import Registry

__all__ = ("SQLAlchemyAdapter",)


class SQLAlchemyAdapter:
    """Puts virtual connections under every engine of the databases that a registry watches."""

    def __init__(self, registry: Registry[Sandbox]) -> None:
        self._registry = registry
        self._idle = Idle()
        self._lock = threading.RLock()
        self._databases: weakref.WeakKeyDictionary[Engine, Hashable] = weakref.WeakKeyDictionary()
        self._sources: weakref.WeakSet[EngineSource] = weakref.WeakSet()
        self._original: Any = None

    def install(self) -> None:
        """Watch the door; idempotent."""
        if self._original is not None:
            return
        original = self._original = Engine.raw_connection

        def raw_connection(engine: Engine) -> PoolProxiedConnection:
            if not is_adopted(engine.pool):
                self._consider(engine)
            connection: PoolProxiedConnection = original(engine)
            return connection

        raw_connection.__doc__ = original.__doc__
        Engine.raw_connection = raw_connection  # type: ignore[method-assign,assignment]

    def uninstall(self) -> None:
        """Leave the door; engines that were adopted stay so, and pass through."""
        if self._original is not None:
            Engine.raw_connection = self._original  # type: ignore[method-assign]
            self._original = None

    # -- targets -----------------------------------------------------------------------------

    def engine(self, target: object) -> Engine | None:
        """The synchronous engine of an ``Engine`` or ``AsyncEngine``; None for anything else."""
        engine = getattr(target, "sync_engine", target)
        if not isinstance(engine, Engine):
            return None
        # An engine with execution options shares the pool of the one it was made from.
        return getattr(engine, "_proxied", engine)

    def claim(self, engine: Engine) -> tuple[Hashable, str]:
        """The engine's database and its name, watched from now on, this engine adopted."""
        source = getattr(engine.pool, "_sandbox_source", None)
        if source is not None and self._registry.knows(source.database):
            return source.database, source.name
        if driver_for(engine.dialect) is None:
            raise UnsupportedTargetError(
                f"{engine!r} uses {engine.dialect.name}+{engine.dialect.driver}, which cannot be"
                f" sandboxed. Supported: postgresql with psycopg (sync and async), psycopg2 or"
                f" asyncpg; sqlite with pysqlite or aiosqlite; mysql and mariadb with pymysql,"
                f" aiomysql or asyncmy."
            )
        database = self._database(engine)
        name = describe(engine.url)
        self._registry.know(database, name)
        if not is_adopted(engine.pool):
            self._adopt(engine, database)
        return database, name

    def watch(self, url: str) -> tuple[Hashable, str]:
        """The database of a URL, watched from now on: every engine that connects to it."""
        from sqlalchemy.engine import make_url

        parsed = make_url(url)
        database = database_of_url(parsed)
        self._registry.know(database, describe(parsed))
        return database, describe(parsed)

    def virtual(self, engine: Engine) -> VirtualConnection:
        """A virtual connection of this engine's driver, beside its pool."""
        source: EngineSource = engine.pool._sandbox_source  # type: ignore[attr-defined]
        if engine.dialect.is_async and not in_greenlet():
            return run_on(background_loop(), source.virtual)
        return source.virtual()

    def close_idle(self) -> None:
        """Close the real connections that wait for the next sandbox. Not from a running loop."""
        self._idle.close()

    def disconnect(self, database: Hashable) -> None:
        """Close those, and those that lie in the pools of this database's engines."""
        self._idle.close()
        with self._lock:
            engines = [engine for engine, its in self._databases.items() if its == database]
        for engine in engines:
            old = engine.pool
            if is_adopted(old):
                engine.pool = old.recreate()
                old.dispose()

    # -- adoption ----------------------------------------------------------------------------

    def _consider(self, engine: Engine) -> None:
        if driver_for(engine.dialect) is None:
            return
        target = getattr(engine, "_proxied", engine)
        database = self._database(target, here=True)
        if self._registry.knows(database):
            self._adopt(target, database)

    def _adopt(self, engine: Engine, database: Hashable) -> None:
        with self._lock:
            if is_adopted(engine.pool):
                return
            source = EngineSource(engine, database, self._idle, self._registry.find, self._every)
            self._sources.add(source)
            self._listen(engine, source)
            old = engine.pool
            pool = adopted(old, source)
            source.follow(pool)
            engine.pool = pool
            if not in_memory(engine.url) and hasattr(old, "checkedin"):
                # As Engine.dispose() does: idle connections are closed, those in use when they
                # come back to the old pool.
                _dispose(engine, old)

    def _every(self) -> list[EngineSource]:
        with self._lock:
            return list(self._sources)

    def _listen(self, engine: Engine, source: EngineSource) -> None:
        def do_connect(
            dialect: Any, record: Any, arguments: list[Any], options: dict[str, Any]
        ) -> None:
            del dialect, record
            source.note_arguments({**options, "positional": arguments})
            if engine.dialect.name == "sqlite":
                # One connection serves many threads, one at a time.
                options["check_same_thread"] = False

        event.listen(engine, "do_connect", do_connect)

    def _database(self, engine: Engine, *, here: bool = False) -> Hashable:
        with self._lock:
            database = self._databases.get(engine)
        if database is None:
            database = self._find_database(engine, here=here)
            with self._lock:
                database = self._databases.setdefault(engine, database)
        return database

    def _find_database(self, engine: Engine, *, here: bool) -> Hashable:
        if in_memory(engine.url):
            return PrivateDatabase(engine)
        if not has_own_creator(engine):
            return database_of_url(engine.url)

        def look() -> Hashable | None:
            found = driver_for(engine.dialect)
            assert found is not None
            fairy = engine.pool.connect()
            try:
                return database_of_connection(found[0].name, fairy.dbapi_connection)
            finally:
                fairy.close()

        # Where the connections lead only a connection can tell.
        if engine.dialect.is_async and not here:
            database = run_on(background_loop(), look)
        else:
            database = look()
        return PrivateDatabase(engine) if database is None else database


def _dispose(engine: Engine, pool: Any) -> None:
    """Close the idle connections of a pool that is given up."""
    if not engine.dialect.is_async:
        pool.dispose()
        return
    # Each may live on another loop, also on one that is closed: pool.dispose() would wait there.
    while pool.checkedin() > 0:
        record = pool._pool.get(block=False)
        real, record.dbapi_connection = record.dbapi_connection, None
        if real is not None:
            discard(real)

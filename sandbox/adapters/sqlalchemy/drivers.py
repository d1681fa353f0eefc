"""Drivers as SQLAlchemy's asynchronous dialects adapt them: psycopg, asyncpg, aiosqlite."""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from sqlalchemy.util.concurrency import await_only, greenlet_spawn

from sandbox.adapters.sqlalchemy.io import GreenletIO, HomeIO, uninterrupted
from sandbox.adapters.sqlalchemy.listening import ListeningAsyncpg, ListeningAsyncPsycopg
from sandbox.connection.dialect import POSTGRESQL
from sandbox.connection.driver import IO, Driver, Session, ThreadIO
from sandbox.connection.drivers.psycopg import Psycopg
from sandbox.connection.drivers.psycopg2 import Psycopg2
from sandbox.connection.drivers.sqlite import Sqlite, VirtualSqlite
from sandbox.connection.virtual import CONTROL, VirtualConnection
from sandbox.core.effects import resolved
from sandbox.core.statements import Kind, Statement

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping, Sequence

    from sandbox.connection.dialect import Dialect

__all__ = (
    "Aiosqlite",
    "AsyncPsycopg",
    "Asyncpg",
    "DriverConnection",
    "VirtualAiosqlite",
    "VirtualAsyncPsycopg",
    "VirtualAsyncpg",
    "driver_for",
)


class _Adapted(VirtualConnection):
    """What SQLAlchemy's ``AdaptedConnection`` has."""

    _natives: ClassVar[Mapping[str, str]] = {}
    """Of the driver's own connection what is done here, by name: nothing is sent for it."""

    @property
    def driver_connection(self) -> Any:
        """The driver's own connection, each call of which joins the transaction."""
        return self._connection

    @property
    def _connection(self) -> Any:
        return DriverConnection(self)

    def run_async(self, fn: Callable[[Any], Any]) -> Any:
        """Run a coroutine function with the driver's connection, in the transaction."""
        statement = Statement(Kind.WRITE, "run_async()")
        return self._on_real(lambda real: real.run_async(fn), statement)


class DriverConnection:
    """The asynchronous driver's connection as the application sees it.

    Coroutine methods run where the real connection lives, in the application's transaction and
    in turn with everybody else's statements.
    """

    def __init__(self, virtual: VirtualConnection) -> None:
        self._virtual = virtual

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        cls: type = self._virtual._driver.native_class()
        return cls

    def is_closed(self) -> bool:
        """Closed by the application, or lost."""
        return self._virtual._closed or self._virtual._lost

    def transaction(self, **options: Any) -> _DriverTransaction:
        """Asyncpg's block: a transaction, or a savepoint inside one."""
        return _DriverTransaction(self._virtual, options)

    def __getattr__(self, name: str) -> Any:
        virtual: Any = self._virtual
        if name in virtual._natives:
            return getattr(virtual, virtual._natives[name])
        if name in _ENDINGS:
            return partial(greenlet_spawn, getattr(virtual, name))
        awaited = virtual._driver.awaited
        native = getattr(virtual._driver.native_class(), name, None)
        if not inspect.iscoroutinefunction(native) and name not in awaited:
            return getattr(virtual._any_real()._connection, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            def on_real(real: Any) -> Any:
                return await_only(_awaited(getattr(real._connection, name)(*args, **kwargs)))

            statement = Statement(Kind.WRITE, f"{name}()")
            if name in _WITH_TEXT and args and isinstance(args[0], str):
                statement = _statement(virtual, *args)
                if statement.kind in CONTROL:
                    return await greenlet_spawn(_control, virtual, args[0])
            return await greenlet_spawn(virtual._on_real, on_real, statement)

        if name in awaited:
            return lambda *args, **kwargs: _Result(call(*args, **kwargs))
        return call


_WITH_TEXT = frozenset({"execute", "fetch", "fetchrow", "fetchval"})
_ENDINGS = frozenset({"commit", "rollback", "close"})


def _statement(virtual: VirtualConnection, text: str, *bound: Any) -> Statement:
    """What the text that is given to the driver's own connection does."""
    statement: Statement = virtual._driver.dialect.classify(text)
    if not statement.effects:
        return statement
    # psycopg takes the values as one argument, asyncpg one by one.
    values = bound[0] if len(bound) == 1 and isinstance(bound[0], (dict, list, tuple)) else bound
    return replace(statement, effects=tuple(resolved(e, values) for e in statement.effects))


def _control(virtual: VirtualConnection, text: str) -> str:
    """Transaction control given to the driver's own connection is the virtual one's."""
    cursor = virtual.cursor()
    cursor.execute(text)
    cursor.close()
    return text.split(maxsplit=1)[0].upper()


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


class _Result:
    """What aiosqlite returns: to be awaited, or entered with ``async with``."""

    def __init__(self, call: Coroutine[Any, Any, Any]) -> None:
        self._call = call
        self._cursor: Any = None

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._call.__await__()

    async def __aenter__(self) -> Any:
        self._cursor = await self._call
        return self._cursor

    async def __aexit__(self, *exc: object) -> None:
        if hasattr(self._cursor, "close"):
            await self._cursor.close()


class _DriverTransaction:
    """``async with connection.transaction():`` on a virtual connection."""

    def __init__(self, virtual: VirtualConnection, options: Mapping[str, Any]) -> None:
        self._virtual = virtual
        self._options = options
        self._savepoint: str | None = None

    async def start(self) -> None:
        """BEGIN, or SAVEPOINT inside a transaction."""
        if self._virtual._in_use:
            self._savepoint = f"asyncpg_{id(self)}"
            await self._execute(f"SAVEPOINT {self._savepoint}")
        else:
            level = self._options.get("isolation")
            begin = f"BEGIN ISOLATION LEVEL {level.replace('_', ' ')}" if level else "BEGIN"
            await self._execute(begin)

    async def commit(self) -> None:
        """COMMIT, or RELEASE."""
        await self._execute(f"RELEASE SAVEPOINT {self._savepoint}" if self._savepoint else "COMMIT")

    async def rollback(self) -> None:
        """ROLLBACK, or ROLLBACK TO."""
        await self._execute(
            f"ROLLBACK TO SAVEPOINT {self._savepoint}" if self._savepoint else "ROLLBACK"
        )

    async def __aenter__(self) -> None:
        await self.start()

    async def __aexit__(self, exc_type: object, exc: object, traceback: object) -> None:
        await (self.commit() if exc_type is None else self.rollback())

    async def _execute(self, sql: str) -> None:
        def run() -> None:
            cursor = self._virtual.cursor()
            cursor.execute(sql)
            cursor.close()

        await greenlet_spawn(run)


class AsyncPsycopg(Psycopg):
    """``psycopg.AsyncConnection``."""

    name: ClassVar[str] = "psycopg_async"
    awaited: ClassVar[frozenset[str]] = frozenset()

    def connection_class(self) -> type:
        from sqlalchemy.dialects.postgresql.psycopg import AsyncAdapt_psycopg_connection

        return AsyncAdapt_psycopg_connection

    def native_class(self) -> type:
        """The driver's own class."""
        import psycopg

        return psycopg.AsyncConnection

    def virtual_class(self) -> type[VirtualConnection]:
        return VirtualAsyncPsycopg

    def apply(self, real: Any, session: Session) -> None:
        from sandbox.connection.drivers.psycopg import _level

        native = real._connection
        if real.autocommit != session.autocommit:
            real.set_autocommit(session.autocommit)
        if native.isolation_level != _level(session.isolation):
            real.set_isolation_level(_level(session.isolation))
        if native.read_only != session.read_only:
            real.set_read_only(session.read_only)
        if native.deferrable != session.deferrable:
            real.set_deferrable(session.deferrable)


class VirtualAsyncPsycopg(ListeningAsyncPsycopg, _Adapted):
    """SQLAlchemy's adapted psycopg connection as the application sees it."""


class Asyncpg(Driver):
    """``asyncpg.Connection``."""

    name: ClassVar[str] = "asyncpg"
    natively_autocommits: ClassVar[bool] = True
    awaited: ClassVar[frozenset[str]] = frozenset()
    """Methods of the native connection that return an awaitable without being coroutines."""
    dialect: ClassVar[Dialect] = POSTGRESQL

    def connection_class(self) -> type:
        from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_connection

        return AsyncAdapt_asyncpg_connection

    def native_class(self) -> type:
        """The driver's own class."""
        import asyncpg

        cls: type = asyncpg.Connection
        return cls

    def virtual_class(self) -> type[VirtualConnection]:
        return VirtualAsyncpg

    def session(self, real: Any) -> Session:
        session = Session()
        session.autocommit = real.isolation_level == "autocommit"
        session.isolation = _standard(real.isolation_level)
        session.read_only = real.readonly or None
        session.deferrable = real.deferrable or None
        return session

    def apply(self, real: Any, session: Session) -> None:
        level = "autocommit" if session.autocommit else _asyncpg_level(session.isolation)
        if real.isolation_level != level:
            real.isolation_level = real._isolation_setting = level
        real.readonly = bool(session.read_only)
        real.deferrable = bool(session.deferrable)

    def take_over(self, real: Any) -> None:
        real.isolation_level = real._isolation_setting = "autocommit"

    def send(self, real: Any, statements: Sequence[str]) -> int:
        trips: int = await_only(uninterrupted(_send(real._connection, statements)))
        return trips

    def check(self, real: Any, statements: Sequence[str]) -> None:
        try:
            self.send(real, statements)
        except Exception as error:  # noqa: BLE001 - SQLAlchemy knows which are the server's
            real._handle_exception(error)

    def ask(self, real: Any, sql: str) -> list[tuple[Any, ...]]:
        records = await_only(uninterrupted(real._connection.fetch(sql)))
        return [tuple(record) for record in records]

    def application_name(self, real: Any) -> str | None:
        name: str | None = real._connection.get_settings().application_name
        return name

    def pid(self, real: Any) -> int:
        return int(real._connection.get_server_pid())

    def server_cursor(self, cursor: Any) -> str | None:
        name: str | None = getattr(cursor._cursor, "_portal_name", None)
        return name

    def in_transaction(self, real: Any) -> bool:
        return bool(real._connection.is_in_transaction())

    def aborted(self, real: Any, error: BaseException) -> bool:
        # asyncpg does not tell INTRANS from INERROR. What came from the server has aborted the
        # transaction, and so has a statement that was cancelled under way.
        import asyncio

        import asyncpg

        del real
        causes = (error, error.__cause__, getattr(error, "driver_exception", None))
        return isinstance(error, (asyncio.CancelledError, TimeoutError)) or any(
            isinstance(cause, asyncpg.PostgresError) for cause in causes
        )

    def lost(self, real: Any) -> bool:
        return bool(real._connection.is_closed())

    def closed_error(self) -> Exception:
        from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_dbapi

        error: Any = AsyncAdapt_asyncpg_dbapi.InterfaceError
        closed: Exception = error("connection is closed")
        return closed


async def _send(connection: Any, statements: Sequence[str]) -> int:
    """All in one round trip, and tell asyncpg: it lets cursors exist only in what it began."""
    begin = next((s for s in statements if s.startswith("BEGIN")), None)
    await connection.execute("; ".join(statements))
    if "ROLLBACK" in statements:
        connection._top_xact = None
    if begin is not None:
        level = begin.removeprefix("BEGIN").removeprefix(" ISOLATION LEVEL ")
        transaction = connection.transaction(isolation=_asyncpg_level(level or None))
        # What Transaction.start() does beside sending BEGIN.
        transaction._state = type(transaction._state).STARTED
        connection._top_xact = transaction
    return 1


class VirtualAsyncpg(ListeningAsyncpg, _Adapted):
    """SQLAlchemy's adapted asyncpg connection as the application sees it."""

    @property
    def isolation_level(self) -> str | None:
        """Asyncpg's word for the level, or ``autocommit``."""
        if self._session.autocommit:
            return "autocommit"
        return _asyncpg_level(self._session.isolation)

    @isolation_level.setter
    def isolation_level(self, level: str | None) -> None:
        self._session.autocommit = level == "autocommit"
        self._session.isolation = _standard(level)

    @property
    def autocommit(self) -> bool:
        """Whether each statement is its own transaction."""
        return self._session.autocommit

    @autocommit.setter
    def autocommit(self, value: bool) -> None:
        self._session.autocommit = bool(value)

    def set_isolation_level(self, level: str | None) -> None:
        """Roll back, then set."""
        self.rollback()
        self.isolation_level = level

    @property
    def readonly(self) -> bool:
        """Whether transactions to come may not write."""
        return bool(self._session.read_only)

    @readonly.setter
    def readonly(self, value: bool) -> None:
        self._session.read_only = value or None

    @property
    def deferrable(self) -> bool:
        """Whether serializable read-only transactions wait for a safe snapshot."""
        return bool(self._session.deferrable)

    @deferrable.setter
    def deferrable(self, value: bool) -> None:
        self._session.deferrable = value or None

    def ping(self) -> None:
        """A virtual connection is alive; a real one of its own is asked."""
        cursor = self.cursor()
        self._run(cursor, "", lambda real, _: real._adapt_connection.ping())


class Aiosqlite(Sqlite):
    """``aiosqlite.Connection``."""

    name: ClassVar[str] = "aiosqlite"
    awaited: ClassVar[frozenset[str]] = frozenset(
        {"execute", "executemany", "executescript", "execute_insert", "execute_fetchall"}
    )

    def connection_class(self) -> type:
        from sqlalchemy.dialects.sqlite.aiosqlite import AsyncAdapt_aiosqlite_connection

        return AsyncAdapt_aiosqlite_connection

    def native_class(self) -> type:
        """The driver's own class."""
        import aiosqlite

        return aiosqlite.Connection

    def virtual_class(self) -> type[VirtualConnection]:
        return VirtualAiosqlite

    def open_cursor(
        self, real: Any, session: Session, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        del session
        return real.cursor(*args, **kwargs)

    def send(self, real: Any, statements: Sequence[str]) -> int:
        await_only(uninterrupted(_execute(real._connection, statements)))
        return len(statements)


async def _execute(connection: Any, statements: Sequence[str]) -> None:
    for statement in statements:
        cursor = await connection.execute(statement)
        await cursor.close()


class VirtualAiosqlite(_Adapted, VirtualSqlite):
    """SQLAlchemy's adapted aiosqlite connection as the application sees it."""


def _standard(level: str | None) -> str | None:
    return None if level in {None, "autocommit"} else str(level).replace("_", " ").upper()


def _asyncpg_level(level: str | None) -> str | None:
    return level.lower().replace(" ", "_") if level else None


_THREADS = ThreadIO()
_GREENLETS = GreenletIO()
_HOMES = HomeIO()

_DRIVERS: dict[tuple[str, bool], tuple[Driver, IO]] = {
    ("psycopg", False): (Psycopg(), _THREADS),
    ("psycopg", True): (AsyncPsycopg(), _GREENLETS),
    ("psycopg2", False): (Psycopg2(), _THREADS),
    ("asyncpg", True): (Asyncpg(), _HOMES),
    ("pysqlite", False): (Sqlite(), _THREADS),
    ("aiosqlite", True): (Aiosqlite(), _GREENLETS),
}


def driver_for(dialect: Any) -> tuple[Driver, IO] | None:
    """The driver and the way to wait for an SQLAlchemy dialect; None if it is not supported."""
    if dialect.name in {"mysql", "mariadb"}:
        from sandbox.adapters.sqlalchemy.mysql import MYSQL_DRIVERS

        return MYSQL_DRIVERS.get((dialect.driver, dialect.is_async))
    return _DRIVERS.get((dialect.driver, dialect.is_async))

"""MySQL's and MariaDB's drivers: PyMySQL, and aiomysql and asyncmy as SQLAlchemy adapts them.

The asynchronous two are made alike, after PyMySQL. They close a connection in which a statement
was cancelled, since they cannot tell what the server still sends. A sandbox would be lost with
it, so that a cancelled statement is ended on the server (``KILL QUERY``), and its answer read.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self, TypeVar

from sqlalchemy.util.concurrency import await_only, greenlet_spawn

from sandbox.adapters.sqlalchemy.drivers import _Adapted
from sandbox.adapters.sqlalchemy.io import HomeIO, _wait_for, uninterrupted
from sandbox.connection.driver import ThreadIO
from sandbox.connection.drivers.mysql import MySQLDriver, VirtualMySQL
from sandbox.connection.drivers.pymysql import PyMySQL
from sandbox.errors import UnsupportedInSandboxError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence

    from sandbox.connection.driver import IO, Driver, Session
    from sandbox.connection.virtual import VirtualConnection

__all__ = ("MYSQL_DRIVERS", "Aiomysql", "Asyncmy", "VirtualAsyncMySQL")

T = TypeVar("T")


class _AsyncMySQL(MySQLDriver):
    """What aiomysql and asyncmy share."""

    awaited: ClassVar[frozenset[str]] = frozenset()

    def native(self, real: Any) -> Any:
        return real._connection

    def native_class(self) -> type:
        """The driver's own class."""
        raise NotImplementedError

    async def connect_like(self, native: Any) -> Any:
        """A second connection to the same server, as the same user."""
        raise NotImplementedError

    def virtual_class(self) -> type[VirtualConnection]:
        return VirtualAsyncMySQL

    def send(self, real: Any, statements: Sequence[str]) -> int:
        texts = self.joined(real, statements)
        try:
            for text in texts:
                await_only(uninterrupted(_send(real._connection, text)))
                self.check_undone(real, text)
        except Exception:
            self.refresh(real)
            raise
        return len(texts)

    def refresh(self, real: Any) -> None:
        native = real._connection
        try:
            if not self.lost(real):
                await_only(uninterrupted(native.ping(reconnect=False)))
        except Exception:  # noqa: BLE001 - whatever it is, nothing can be asked any more
            native.close()

    def ping(self, cursor: Any) -> None:
        cursor._adapt_connection.ping(False)

    def ask(self, real: Any, sql: str) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = await_only(uninterrupted(_rows(real._connection, sql)))
        return rows

    def open_cursor(
        self, real: Any, session: Session, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        # What a server-side cursor left on the server would keep everybody else away.
        del session, args, kwargs
        return _patient(_cursor_class(real), self)(real)


def _cursor_class(real: Any) -> type:
    """What ``real.cursor()`` makes; SQLAlchemy 2.0 has it in the module only."""
    cls: type | None = getattr(real, "_cursor_cls", None)
    if cls is None:
        module = sys.modules[type(real).__module__]
        cls = getattr(module, type(real).__name__.replace("_connection", "_cursor"))
    return cls


async def _send(native: Any, text: str) -> None:
    await native.query(text)
    while native._result.has_next:
        await native.next_result()


async def _rows(native: Any, sql: str) -> list[tuple[Any, ...]]:
    await native.query(sql)
    return list(native._result.rows)


class VirtualAsyncMySQL(_Adapted, VirtualMySQL):
    """SQLAlchemy's adapted aiomysql or asyncmy connection as the application sees it."""

    _natives: ClassVar[Mapping[str, str]] = {
        "autocommit": "_autocommit_natively",
        "begin": "_begin_natively",
        "cursor": "_cursor_natively",
        "ensure_closed": "_close_natively",
        "get_autocommit": "get_autocommit",
        "query": "_query_natively",
        "select_db": "_select_natively",
    }

    async def _autocommit_natively(self, value: Any) -> None:
        await greenlet_spawn(self.autocommit, value)

    async def _begin_natively(self) -> None:
        await self._query_natively("BEGIN")

    async def _close_natively(self) -> None:
        await greenlet_spawn(self.close)

    async def _query_natively(self, sql: Any, unbuffered: bool = False) -> Any:
        del unbuffered
        async with _NativeCursor(self) as cursor:
            return await cursor.execute(sql)

    async def _select_natively(self, db: str) -> None:
        await greenlet_spawn(self.select_db, db)

    def _cursor_natively(self, *classes: Any) -> _NativeCursor:
        if any(classes):
            raise UnsupportedInSandboxError(
                f"A cursor class ({classes[0].__name__}) of the driver's own connection reads from"
                f" the real connection past the sandbox. Use SQLAlchemy's connection, or a plain"
                f" cursor()."
            )
        return _NativeCursor(self)


class _NativeCursor:
    """The driver's own cursor as the application sees it: awaited, or entered, then awaited."""

    def __init__(self, virtual: VirtualConnection) -> None:
        self._cursor = virtual.cursor()

    async def execute(self, query: Any, args: Any = None) -> Any:
        await greenlet_spawn(self._cursor.execute, query, *(() if args is None else (args,)))
        return self._cursor.rowcount

    async def executemany(self, query: Any, args: Any) -> Any:
        await greenlet_spawn(self._cursor.executemany, query, args)
        return self._cursor.rowcount

    async def fetchone(self) -> Any:
        return self._cursor.fetchone()

    async def fetchmany(self, size: int | None = None) -> Any:
        return self._cursor.fetchmany(size)

    async def fetchall(self) -> Any:
        return self._cursor.fetchall()

    async def close(self) -> None:
        await greenlet_spawn(self._cursor.close)

    def __await__(self) -> Generator[Any, Any, Self]:
        return self.__aenter__().__await__()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)


class Aiomysql(_AsyncMySQL):
    """``aiomysql.Connection``."""

    name: ClassVar[str] = "aiomysql"

    def connection_class(self) -> type:
        from sqlalchemy.dialects.mysql.aiomysql import AsyncAdapt_aiomysql_connection

        return AsyncAdapt_aiomysql_connection

    def native_class(self) -> type:
        import aiomysql

        cls: type = aiomysql.Connection
        return cls

    async def connect_like(self, native: Any) -> Any:
        import aiomysql

        return await aiomysql.connect(ssl=native._ssl_context, **_address(native))

    def lost(self, real: Any) -> bool:
        return bool(real._connection.closed)

    def closed_error(self) -> Exception:
        import pymysql

        error: Exception = pymysql.err.InterfaceError(0, "Not connected")
        return error


class Asyncmy(_AsyncMySQL):
    """``asyncmy.Connection``."""

    name: ClassVar[str] = "asyncmy"

    def connection_class(self) -> type:
        from sqlalchemy.dialects.mysql.asyncmy import AsyncAdapt_asyncmy_connection

        return AsyncAdapt_asyncmy_connection

    def native_class(self) -> type:
        from asyncmy.connection import Connection

        cls: type = Connection
        return cls

    async def connect_like(self, native: Any) -> Any:
        import asyncmy

        return await asyncmy.connect(ssl=native._ssl_context, **_address(native))

    def lost(self, real: Any) -> bool:
        return not real._connection.connected

    def closed_error(self) -> Exception:
        from asyncmy import errors

        error: Exception = errors.InterfaceError(0, "Not connected")
        return error


def _address(native: Any) -> dict[str, Any]:
    password = native._password
    return {
        "host": native._host,
        "port": native._port,
        "user": native._user,
        "password": password.decode("latin1") if isinstance(password, bytes) else password,
        "unix_socket": native._unix_socket,
    }


# --- cancellation ----------------------------------------------------------------------------

_classes: dict[type, type] = {}


def _patient(cls: type, driver: _AsyncMySQL) -> type:
    """A class of adapted cursors whose statements end on the server before they are cancelled."""
    found = _classes.get(cls)
    if found is None:
        names = {
            "__slots__": (),
            "__module__": cls.__module__,
            "__qualname__": cls.__qualname__,
            "_driver": driver,
        }
        found = _classes[cls] = type(cls.__name__, (_Patient, cls), names)
    return found


class _Patient:
    """Mixed in before an adapted cursor class."""

    __slots__ = ()
    _driver: _AsyncMySQL

    async def _execute_async(self, *args: Any) -> Any:
        return await self._patiently(super()._execute_async(*args))  # type: ignore[misc]

    async def _executemany_async(self, *args: Any) -> Any:
        return await self._patiently(super()._executemany_async(*args))  # type: ignore[misc]

    def _patiently(self, statement: Coroutine[Any, Any, T]) -> _Ended[T]:
        native = self._connection  # type: ignore[attr-defined]
        return _Ended(statement, lambda: _kill_query(self._driver, native))


async def _kill_query(driver: _AsyncMySQL, native: Any) -> None:
    # Without it the statement just takes its time.
    with contextlib.suppress(Exception):
        other = await driver.connect_like(native)
        try:
            await other.query(f"KILL QUERY {native.thread_id()}")
        finally:
            await other.ensure_closed()


class _Ended(uninterrupted[T]):
    """Await to the end; when cancelled, have something done that brings the end about."""

    def __init__(
        self, coroutine: Coroutine[Any, Any, T], hurry: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        super().__init__(coroutine)
        self._hurry = hurry

    def __await__(self) -> Generator[Any, Any, T]:
        steps = self._coroutine.__await__()
        cancelled: asyncio.CancelledError | None = None
        hurried: asyncio.Task[None] | None = None
        try:
            while True:
                future = next(steps)
                done = False
                while not done:
                    try:
                        if future is None:
                            yield
                        else:
                            yield from _wait_for(future)
                    except asyncio.CancelledError as error:
                        cancelled = error
                        if hurried is None:
                            hurried = asyncio.ensure_future(self._hurry())
                    done = future is None or future.done()
        except StopIteration as stop:
            result: T = stop.value
        except Exception:
            if cancelled is None:
                raise
        if cancelled is None:
            return result
        if hurried is not None:
            # It must not reach the next statement.
            yield from uninterrupted(_finished(hurried)).__await__()
        raise cancelled


async def _finished(task: asyncio.Task[None]) -> None:
    await asyncio.wait([task])


_HOMES: Final = HomeIO()

MYSQL_DRIVERS: Final[dict[tuple[str, bool], tuple[Driver, IO]]] = {
    ("pymysql", False): (PyMySQL(), ThreadIO()),
    ("aiomysql", True): (Aiomysql(), _HOMES),
    ("asyncmy", True): (Asyncmy(), _HOMES),
}

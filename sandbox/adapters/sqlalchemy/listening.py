"""Listeners on the asynchronous drivers' own connections: asyncpg's callbacks, psycopg's reader.

Everything runs on the event loop, and in the context, of who asked for it, wherever the real
connection lives and whoever commits.

Source: the documentation of ``asyncpg.Connection.add_listener`` and
``psycopg.AsyncConnection.notifies``.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import weakref
from typing import TYPE_CHECKING, Any, ClassVar

from sqlalchemy.util.concurrency import await_only, greenlet_spawn

from sandbox.connection.drivers.psycopg import PsycopgConnection, notification
from sandbox.connection.listening import ListeningConnection, Reading
from sandbox.core.statements import Kind, Statement
from sandbox.errors import OwnershipError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from weakref import ReferenceType

    from sandbox.connection.channels import Inbox, Notification

__all__ = ("ListeningAsyncPsycopg", "ListeningAsyncpg")


class _Callback:
    """A listener of the application's, with the loop and the context that it was given in."""

    def __init__(self, function: Callable[..., Any], connection: ListeningConnection) -> None:
        import asyncpg

        if not callable(function):
            raise asyncpg.InterfaceError(
                f"expected a callable or an `async def` function, got {function!r}"
            )
        self._function = function
        self._connection: ReferenceType[ListeningConnection] = weakref.ref(connection)
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._tasks: set[asyncio.Task[Any]] = set()

    def __call__(self, _: object, pid: int, channel: str, payload: str) -> None:
        """Have it called soon; from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop was closed: its listeners are gone
            self._loop.call_soon_threadsafe(self._run, pid, channel, payload, context=self._context)

    def _run(self, pid: int, channel: str, payload: str) -> None:
        connection: Any = self._connection()
        if connection is None or connection._closed:
            return
        result = self._function(connection.driver_connection, pid, channel, payload)
        if inspect.iscoroutinefunction(self._function):
            task = self._loop.create_task(result, context=self._context)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


_Callbacks = dict[str, dict[Any, _Callback]]


class ListeningAsyncpg(ListeningConnection):
    """``add_listener`` and ``remove_listener`` of ``asyncpg.Connection``."""

    _natives: ClassVar[Mapping[str, str]] = {
        "add_listener": "_add_listener",
        "remove_listener": "_remove_listener",
    }
    _outside: _Callbacks | None = None
    """Those on a real connection of its own."""

    async def _add_listener(self, channel: str, callback: Callable[..., Any]) -> None:
        inbox = await greenlet_spawn(lambda: self._listens(anew=True))
        made = _Callback(callback, self)
        if inbox is None:
            await self._add_outside(channel, callback, made)
            return
        callbacks: _Callbacks = inbox.extra.setdefault("callbacks", {})
        inbox.on_change(self._pass_on)
        if channel in callbacks:
            callbacks[channel][callback] = made
            return
        callbacks[channel] = {callback: made}
        try:
            await greenlet_spawn(self._say, "LISTEN", channel)
        except BaseException:
            callbacks.pop(channel, None)
            raise

    async def _remove_listener(self, channel: str, callback: Callable[..., Any]) -> None:
        if self._closed:
            return
        try:
            inbox = await greenlet_spawn(self._listens)
        except OwnershipError:
            return  # gone with the sandbox
        if inbox is None:
            await self._remove_outside(channel, callback)
            return
        callbacks: _Callbacks = inbox.extra.get("callbacks", {})
        if callbacks.get(channel, {}).pop(callback, None) is not None and not callbacks[channel]:
            del callbacks[channel]
            await greenlet_spawn(self._say, "UNLISTEN", channel)

    def _say(self, command: str, channel: str) -> None:
        """As the driver would, who begins no transaction for it."""
        quoted = '"' + channel.replace('"', '""') + '"'
        session = self._session
        before, session.autocommit = session.autocommit, True
        try:
            cursor = self.cursor()
            cursor.execute(f"{command} {quoted}")
            cursor.close()
        finally:
            session.autocommit = before

    def _tell(self, inbox: Inbox) -> None:
        callbacks: _Callbacks = inbox.extra.get("callbacks", {})

        def give(each: Notification) -> None:
            for callback in list(callbacks.get(each.channel, {}).values()):
                callback(None, each.pid, each.channel, each.payload)

        inbox.hand_out(give)

    def _pass_on(self) -> None:
        """Something has come, in whatever thread committed it."""
        inbox = self._between()
        if inbox is not None:
            self._tell(inbox)

    async def _add_outside(self, channel: str, key: Any, callback: _Callback) -> None:
        outside = self._outside = self._outside if self._outside is not None else {}
        if key not in outside.setdefault(channel, {}):
            outside[channel][key] = callback
            await self._on_native("add_listener", channel, callback)

    async def _remove_outside(self, channel: str, key: Any) -> None:
        callback = (self._outside or {}).get(channel, {}).pop(key, None)
        if callback is not None:
            await self._on_native("remove_listener", channel, callback)

    async def _on_native(self, name: str, *args: Any) -> None:
        def call(real: Any) -> None:
            await_only(getattr(real._connection, name)(*args))

        await greenlet_spawn(self._on_real, call, Statement(Kind.WRITE, f"{name}()"))


class ListeningAsyncPsycopg(PsycopgConnection):
    """What ``psycopg.AsyncConnection`` has for listeners, and needs for them."""

    _natives: ClassVar[Mapping[str, str]] = {
        "notifies": "_notifies",
        "add_notify_handler": "add_notify_handler",
        "remove_notify_handler": "remove_notify_handler",
        "fileno": "fileno",
        "set_autocommit": "_set_autocommit",
    }

    async def _notifies(
        self,
        *,
        timeout: float | None = None,  # noqa: ASYNC109
        stop_after: int | None = None,
    ) -> AsyncIterator[Any]:
        inbox = await greenlet_spawn(self._listens)
        if inbox is None:
            real = await greenlet_spawn(self._any_real)
            async for each in real._connection.notifies(timeout=timeout, stop_after=stop_after):
                yield each
            return
        self._discourage_handlers()
        reading = Reading(self, inbox, timeout, stop_after)
        with contextlib.closing(reading.batches()) as batches:
            for batch in batches:
                if not batch:
                    with reading.bell() as bell:
                        await bell.acquire_async(reading.remaining)
                while batch:
                    each = notification(batch.popleft())
                    self._handle(each)
                    yield each

    async def _set_autocommit(self, value: bool) -> None:
        self.set_autocommit(value)

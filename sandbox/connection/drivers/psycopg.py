"""psycopg 3: its connections, and what both of its faces (sync, adapted async) share."""

from __future__ import annotations

import contextlib
import json
import warnings
from typing import TYPE_CHECKING, Any, ClassVar

from sandbox.connection.dialect import POSTGRESQL
from sandbox.connection.driver import Driver, Session
from sandbox.connection.listening import ListeningConnection, Reading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from sandbox.connection.channels import Inbox, Notification
    from sandbox.connection.cursor import VirtualCursor
    from sandbox.connection.dialect import Dialect
    from sandbox.connection.virtual import VirtualConnection

__all__ = ("Psycopg", "PsycopgConnection", "VirtualPsycopg", "notification")


class Psycopg(Driver):
    """``psycopg.Connection``."""

    name: ClassVar[str] = "psycopg"
    dialect: ClassVar[Dialect] = POSTGRESQL
    leaves_open: ClassVar[bool] = False

    def connection_class(self) -> type:
        import psycopg

        return psycopg.Connection

    def virtual_class(self) -> type[VirtualConnection]:
        return VirtualPsycopg

    def session(self, real: Any) -> Session:
        session = Session()
        session.autocommit = real.autocommit
        driver = _native(real)
        level = driver.isolation_level
        session.isolation = level.name.replace("_", " ") if level is not None else None
        session.read_only = driver.read_only
        session.deferrable = driver.deferrable
        return session

    def apply(self, real: Any, session: Session) -> None:
        if real.autocommit != session.autocommit:
            real.autocommit = session.autocommit
        level = _level(session.isolation)
        if real.isolation_level != level:
            real.isolation_level = level
        if real.read_only != session.read_only:
            real.read_only = session.read_only
        if real.deferrable != session.deferrable:
            real.deferrable = session.deferrable

    def take_over(self, real: Any) -> None:
        if not real.autocommit:
            real.autocommit = True

    def send(self, real: Any, statements: Sequence[str]) -> int:
        # The simple query protocol takes several statements in one round trip. libpq's own call
        # blocks for that trip only, also under asyncio, where awaiting it would cost more.
        from psycopg import errors, pq

        pgconn = _native(real).pgconn
        if pgconn.transaction_status == _ACTIVE:
            # Whoever interrupted it did not cancel it, and libpq would wait for it in C.
            _native(real).cancel()
            raise errors.OperationalError("a statement that was interrupted is still running")
        result = pgconn.exec_("; ".join(statements).encode())
        if result.status not in {pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK}:
            raise errors.error_from_result(result)
        return 1

    def ask(self, real: Any, sql: str) -> list[tuple[Any, ...]]:
        from psycopg import errors, pq

        result = _native(real).pgconn.exec_(sql.encode())
        if result.status != pq.ExecStatus.TUPLES_OK:
            raise errors.error_from_result(result)
        return [
            tuple(_text(result.get_value(row, column)) for column in range(result.nfields))
            for row in range(result.ntuples)
        ]

    def forget_plans(self, real: Any) -> list[str]:
        # What psycopg does when it sees a rollback pass (psycopg._preparing.PrepareManager).
        prepared = getattr(_native(real), "_prepared", None)
        if prepared is None or not prepared.clear():
            return []
        # It would send this by itself, in a round trip of its own.
        prepared._to_flush.clear()
        return ["DEALLOCATE ALL"]

    def application_name(self, real: Any) -> str | None:
        return _text(_native(real).pgconn.parameter_status(b"application_name"))

    def pid(self, real: Any) -> int:
        return int(_native(real).pgconn.backend_pid)

    def server_cursor(self, cursor: Any) -> str | None:
        native = getattr(cursor, "_cursor", cursor)
        return None if native.withhold else str(native.name)

    def in_transaction(self, real: Any) -> bool:
        return bool(_native(real).pgconn.transaction_status in _INSIDE)

    def aborted(self, real: Any, error: BaseException) -> bool:
        del error
        return bool(_native(real).pgconn.transaction_status == _IN_ERROR)

    def lost(self, real: Any) -> bool:
        return bool(_native(real).closed)

    def open_cursor(
        self, real: Any, session: Session, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        if "row_factory" in session.extra and "row_factory" not in kwargs:
            kwargs = {**kwargs, "row_factory": session.extra["row_factory"]}
        cursor = real.cursor(*args, **kwargs)
        if "json" in session.extra:
            _set_json(getattr(cursor, "_cursor", cursor), *session.extra["json"])
        return cursor

    def plain_json(self, real: Any) -> None:
        """Take the engine's JSON functions off: each of its cursors is given them instead, since
        engines that have others, or none, use the same connection.
        """
        _set_json(_native(real), json.dumps, json.loads)

    def forget_cursor(self, real: Any) -> None:
        getattr(real, "_cursor", real)._closed = True

    def text(self, query: Any, real: Any) -> str:
        if hasattr(query, "as_string"):
            return str(query.as_string(None))
        return super().text(query, real)

    def closed_error(self) -> Exception:
        import psycopg

        return psycopg.OperationalError("the connection is closed")


# libpq's PGTransactionStatusType: ACTIVE, INTRANS and INERROR are inside.
_INSIDE = frozenset({1, 2, 3})
_ACTIVE, _IN_ERROR = 1, 3


def _text(value: bytes | None) -> str | None:
    return value.decode() if value is not None else None


def _native(real: Any) -> Any:
    """The psycopg connection below SQLAlchemy's adapted one, or itself."""
    return getattr(real, "_connection", real)


class PsycopgConnection(ListeningConnection):
    """What psycopg's connections have beyond PEP 249, for both faces."""

    _virtual: ClassVar[frozenset[str]] = frozenset({"row_factory", "cursor_factory"})
    _handlers: tuple[Callable[[Any], object], ...] = ()

    @property
    def closed(self) -> bool:
        """Closed by the application, or lost."""
        return self._closed or self._lost

    @property
    def broken(self) -> bool:
        """Lost."""
        return self._lost

    @property
    def autocommit(self) -> bool:
        """Whether each statement is its own transaction."""
        return self._session.autocommit

    @autocommit.setter
    def autocommit(self, value: bool) -> None:
        self.set_autocommit(value)

    @property
    def isolation_level(self) -> Any:
        """The level of transactions to come."""
        return _level(self._session.isolation)

    @isolation_level.setter
    def isolation_level(self, value: Any) -> None:
        self.set_isolation_level(value)

    @property
    def read_only(self) -> bool | None:
        """Whether transactions to come may write."""
        return self._session.read_only

    @read_only.setter
    def read_only(self, value: bool | None) -> None:
        self.set_read_only(value)

    @property
    def deferrable(self) -> bool | None:
        """Whether serializable read-only transactions wait for a safe snapshot."""
        return self._session.deferrable

    @deferrable.setter
    def deferrable(self, value: bool | None) -> None:
        self.set_deferrable(value)

    def set_autocommit(self, value: bool) -> None:
        """Refused in a transaction, as psycopg does."""
        self._set("autocommit", bool(value))

    def set_isolation_level(self, value: Any) -> None:
        """Refused in a transaction, as psycopg does."""
        from psycopg import IsolationLevel

        name = IsolationLevel(value).name.replace("_", " ") if value is not None else None
        self._set("isolation", name)

    def set_read_only(self, value: bool | None) -> None:
        """Refused in a transaction, as psycopg does."""
        self._set("read_only", value)

    def set_deferrable(self, value: bool | None) -> None:
        """Refused in a transaction, as psycopg does."""
        self._set("deferrable", value)

    def _set(self, name: str, value: Any) -> None:
        if self._in_use:
            import psycopg

            raise psycopg.ProgrammingError(
                f"can't change {name!r} now: connection in transaction status INTRANS"
            )
        setattr(self._session, name, value)

    def add_notify_handler(self, callback: Callable[[Any], object]) -> None:
        """Have it called with what came when a transaction or ``notifies()`` is done."""
        if self._passes_through():
            self._any_real().add_notify_handler(callback)
            return
        self._handlers = (*self._handlers, callback)
        self._attentive = True

    def remove_notify_handler(self, callback: Callable[[Any], object]) -> None:
        """ValueError if it is none."""
        if self._passes_through():
            self._any_real().remove_notify_handler(callback)
            return
        handlers = list(self._handlers)
        handlers.remove(callback)
        self._handlers = tuple(handlers)

    def _tell(self, inbox: Inbox) -> None:
        if self._handlers:
            for each in inbox.take():
                self._handle(notification(each))

    def _handle(self, each: Any) -> None:
        for handler in self._handlers:
            handler(each)

    def _discourage_handlers(self) -> None:
        if self._handlers:
            warnings.warn(
                "using 'notifies()' together with notifies handlers on the same connection is not"
                " reliable. Please use only one of these methods",
                RuntimeWarning,
                stacklevel=3,
            )

    @property
    def info(self) -> Any:
        """``psycopg.ConnectionInfo``, with this connection's own transaction status."""
        return _Info(self, self._any_real().info)


class VirtualPsycopg(PsycopgConnection):
    """``psycopg.Connection`` as the application sees it."""

    def execute(self, query: Any, *args: Any, **kwargs: Any) -> VirtualCursor:
        """Make a cursor and execute."""
        binary = {"binary": kwargs.pop("binary")} if "binary" in kwargs else {}
        cursor = self.cursor(**binary)
        cursor.execute(query, *args, **kwargs)
        return cursor

    def notifies(
        self, *, timeout: float | None = None, stop_after: int | None = None
    ) -> Iterator[Any]:
        """Yield ``psycopg.Notify`` as they come; nobody else is held up meanwhile."""
        inbox = self._listens()
        if inbox is None:
            yield from self._any_real().notifies(timeout=timeout, stop_after=stop_after)
            return
        self._discourage_handlers()
        reading = Reading(self, inbox, timeout, stop_after)
        with contextlib.closing(reading.batches()) as batches:
            for batch in batches:
                if not batch:
                    with reading.bell() as bell:
                        self._io.lock(bell, reading.remaining)
                while batch:
                    each = notification(batch.popleft())
                    self._handle(each)
                    yield each

    @contextlib.contextmanager
    def transaction(
        self,
        savepoint_name: str | None = None,
        force_rollback: bool = False,
    ) -> Iterator[Any]:
        """Psycopg's block: a transaction, or a savepoint inside one."""
        import psycopg

        outermost = not self._in_use
        name = savepoint_name or f"_pg3_{id(object())}"
        cursor = self.cursor()
        if not outermost:
            cursor.execute(f'SAVEPOINT "{name}"')
        else:
            cursor.execute("BEGIN")
        try:
            yield self
            if force_rollback:
                raise psycopg.Rollback
        except BaseException as error:
            if outermost:
                self.rollback()
            else:
                cursor.execute(f'ROLLBACK TO SAVEPOINT "{name}"')
                cursor.execute(f'RELEASE SAVEPOINT "{name}"')
            if not isinstance(error, psycopg.Rollback):
                raise
        else:
            if outermost:
                self.commit()
            else:
                cursor.execute(f'RELEASE SAVEPOINT "{name}"')


class _Info:
    """The real connection's facts and the virtual one's state."""

    def __init__(self, connection: PsycopgConnection, real: Any) -> None:
        self._virtual = connection
        self._real = real

    @property
    def transaction_status(self) -> Any:
        from psycopg.pq import TransactionStatus

        if self._virtual._failed:
            return TransactionStatus.INERROR
        return TransactionStatus.INTRANS if self._virtual._in_use else TransactionStatus.IDLE

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def _set_json(context: Any, dumps: Any, loads: Any) -> None:
    from psycopg.types.json import set_json_dumps, set_json_loads

    if dumps is not None:
        set_json_dumps(dumps, context)
    if loads is not None:
        set_json_loads(loads, context)


def notification(each: Notification) -> Any:
    """As psycopg's own class has it."""
    from psycopg import Notify

    return Notify(each.channel, each.payload, each.pid)


def _level(name: str | None) -> Any:
    from psycopg import IsolationLevel

    return IsolationLevel[name.replace(" ", "_")] if name is not None else None

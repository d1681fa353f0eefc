"""psycopg 3: its connections, and what both of its faces (sync, adapted async) share."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, ClassVar

from sandbox.connection.dialect import POSTGRESQL
from sandbox.connection.driver import Driver, Session
from sandbox.connection.virtual import VirtualConnection

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sandbox.connection.cursor import VirtualCursor
    from sandbox.connection.dialect import Dialect

__all__ = ("Psycopg", "PsycopgConnection", "VirtualPsycopg")


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
        if result.status != pq.ExecStatus.COMMAND_OK:
            raise errors.error_from_result(result)
        return 1

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
        return real.cursor(*args, **kwargs)

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


def _native(real: Any) -> Any:
    """The psycopg connection below SQLAlchemy's adapted one, or itself."""
    return getattr(real, "_connection", real)


class PsycopgConnection(VirtualConnection):
    """What psycopg's connections have beyond PEP 249, for both faces."""

    _virtual: ClassVar[frozenset[str]] = frozenset({"row_factory", "cursor_factory"})

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


def _level(name: str | None) -> Any:
    from psycopg import IsolationLevel

    return IsolationLevel[name.replace(" ", "_")] if name is not None else None

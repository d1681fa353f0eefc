"""psycopg2."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar

from sandbox.connection.dialect import POSTGRESQL
from sandbox.connection.driver import Driver, Session
from sandbox.connection.listening import ListeningConnection

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sandbox.connection.channels import Inbox
    from sandbox.connection.dialect import Dialect
    from sandbox.connection.virtual import VirtualConnection

__all__ = ("Psycopg2", "VirtualPsycopg2")

# psycopg2.extensions.ISOLATION_LEVEL_*, which are constants of its documentation.
_AUTOCOMMIT, _DEFAULT = 0, None
_LEVELS = {
    1: "READ COMMITTED",
    2: "REPEATABLE READ",
    3: "SERIALIZABLE",
    4: "READ UNCOMMITTED",
}
_NUMBERS = {name: number for number, name in _LEVELS.items()}


class Psycopg2(Driver):
    """``psycopg2.extensions.connection``."""

    name: ClassVar[str] = "psycopg2"
    dialect: ClassVar[Dialect] = POSTGRESQL

    def connection_class(self) -> type:
        from psycopg2.extensions import connection

        cls: type = connection
        return cls

    def virtual_class(self) -> type[VirtualConnection]:
        return VirtualPsycopg2

    def session(self, real: Any) -> Session:
        session = Session()
        session.autocommit = bool(real.autocommit)
        session.isolation = _LEVELS.get(real.isolation_level)
        session.read_only = real.readonly
        session.deferrable = real.deferrable
        return session

    def apply(self, real: Any, session: Session) -> None:
        if bool(real.autocommit) != session.autocommit:
            real.autocommit = session.autocommit
        if _LEVELS.get(real.isolation_level) != session.isolation:
            real.isolation_level = _NUMBERS.get(session.isolation or "", _DEFAULT)
        if real.readonly != session.read_only:
            real.readonly = session.read_only
        if real.deferrable != session.deferrable:
            real.deferrable = session.deferrable

    def take_over(self, real: Any) -> None:
        if not real.autocommit:
            real.autocommit = True

    def send(self, real: Any, statements: Sequence[str]) -> int:
        from psycopg2.extensions import cursor as plain

        with real.cursor(cursor_factory=plain) as cursor:
            cursor.execute("; ".join(statements))
        return 1

    def ask(self, real: Any, sql: str) -> list[tuple[Any, ...]]:
        from psycopg2.extensions import cursor as plain

        with real.cursor(cursor_factory=plain) as cursor:
            cursor.execute(sql)
            rows: list[tuple[Any, ...]] = cursor.fetchall()
            return rows

    def application_name(self, real: Any) -> str | None:
        name: str | None = real.get_parameter_status("application_name")
        return name

    def pid(self, real: Any) -> int:
        return int(real.get_backend_pid())

    def in_transaction(self, real: Any) -> bool:
        # TRANSACTION_STATUS_ACTIVE, _INTRANS, _INERROR
        return real.get_transaction_status() in {1, 2, 3}

    def aborted(self, real: Any, error: BaseException) -> bool:
        del error
        return bool(real.get_transaction_status() == 3)

    def lost(self, real: Any) -> bool:
        return bool(real.closed)

    def open_cursor(
        self, real: Any, session: Session, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        if "cursor_factory" in session.extra and "cursor_factory" not in kwargs:
            kwargs = {**kwargs, "cursor_factory": session.extra["cursor_factory"]}
        if self.holds_server_state(args, kwargs):
            # psycopg2 sees autocommit, and would refuse a named cursor that ends with a
            # transaction. The sandbox's never commits, so that there is no difference.
            kwargs = {**kwargs, "withhold": True}
        cursor = real.cursor(*args, **kwargs)
        if "json" in session.extra:
            _set_json(cursor, session.extra["json"][1])
        return cursor

    def plain_json(self, real: Any) -> None:
        """Take the engine's JSON function off: each of its cursors is given it instead, since
        engines that have another, or none, use the same connection.
        """
        _set_json(real, json.loads)

    def text(self, query: Any, real: Any) -> str:
        if hasattr(query, "as_string"):
            return str(query.as_string(real._any_real()))
        return super().text(query, real)

    def closed_error(self) -> Exception:
        import psycopg2

        error: Exception = psycopg2.InterfaceError("connection already closed")
        return error


def _set_json(context: Any, loads: Any) -> None:
    from psycopg2 import extras

    if loads is not None:
        extras.register_default_json(context, loads=loads)
        extras.register_default_jsonb(context, loads=loads)


class VirtualPsycopg2(ListeningConnection):
    """``psycopg2.extensions.connection`` as the application sees it."""

    _virtual: ClassVar[frozenset[str]] = frozenset({"cursor_factory"})

    @property
    def closed(self) -> int:
        """0 while it is open."""
        return int(self._closed or self._lost)

    @property
    def autocommit(self) -> bool:
        """Whether each statement is its own transaction."""
        return self._session.autocommit

    @autocommit.setter
    def autocommit(self, value: bool) -> None:
        self._set("autocommit", bool(value))

    @property
    def isolation_level(self) -> int | None:
        """One of psycopg2's ``ISOLATION_LEVEL_*``."""
        return _NUMBERS.get(self._session.isolation or "")

    @isolation_level.setter
    def isolation_level(self, value: Any) -> None:
        self._set("isolation", _level(value))

    def set_isolation_level(self, level: Any) -> None:
        """Roll back, then set; level 0 is autocommit."""
        self.rollback()
        self._session.autocommit = level == _AUTOCOMMIT
        self._session.isolation = _level(level)

    @property
    def readonly(self) -> bool | None:
        """Whether transactions to come may write."""
        return self._session.read_only

    @readonly.setter
    def readonly(self, value: bool | None) -> None:
        self._set("read_only", value)

    @property
    def deferrable(self) -> bool | None:
        """Whether serializable read-only transactions wait for a safe snapshot."""
        return self._session.deferrable

    @deferrable.setter
    def deferrable(self, value: bool | None) -> None:
        self._set("deferrable", value)

    def set_session(
        self,
        isolation_level: Any = None,
        readonly: bool | None = None,
        deferrable: bool | None = None,
        autocommit: bool | None = None,
    ) -> None:
        """Set several at once."""
        if isolation_level is not None:
            self._set("isolation", _level(isolation_level))
        if readonly is not None:
            self._set("read_only", readonly)
        if deferrable is not None:
            self._set("deferrable", deferrable)
        if autocommit is not None:
            self._set("autocommit", autocommit)

    @property
    def status(self) -> int:
        """STATUS_READY or STATUS_BEGIN."""
        return 2 if self._in_use else 1

    def get_transaction_status(self) -> int:
        """The virtual connection's own."""
        return 3 if self._failed else 2 if self._in_use else 0

    @property
    def notifies(self) -> Any:
        """What :meth:`poll` and transactions have brought in."""
        inbox = self._listens(anew=True)
        if inbox is None:
            return self._any_real().notifies
        return inbox.extra.setdefault("notifies", [])

    @notifies.setter
    def notifies(self, value: Any) -> None:
        inbox = self._listens(anew=True)
        if inbox is None:
            self._any_real().notifies = value
        else:
            inbox.extra["notifies"] = value

    def poll(self) -> int:
        """POLL_OK, after moving what has come to ``notifies``."""
        inbox = self._listens()
        if inbox is None:
            return int(self._any_real().poll())
        inbox.check_open()
        if self._transaction is not None:
            # The server would have sent nothing yet: select() is to wait.
            inbox.hush()
        else:
            self._tell(inbox)
        return 0

    def _tell(self, inbox: Inbox) -> None:
        from psycopg2.extensions import Notify

        # A list, or whatever has append() and was put in its place.
        notifies = inbox.extra.setdefault("notifies", [])
        for each in inbox.take():
            notifies.append(Notify(each.pid, each.channel, each.payload))

    def _set(self, name: str, value: Any) -> None:
        if self._in_use:
            import psycopg2

            raise psycopg2.ProgrammingError("set_session cannot be used inside a transaction")
        setattr(self._session, name, value)


def _level(value: Any) -> str | None:
    if isinstance(value, str):
        return value.upper() if value.upper() != "DEFAULT" else None
    return _LEVELS.get(value)

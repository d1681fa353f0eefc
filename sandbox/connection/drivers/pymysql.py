"""PyMySQL.

Source: its ``connections.py`` and ``cursors.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from sandbox.connection.drivers.mysql import MySQLDriver, VirtualMySQL

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType

    from sandbox.connection.driver import Session
    from sandbox.connection.virtual import VirtualConnection

__all__ = ("PyMySQL", "VirtualPyMySQL")


class PyMySQL(MySQLDriver):
    """``pymysql.connections.Connection``."""

    name: ClassVar[str] = "pymysql"
    leaves_open: ClassVar[bool] = False

    def connection_class(self) -> type:
        from pymysql.connections import Connection

        cls: type = Connection
        return cls

    def virtual_class(self) -> type[VirtualConnection]:
        return VirtualPyMySQL

    def session(self, real: Any) -> Session:
        session = super().session(real)
        session.extra["cursorclass"] = real.cursorclass
        return session

    def send(self, real: Any, statements: Sequence[str]) -> int:
        texts = self.joined(real, statements)
        try:
            for text in texts:
                real.query(text)
                while real._result.has_next:
                    real.next_result()
                self.check_undone(real, text)
        except Exception:
            self.refresh(real)
            raise
        return len(texts)

    def refresh(self, real: Any) -> None:
        try:
            if real.open:
                real.ping(reconnect=False)
        except Exception:  # noqa: BLE001 - whatever it is, nothing can be asked any more
            real._force_close()

    def ping(self, cursor: Any) -> None:
        cursor.connection.ping(reconnect=False)

    def ask(self, real: Any, sql: str) -> list[tuple[Any, ...]]:
        from pymysql.cursors import Cursor

        with Cursor(real) as cursor:
            cursor.execute(sql)
            return list(cursor.fetchall())

    def lost(self, real: Any) -> bool:
        return not real.open

    def open_cursor(
        self, real: Any, session: Session, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        asked = args[0] if args else kwargs.get("cursor")
        return _stored(asked or session.extra["cursorclass"])(real)

    def closed_error(self) -> Exception:
        import pymysql

        error: Exception = pymysql.err.InterfaceError(0, "")
        return error


class VirtualPyMySQL(VirtualMySQL):
    """``pymysql.connections.Connection`` as the application sees it."""

    _virtual: ClassVar[frozenset[str]] = frozenset({"cursorclass"})

    @property
    def open(self) -> bool:
        """Neither closed by the application nor lost."""
        return not (self._closed or self._lost)

    @property
    def autocommit_mode(self) -> bool:
        """What was asked for when it connected, or since."""
        return self._session.autocommit

    def begin(self) -> None:
        """START TRANSACTION."""
        self.cursor().execute("BEGIN")

    def query(self, sql: Any, unbuffered: bool = False) -> Any:
        """Run a statement without a cursor; its result is the connection's."""
        del unbuffered
        text = sql if isinstance(sql, str) else bytes(sql).decode()
        return self._run(self.cursor(), text, lambda real, _: real.connection.query(sql))

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # PyMySQL closes, and commits nothing.
        self.close()


_classes: dict[type, type] = {}


def _stored(cls: type) -> type:
    """A cursor class that reads all its results when it executes.

    What is left on the server would be thrown away by the next statement of another connection
    of the test. The status flags after the last of them say whether a procedure has committed.
    """
    found = _classes.get(cls)
    if found is None:
        names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
        found = _classes[cls] = type(cls.__name__, (_Stored, cls), names)
    return found


class _Stored:
    """Mixed in before a PyMySQL cursor class."""

    _results: Iterator[Any] = iter(())
    _unread: Iterator[Any] = iter(())

    def _query(self, q: Any) -> Any:
        cursor: Any = self
        connection = cursor._get_db()
        cursor._clear_result()
        connection.query(q)
        results = [connection._result]
        while connection._result.has_next:
            connection.next_result()
            results.append(connection._result)
        self._results = iter(results)
        self._nextset()
        return cursor.rowcount

    def _nextset(self, unbuffered: bool = False) -> bool | None:
        del unbuffered
        cursor: Any = self
        result = next(self._results, None)
        if result is None:
            return None
        cursor._clear_result()
        connection = cursor._get_db()
        latest, connection._result = connection._result, result
        try:
            # It takes the connection's.
            cursor._do_get_result()
        finally:
            connection._result = latest
        self._unread = iter(result.rows or ())
        return True

    def read_next(self) -> Any:
        """SSCursor's next row, which was to come from the server."""
        cursor: Any = self
        return cursor._conv_row(next(self._unread, None))

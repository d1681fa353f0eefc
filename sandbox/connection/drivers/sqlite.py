"""sqlite3 of the standard library, and what aiosqlite's adapted face shares with it."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, ClassVar

from sandbox.connection.dialect import SQLITE
from sandbox.connection.driver import Driver, Session
from sandbox.connection.shared import SharedConnection
from sandbox.connection.virtual import VirtualConnection
from sandbox.core.statements import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from sandbox.connection.cursor import VirtualCursor
    from sandbox.connection.dialect import Dialect
    from sandbox.core.frames import Transaction
    from sandbox.core.statements import Statement

__all__ = ("Sqlite", "VirtualSqlite")


class Sqlite(Driver):
    """``sqlite3.Connection``."""

    name: ClassVar[str] = "sqlite3"
    dialect: ClassVar[Dialect] = SQLITE

    def connection_class(self) -> type:
        import sqlite3

        return sqlite3.Connection

    def virtual_class(self) -> type[VirtualConnection]:
        return VirtualSqlite

    def session(self, real: Any) -> Session:
        session = Session()
        session.extra["isolation_level"] = real.isolation_level
        session.autocommit = real.isolation_level is None
        return session

    def apply(self, real: Any, session: Session) -> None:
        level = session.extra["isolation_level"]
        if real.isolation_level != level:
            real.isolation_level = level

    def take_over(self, real: Any) -> None:
        if real.isolation_level is not None:
            real.isolation_level = None

    def send(self, real: Any, statements: Sequence[str]) -> int:
        for statement in statements:
            real.execute(statement)
        return len(statements)

    def in_transaction(self, real: Any) -> bool:
        return bool(_native(real).in_transaction)

    def no_savepoint(self, error: BaseException) -> bool:
        return "no such savepoint" in str(error)

    def aborted(self, real: Any, error: BaseException) -> bool:
        # A failing statement undoes itself and nothing else.
        del real, error
        return False

    def lost(self, real: Any) -> bool:
        import sqlite3

        try:
            return bool(_native(real).total_changes < 0)
        except sqlite3.ProgrammingError as error:
            return "closed" in str(error)

    def open_cursor(
        self, real: Any, session: Session, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        cursor = real.cursor(*args, **kwargs)
        if "row_factory" in session.extra:
            cursor.row_factory = session.extra["row_factory"]
        return cursor

    def holds_server_state(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        del args
        return bool(kwargs.get("server_side"))

    def closed_error(self) -> Exception:
        import sqlite3

        return sqlite3.ProgrammingError("Cannot operate on a closed database.")


def _native(real: Any) -> Any:
    """The sqlite3 connection below aiosqlite's, or itself."""
    adapted = getattr(real, "_connection", None)
    return adapted._conn if adapted is not None else real


class VirtualSqlite(VirtualConnection):
    """``sqlite3.Connection`` as the application sees it."""

    _virtual: ClassVar[frozenset[str]] = frozenset({"row_factory"})

    def commit(self) -> None:
        """End the transaction; refused, as by SQLite, while rows of a write wait to be fetched."""
        if any(unread.rows for unread in self._unread()):
            import sqlite3

            raise sqlite3.OperationalError("cannot commit transaction - SQL statements in progress")
        super().commit()

    def _unread(self) -> list[_Unread]:
        unread: list[_Unread] = self._session.extra.get("unread", [])
        unread[:] = [one for one in unread if one.rows and one.of is self._transaction]
        return unread

    def _run(self, cursor: VirtualCursor, text: str, call: Callable[[Any, str | None], Any]) -> Any:
        if isinstance(cursor._real, _Unread):
            cursor._real.rows.clear()
            cursor._real = cursor._real.cursor

        def run(real: Any, replaced: str | None) -> Any:
            result = call(real, replaced)
            if result is not real or not isinstance(self._target, SharedConnection):
                return result
            if real.description is None or real.description[0] is None or _reads(text):
                return result
            # SQLite makes and releases no savepoint while the rows of a write wait to be fetched,
            # not for others either.
            unread = cursor._real = _Unread(real, real.fetchall(), self._transaction)
            self._session.extra.setdefault("unread", []).append(unread)
            return unread

        return super()._run(cursor, text, run)

    def _run_one(
        self,
        target: SharedConnection,
        cursor: VirtualCursor,
        statement: Statement,
        run: Callable[[Any], Any],
        run_text: Callable[[Any, str | None], Any],
    ) -> Any:
        extra, before = self._session.extra, self._transaction
        result = super()._run_one(target, cursor, statement, run, run_text)
        transaction = self._transaction
        if transaction is None:
            return result
        if statement.kind is Kind.SAVEPOINT and before is None:
            # SQLite: outside of a transaction a SAVEPOINT begins one that its RELEASE commits.
            extra["begun_by_savepoint"] = transaction
        ours = extra.get("begun_by_savepoint") is transaction
        if ours and statement.kind is Kind.RELEASE and not transaction.labels:
            self.commit()
        return result

    @property
    def isolation_level(self) -> str | None:
        """None: autocommit; else the driver begins transactions before it writes."""
        level: str | None = self._session.extra["isolation_level"]
        return level

    @isolation_level.setter
    def isolation_level(self, value: str | None) -> None:
        if value is None and self._in_use:
            # sqlite3 commits when it is put into autocommit.
            self.commit()
        self._session.extra["isolation_level"] = value
        self._session.autocommit = value is None

    @property
    def in_transaction(self) -> bool:
        """Whether this connection, not its sandbox, is in a transaction."""
        return self._in_use

    def execute(self, sql: str, *args: Any) -> VirtualCursor:
        """Make a cursor and execute."""
        cursor = self.cursor()
        cursor.execute(sql, *args)
        return cursor

    def executemany(self, sql: str, *args: Any) -> VirtualCursor:
        """Make a cursor and execute for each of the parameter sets."""
        cursor = self.cursor()
        cursor.executemany(sql, *args)
        return cursor

    def executescript(self, script: str) -> VirtualCursor:
        """Make a cursor and run the script."""
        cursor = self.cursor()
        cursor.executescript(script)
        return cursor


def _reads(text: str) -> bool:
    return SQLITE.classify(text).kind is Kind.READ


class _Unread:
    """A cursor of sqlite3 whose rows have been fetched, and wait here."""

    def __init__(self, cursor: Any, rows: list[Any], of: Transaction | None) -> None:
        self.cursor = cursor
        self.rows = deque(rows)
        self.of = of

    def fetchone(self) -> Any:
        return self.rows.popleft() if self.rows else None

    def fetchmany(self, size: int | None = None) -> list[Any]:
        size = self.cursor.arraysize if size is None else size
        return [self.rows.popleft() for _ in range(min(size, len(self.rows)))]

    def fetchall(self) -> list[Any]:
        rows = list(self.rows)
        self.rows.clear()
        return rows

    def __iter__(self) -> Iterator[Any]:
        while self.rows:
            yield self.rows.popleft()

    def close(self) -> None:
        self.rows.clear()
        self.cursor.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cursor, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in {"cursor", "rows", "of"}:
            object.__setattr__(self, name, value)
        else:
            setattr(self.cursor, name, value)

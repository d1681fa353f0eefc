"""sqlite3 of the standard library, and what aiosqlite's adapted face shares with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from sandbox.connection.dialect import SQLITE
from sandbox.connection.driver import Driver, Session
from sandbox.connection.virtual import VirtualConnection

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sandbox.connection.cursor import VirtualCursor
    from sandbox.connection.dialect import Dialect

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

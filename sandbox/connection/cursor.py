"""The cursor of a virtual connection.

It is made before anybody knows on which real connection it will run, so that the real cursor is
made when it executes, and made again when that is another one. PEP 249, "Cursor Objects".
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from sandbox.connection.shared import SharedConnection
from sandbox.errors import UnsupportedInSandboxError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sandbox.connection.virtual import VirtualConnection
    from sandbox.core.frames import Transaction

__all__ = ("VirtualCursor",)


class VirtualCursor:
    """A cursor of a virtual connection. Results are the real cursor's."""

    def __init__(
        self, connection: VirtualConnection, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        set_ = object.__setattr__
        set_(self, "connection", connection)
        set_(self, "_args", args)
        set_(self, "_kwargs", kwargs)
        set_(self, "_real", None)
        set_(self, "_parent", None)
        set_(self, "_shared", None)
        set_(self, "_transaction", None)
        set_(self, "_settings", {})
        set_(self, "_closed", False)
        set_(self, "_bound", [None])
        set_(self, "_held", connection._driver.holds_server_state(args, kwargs))

    if TYPE_CHECKING:
        connection: VirtualConnection
        _args: tuple[Any, ...]
        _kwargs: dict[str, Any]
        _real: Any
        _parent: Any
        _shared: SharedConnection | None
        _transaction: Transaction | None
        _settings: dict[str, Any]
        _closed: bool
        _bound: list[Any]
        _held: bool

    # -- PEP 249 -----------------------------------------------------------------------------

    def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        """Execute; returns what the driver's cursor returns."""
        return self._statement("execute", query, args, kwargs)

    def executemany(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        """Execute for each of the parameter sets."""
        return self._statement("executemany", query, args, kwargs)

    def executescript(self, script: str) -> VirtualCursor:
        """sqlite3's: commit what is pending, then run each statement by itself."""
        connection, session = self.connection, self.connection._session
        connection.commit()
        target = connection._bind()
        if not isinstance(target, SharedConnection):
            try:
                connection._io.call(
                    target.real, lambda: self._open(target.real).executescript(script)
                )
            finally:
                if not connection._still_in_transaction(target):
                    connection._unbind()
            return self
        before, session.autocommit = session.autocommit, True
        try:
            for piece in connection._driver.dialect.split(script):
                self.execute(piece.text)
        finally:
            session.autocommit = before
        return self

    @contextmanager
    def copy(self, statement: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """Psycopg's COPY; nobody else's statement runs on the real connection meanwhile."""
        with self._conversation(statement) as real, real.copy(statement, *args, **kwargs) as copy:
            yield copy

    def stream(self, query: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """Psycopg's row by row; nobody else's statement runs until the last row, or close()."""
        with self._conversation(query) as real:
            yield from real.stream(query, *args, **kwargs)

    def copy_expert(self, sql: Any, *args: Any, **kwargs: Any) -> Any:
        """psycopg2's COPY."""
        text = self.connection._driver.text(sql, self.connection)
        return self.connection._run(
            self, text, lambda real, _: real.copy_expert(sql, *args, **kwargs)
        )

    def copy_from(self, *args: Any, **kwargs: Any) -> Any:
        """psycopg2's COPY from a file."""
        return self.connection._run(
            self, "COPY FROM", lambda real, _: real.copy_from(*args, **kwargs)
        )

    def copy_to(self, *args: Any, **kwargs: Any) -> Any:
        """psycopg2's COPY to a file."""
        return self.connection._run(self, "COPY TO", lambda real, _: real.copy_to(*args, **kwargs))

    def callproc(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a procedure; counts as a write."""
        return self.connection._run(
            self, f"CALL {name}", lambda real, _: real.callproc(name, *args, **kwargs)
        )

    def fetchone(self) -> Any:
        """The next row, or None."""
        return self._fetch("fetchone")

    def fetchmany(self, *args: Any, **kwargs: Any) -> Any:
        """The next rows."""
        return self._fetch("fetchmany", *args, **kwargs)

    def fetchall(self) -> Any:
        """All the rows that remain."""
        return self._fetch("fetchall")

    def __iter__(self) -> Iterator[Any]:
        if self._held:
            while (row := self.fetchone()) is not None:
                yield row
        else:
            yield from self._opened()

    def close(self) -> None:
        """Close the cursor; the connection's transaction goes on."""
        if self._closed:
            return
        self._closed = True
        real = self._real
        if real is None:
            return
        if not self._held:
            real.close()
        elif self._is_on_server():
            self._on_server(real.close)
        else:
            self.connection._driver.forget_cursor(real)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- the real cursor -----------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        real = self._real
        if real is None:
            if name in self._settings:
                return self._settings[name]
            if name in _BEFORE:
                return _BEFORE[name]
            real = self._opened()
        return getattr(real, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _CURSOR_SLOTS:
            object.__setattr__(self, name, value)
            return
        # Remembered: the real cursor is made, and may be made again, when we execute.
        self._settings[name] = value
        if self._real is not None:
            setattr(self._real, name, value)

    def _open(self, parent: Any) -> Any:
        """The real cursor on that connection. Runs where the connection lives."""
        connection = self.connection
        if self._held:
            target = connection._target
            self._shared = target if isinstance(target, SharedConnection) else None
            self._transaction = connection._transaction
        if self._real is None or self._parent is not parent:
            self._real = connection._driver.open_cursor(
                parent, connection._session, self._args, self._kwargs
            )
            self._parent = parent
            for name, value in self._settings.items():
                setattr(self._real, name, value)
        return self._real

    def _opened(self) -> Any:
        if self._real is None:
            real = self.connection._any_real()
            self.connection._io.call(real, self._open, real)
        return self._real

    def _nothing(self) -> VirtualCursor:
        """The result of a statement that this cursor did not run itself: none."""
        if self._real is not None and not self._held:
            self._real.close()
            self._real = None
        return self

    def _statement(
        self, method: str, query: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self._closed:
            raise self.connection._driver.closed_error()
        connection = self.connection
        self._bound = _parameters(method, args, kwargs)
        text = query if type(query) is str else connection._driver.text(query, connection)

        def call(real: Any, replaced: str | None) -> Any:
            if replaced is not None:
                if any(args):
                    raise UnsupportedInSandboxError(
                        f"A script that controls transactions by itself cannot be given"
                        f" parameters in a sandbox: {replaced[:80]!r} was not sent. Send its"
                        f" statements one by one, or let the driver commit."
                    )
                return getattr(real, "execute")(replaced)  # noqa: B009
            return getattr(real, method)(query, *args, **kwargs)

        result = connection._run(self, text, call)
        return self if result is self._real else result

    def _fetch(self, method: str, *args: Any, **kwargs: Any) -> Any:
        real = self._real if self._real is not None else self._opened()
        if not self._held:
            return getattr(real, method)(*args, **kwargs)
        return self._on_server(lambda: getattr(real, method)(*args, **kwargs))

    def _on_server(self, call: Callable[[], Any]) -> Any:
        """Do what a cursor that lives on the server does there."""
        connection, shared = self.connection, self._shared
        if shared is None:
            return connection._io.call(self._parent, call)
        transaction = connection._transaction
        ours = transaction is not None and transaction is self._transaction
        return shared.fetch(connection._io, transaction if ours else None, call)

    def _is_on_server(self) -> bool:
        """Whether there is anything to close: it goes with its transaction, and with a failure."""
        shared, transaction = self._shared, self._transaction
        if not self.connection._io.can_wait():
            return False
        if shared is None or transaction is None:
            return shared is None or not shared.ended
        return not (shared.ended or transaction.over or transaction.failed)

    @contextmanager
    def _conversation(self, query: Any) -> Iterator[Any]:
        connection = self.connection
        with connection._held(connection._driver.text(query, connection)) as parent:
            yield self._open(parent)


def _parameters(method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The values that the application binds, once for each execution."""
    bound = args[0] if args else next(iter(kwargs.values()), None)
    if method != "executemany":
        return [bound]
    return list(bound) if isinstance(bound, (list, tuple)) else []


_CURSOR_SLOTS = frozenset(
    (
        "connection",
        "_args",
        "_kwargs",
        "_real",
        "_parent",
        "_settings",
        "_closed",
        "_bound",
        "_held",
        "_shared",
        "_transaction",
    )
)
_BEFORE: dict[str, Any] = {
    "description": None,
    "rowcount": -1,
    "arraysize": 1,
    "lastrowid": None,
    "rownumber": None,
}

"""The connection that the application holds: a PEP 249 face over whoever's turn it is.

A virtual connection costs nothing while it is idle and belongs to no test. When a transaction
begins in it, at the first statement, it asks who is calling and is bound until commit, rollback
or close: to the real connection of the caller's sandbox, or, where nobody is sandboxed, to a
real connection of its own.

Sources: PEP 249; for what begins and ends a transaction, the manuals of the drivers.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from sandbox.connection.cursor import VirtualCursor
from sandbox.connection.facts import schema_changed
from sandbox.connection.shared import SharedConnection
from sandbox.core.effects import Cursor, ShowsIsolation, resolved
from sandbox.core.frames import Transaction
from sandbox.core.lineage import enlist
from sandbox.core.ownership import PASS_THROUGH
from sandbox.core.places import Origin
from sandbox.core.statements import Kind, Statement
from sandbox.errors import SandboxBusyError, UnsupportedInSandboxError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from sandbox.connection.driver import Session
    from sandbox.connection.physical import PhysicalConnection, Source
    from sandbox.core.session import ServerSession

__all__ = ("CONTROL", "VirtualConnection")

_MOVES = frozenset({Kind.SAVEPOINT, Kind.ROLLBACK_TO, Kind.RELEASE})
_ENDS = frozenset({Kind.COMMIT, Kind.ROLLBACK})
_NEVER = frozenset({Kind.PREPARE_TRANSACTION, Kind.OUTSIDE})
CONTROL = _MOVES | _ENDS | _NEVER | {Kind.BEGIN}
"""Kinds that are handled here rather than by the server."""


class VirtualConnection:
    """A connection as its driver makes them, except that it holds no server connection.

    Like the driver's, one is for one thread or task at a time; different ones may be used at
    once. Attributes that it does not know are the real connection's.
    """

    _virtual: ClassVar[frozenset[str]] = frozenset()
    """Attributes beyond those of this class that are set here and not on the real one."""

    def __init__(self, source: Source) -> None:
        set_ = object.__setattr__
        set_(self, "_source", source)
        set_(self, "_driver", source.driver)
        set_(self, "_io", source.io)
        set_(self, "_session", source.session.copy())
        set_(self, "_own", None)
        set_(self, "_target", None)
        set_(self, "_transaction", None)
        set_(self, "_explicit", False)
        set_(self, "_closed", False)
        set_(self, "_memory", (None, None))

    if TYPE_CHECKING:
        _source: Source
        _driver: Any
        _io: Any
        _session: Session
        _own: PhysicalConnection | None
        _target: SharedConnection | PhysicalConnection | None
        _transaction: Transaction | None
        _explicit: bool
        _closed: bool
        _memory: tuple[SharedConnection | None, ServerSession | None]

    # -- PEP 249 -----------------------------------------------------------------------------

    def cursor(self, *args: Any, **kwargs: Any) -> VirtualCursor:
        """A cursor; it binds when it executes."""
        self._check_open()
        return VirtualCursor(self, args, kwargs)

    def commit(self) -> None:
        """End the application's transaction; in a sandbox its work stays until check-in."""
        self._check_open()
        self._end("commit")

    def rollback(self) -> None:
        """Undo the application's transaction."""
        self._check_open()
        self._end("rollback")

    def close(self) -> None:
        """Roll back and let go; the sandbox lives on."""
        if not self._closed:
            self._closed = True
            self._leave(wait=self._io.can_wait())

    def terminate(self) -> None:
        """Close from where waiting may be impossible (SQLAlchemy's ``do_terminate``)."""
        self.close()

    def tpc_begin(self, xid: Any) -> Any:
        """PEP 249's two-phase commit, which no transaction can hold."""
        target = self._bind()
        if isinstance(target, SharedConnection):
            raise UnsupportedInSandboxError(
                f"A two-phase commit cannot be prepared inside a transaction, and"
                f" {target.sandbox.label} is one. A test that needs it needs a database of its own"
                f' (isolation="database").'
            )
        return self._io.call(target.real, target.real.tpc_begin, xid)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is None:
            self.commit()
        else:
            self.rollback()
        if not self._driver.leaves_open:
            self.close()

    def __del__(self) -> None:
        if not self._closed:
            # Wherever garbage is collected, perhaps in the middle of a statement on the same
            # connection: no waiting, no I/O.
            object.__setattr__(self, "_closed", True)
            self._leave(wait=False)

    # -- what else a connection has ------------------------------------------------------------

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        # isinstance() asks the object when its type says no: TypeInfo.fetch(), register_vector()
        # and the like insist on the driver's class. wrapt.ObjectProxy does the same.
        cls: type = self._driver.connection_class()
        return cls

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in self._virtual and name in self._session.extra:
            return self._session.extra[name]
        return getattr(self._any_real(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _SLOTS or hasattr(type(self), name):
            object.__setattr__(self, name, value)
        elif name in self._virtual:
            self._session.extra[name] = value
        else:
            setattr(self._any_real(), name, value)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "in a transaction" if self._in_use else "idle"
        return f"<sandbox connection over {self._driver.name}, {state}>"

    @property
    def _in_use(self) -> bool:
        """Whether the application is in a transaction, as its driver would say."""
        if isinstance(self._target, SharedConnection):
            return self._transaction is not None
        if self._target is not None:
            return bool(self._driver.in_transaction(self._target.real))
        return False

    @property
    def _failed(self) -> bool:
        return self._transaction is not None and self._transaction.failed

    @property
    def _lost(self) -> bool:
        if isinstance(self._target, SharedConnection):
            return self._target.lost
        return self._own is not None and bool(self._driver.lost(self._own.real))

    # -- binding -----------------------------------------------------------------------------

    def _bind(self) -> SharedConnection | PhysicalConnection:
        """Ask who is calling; the answer holds until the transaction ends."""
        if self._target is not None:
            return self._target
        found = self._source.find()
        if found is PASS_THROUGH:
            own = self._own
            if own is None:
                own = self._own = self._source.open()
            self._io.call(own.real, self._driver.apply, own.real, self._session)
            self._target = own
            return own
        if self._own is not None:
            own, self._own = self._own, None
            own.close()
        shared = found.connection(self._source)
        self._target = shared
        return shared

    def _unbind(self) -> None:
        self._target = self._transaction = None
        self._explicit = False

    def _any_real(self) -> Any:
        """The real connection, for what we do not know: whatever it does is contained."""
        bound = self._target is not None
        target = self._bind()
        if isinstance(target, SharedConnection):
            target.ensure_begun(self._io)
        if not bound:
            self._target = None
        return target.real

    def _end(self, how: str) -> None:
        target, transaction = self._target, self._transaction
        if target is None:
            return
        if not isinstance(target, SharedConnection):
            try:
                self._io.call(target.real, getattr(target.real, how))
            finally:
                # SQLite may refuse a commit and keep the transaction: it is still ours to end.
                if how == "rollback" or not self._still_in_transaction(target):
                    self._unbind()
            return
        try:
            if transaction is not None:
                getattr(target, how)(self._io, transaction)
        finally:
            # Interrupted while it waited for its turn, it is still ours to end.
            if transaction is None or transaction.over:
                self._unbind()

    def _lent_again(self) -> None:
        """Out of a pool: a transaction that was left open there ended with its sandbox.

        Pools roll back what comes back to them, but not after a commit or a rollback that raised.
        """
        if isinstance(self._target, SharedConnection) and self._target.ended:
            if self._transaction is not None:
                self._transaction.over = True
            self._unbind()

    def _still_in_transaction(self, own: PhysicalConnection) -> bool:
        return not self._driver.lost(own.real) and bool(self._driver.in_transaction(own.real))

    def _leave(self, *, wait: bool) -> None:
        target, transaction, own = self._target, self._transaction, self._own
        self._unbind()
        self._own = None
        if isinstance(target, SharedConnection) and transaction is not None:
            try:
                # Closing does not fail: what cannot be rolled back now is as soon as it can be.
                with suppress(SandboxBusyError):
                    if wait:
                        target.rollback(self._io, transaction)
            finally:
                target.abandon(transaction)
        if own is not None:
            if wait:
                own.close()
            else:
                own.discard()

    def _check_open(self) -> None:
        if self._closed:
            raise self._driver.closed_error()

    # -- statements --------------------------------------------------------------------------

    def _run(self, cursor: VirtualCursor, text: str, call: Callable[[Any, str | None], Any]) -> Any:
        """Run a statement on the cursor; ``call`` takes the real cursor and, where the text had
        to be another than the application's, that text.
        """
        if self._closed:
            raise self._driver.closed_error()
        statement = self._driver.dialect.classify(text)
        if statement.effects:
            bound = cursor._bound
            effects = tuple(resolved(each, one) for one in bound for each in statement.effects)
            statement = replace(statement, effects=effects)
        target = self._target
        if isinstance(target, SharedConnection) and target.closed:
            target = self._outlive(target)
        if self._transaction is not None and _plain(statement, cursor):
            # The everyday case: one more statement of a transaction that is open.
            assert isinstance(target, SharedConnection)
            shared = target
            return shared.run(
                self._io,
                self._transaction,
                statement,
                lambda: call(cursor._open(shared.physical.real), None),
            )
        if statement.kind is Kind.EMPTY and target is None:
            return self._ping(cursor, statement, call)
        target = self._bind()
        if not isinstance(target, SharedConnection):
            if statement.ddl:
                schema_changed()
            try:
                return self._io.call(target.real, lambda: call(cursor._open(target.real), None))
            finally:
                # What autocommit leaves open nobody would ever end.
                if self._session.autocommit and not self._driver.in_transaction(target.real):
                    self._unbind()
        try:
            if statement.many and statement.kind in CONTROL:
                return self._run_pieces(target, cursor, text, call)
            return self._run_one(target, cursor, statement, lambda real: call(real, None), call)
        finally:
            if self._transaction is None:
                self._unbind()

    def _outlive(self, target: SharedConnection) -> SharedConnection | None:
        """A session that outlives its test, left in a transaction that only read, begins anew.

        One that wrote is told that its work is gone.
        """
        transaction = self._transaction
        if transaction is not None and (transaction.lost_work or target.lost):
            return target
        self._unbind()
        return None

    def _run_pieces(
        self,
        target: SharedConnection,
        cursor: VirtualCursor,
        text: str,
        call: Callable[[Any, str | None], Any],
    ) -> Any:
        """A script that controls transactions by itself, one statement after the other."""
        result = None
        for piece in self._driver.dialect.split(text):
            if piece.kind is not Kind.EMPTY:
                result = self._run_one(target, cursor, piece, _with_text(call, piece.text), call)
        return result

    def _run_one(
        self,
        target: SharedConnection,
        cursor: VirtualCursor,
        statement: Statement,
        run: Callable[[Any], Any],
        run_text: Callable[[Any, str | None], Any],
    ) -> Any:
        kind = statement.kind
        if kind in _NEVER:
            raise UnsupportedInSandboxError(
                f"{_first_words(statement)} cannot run inside a transaction, and"
                f" {target.sandbox.label} is one. The statement was not sent. A test that needs it"
                f' needs a database of its own (isolation="database").'
            )
        if kind in _ENDS:
            self._finish_by_text(target, statement)
            return cursor._nothing()
        if kind is Kind.BEGIN:
            self._begin(target, statement)
            self._explicit = True
            return cursor._nothing()
        if kind in _MOVES:
            transaction = self._transaction or self._begin(target, statement)
            done = target.move(
                self._io,
                transaction,
                statement,
                lambda sql: run_text(cursor._open(target.real), sql),
            )
            return cursor._nothing() if done else cursor
        finish = self._transaction is None and not self._begins(statement)
        begin = self._new_transaction if finish else self._begin
        transaction = begin(target, statement)
        if kind is Kind.SET_TRANSACTION:
            if statement.read_only is not None:
                target.set_read_only(self._io, transaction, read_only=statement.read_only)
            if statement.isolation is not None:
                return self._set_isolation(target, transaction, statement, cursor, run_text)
        if _shows_isolation(statement):
            # The server knows only the outer transaction's.
            level = (transaction.isolation or "READ COMMITTED").lower()
            run = _with_text(run_text, f"SELECT '{level}' AS transaction_isolation")
        if kind is Kind.READ and cursor._held:
            # What it has declared on the server goes with its savepoint.
            statement = Statement(Kind.WRITE, statement.text)
        result = target.run(
            self._io,
            transaction,
            statement,
            lambda: run(cursor._open(target.real)),
            finish=finish,
        )
        if kind is Kind.WRITE and statement.isolation is not None:
            # SET SESSION CHARACTERISTICS: of the transactions that this connection will begin.
            self._session.isolation = statement.isolation
        if cursor._held and (name := self._driver.server_cursor(cursor._real)):
            transaction.effects.append(Cursor(name))
        return result

    def _begins(self, statement: Statement) -> bool:
        """Whether this statement begins a transaction rather than being one of its own."""
        if self._session.autocommit:
            return False
        return bool(self._driver.dialect.begins_transaction(statement))

    def _begin(self, target: SharedConnection, statement: Statement) -> Transaction:
        """The application's transaction, begun now if there is none."""
        if self._transaction is None:
            self._target = target
            self._transaction = self._new_transaction(target, statement)
            enlist(self._transaction)
        return self._transaction

    def _new_transaction(self, target: SharedConnection, statement: Statement) -> Transaction:
        session, dialect = self._session, self._driver.dialect
        origin = Origin(self._io.outer_frame)
        transaction = Transaction(thread=self._io.thread(), origin=origin)
        if dialect.has_isolation_levels:
            begin = statement.kind is Kind.BEGIN
            asked = statement.isolation if begin or not target.stack.begun else None
            chosen = target.sandbox.options.isolation_level
            transaction.isolation = asked or session.isolation or chosen
            transaction.session = self._server_session(target)
            transaction.read_only = statement.read_only if begin else session.read_only
        return transaction

    def _server_session(self, target: SharedConnection) -> ServerSession:
        """What this connection has SET and listens to in that sandbox."""
        of, session = self._memory
        if session is None or of is not target:
            session = target.new_session(self._source)
            self._memory = (target, session)
        return session

    def _set_isolation(
        self,
        target: SharedConnection,
        transaction: Transaction,
        statement: Statement,
        cursor: VirtualCursor,
        run_text: Callable[[Any, str | None], Any],
    ) -> Any:
        """SET TRANSACTION: inside a savepoint the server accepts only the present level."""
        transaction.isolation = statement.isolation

        def run() -> Any:
            level = target.stack.isolation or "READ COMMITTED"
            return run_text(cursor._open(target.real), f"SET TRANSACTION ISOLATION LEVEL {level}")

        return target.run(self._io, transaction, statement, run)

    def _finish_by_text(self, target: SharedConnection, statement: Statement) -> None:
        """COMMIT or ROLLBACK as text ends what it would end in production: this transaction."""
        transaction = self._transaction
        if transaction is None:
            return
        explicit = self._explicit
        self._end("commit" if statement.kind is Kind.COMMIT else "rollback")
        if statement.chain:
            self._begin(target, statement)
            self._explicit = explicit

    def _ping(
        self, cursor: VirtualCursor, statement: Statement, call: Callable[[Any, str | None], Any]
    ) -> Any:
        """An empty statement outside of a transaction asks whether the connection is alive.

        A virtual one always is; a real one of its own is asked.
        """
        del statement
        if self._own is None or self._source.find() is not PASS_THROUGH:
            return cursor._nothing()
        own = self._own
        return self._io.call(own.real, lambda: call(cursor._open(own.real), None))

    def _on_real(self, call: Callable[[Any], Any], statement: Statement) -> Any:
        """Run something of the driver's own in the application's transaction."""
        self._check_open()
        target = self._bind()
        if not isinstance(target, SharedConnection):
            return self._io.call(target.real, call, target.real)
        alone = self._session.autocommit or self._driver.natively_autocommits
        finish = alone and self._transaction is None
        begin = self._new_transaction if finish else self._begin
        transaction = begin(target, statement)
        try:
            return target.run(
                self._io, transaction, statement, lambda: call(target.real), finish=finish
            )
        finally:
            if self._transaction is None:
                self._unbind()

    @contextmanager
    def _held(self, text: str) -> Iterator[Any]:
        """The real connection for a conversation in the application's transaction."""
        self._check_open()
        target = self._bind()
        if not isinstance(target, SharedConnection):
            yield target.real
            return
        statement = self._driver.dialect.classify(text)
        finish = self._session.autocommit and self._transaction is None
        begin = self._new_transaction if finish else self._begin
        transaction = begin(target, statement)
        try:
            with target.held(self._io, transaction, statement) as real:
                yield real
        finally:
            if finish:
                target.commit(self._io, transaction)
                self._unbind()


_SLOTS = frozenset(
    [
        "_source",
        "_driver",
        "_io",
        "_session",
        "_own",
        "_target",
        "_transaction",
        "_explicit",
        "_closed",
        "_memory",
    ]
)


def _plain(statement: Statement, cursor: VirtualCursor) -> bool:
    kind = statement.kind
    if kind is not Kind.WRITE and kind is not Kind.READ and kind is not Kind.SETTING:
        return False
    return not (cursor._held or statement.isolation or _shows_isolation(statement))


def _shows_isolation(statement: Statement) -> bool:
    return bool(statement.effects) and ShowsIsolation() in statement.effects


def _with_text(call: Callable[[Any, str | None], Any], text: str) -> Callable[[Any], Any]:
    return lambda real: call(real, text)


def _first_words(statement: Statement) -> str:
    return " ".join(statement.text.split()[:4])

"""One real connection that many virtual ones use, a statement at a time.

The decisions are those of :class:`sandbox.core.transaction.Stack`; here is the I/O around them:
take the mutex, wait for who must end first, send what the stack says, run the statement, tell
the stack how it went. The same code serves threads and SQLAlchemy's greenlets; how to wait and
where to run is the :class:`~sandbox.connection.driver.IO` of the caller.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sandbox.connection.blockers import (
    application_name,
    explain,
    is_about_locks,
    opening_statement,
)
from sandbox.connection.commit import commit, note_violations
from sandbox.connection.context import after, before, check_clock, read_others, reading
from sandbox.connection.dialect import weaker
from sandbox.connection.line import UNSEEN, Line, shortened
from sandbox.core.effects import Constraints
from sandbox.core.frames import Frame, Transaction
from sandbox.core.session import ServerSession
from sandbox.core.statements import Kind, Statement
from sandbox.core.transaction import END_UNMARKED, END_WHOLE
from sandbox.errors import SandboxBusyError, UnsupportedInSandboxError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sandbox.connection.driver import IO
    from sandbox.connection.physical import PhysicalConnection, Source
    from sandbox.connection.sandbox import Sandbox

__all__ = ("SharedConnection",)

T = TypeVar("T")

END_AFTER: Final = 1.0
"""Seconds that a check-in waits for a statement that is still running."""

_READING: Final = frozenset({Kind.READ, Kind.SETTING})
_FETCH: Final = Statement(Kind.READ, "FETCH")
_ENDS_TRANSACTION: Final = "2D000"
"""invalid_transaction_termination."""
_REABORT: Final = 'ROLLBACK TO SAVEPOINT "sandbox: this transaction has failed"'


class SharedConnection(Line):
    """The real connection of a sandbox. Any number of threads and tasks may call it at once."""

    def __init__(
        self,
        physical: PhysicalConnection,
        sandbox: Sandbox,
        replace: Callable[[], PhysicalConnection],
    ) -> None:
        super().__init__(physical, sandbox, replace)
        self._late = False
        """Whether the clock of who is on top was not set, since nothing had to be sent."""
        self._prepared_for: dict[Source, dict[str, str]] = {}
        if not self.driver.dialect.aborts_on_error:
            self.stack.end = END_WHOLE
        if self.driver.dialect.has_effects:
            name = application_name(sandbox.label)
            self.stack.opening = (opening_statement(name),)
            self.stack.end = END_UNMARKED
            self.mark(name)
            self.stack.settings.suppose(physical.base)
        if physical.facts.clock:
            self.stack.reading = partial(reading, sandbox)

    def is_prepared_for(self, source: Source) -> bool:
        """Whether the listeners of that engine have run, on the connection or in the sandbox."""
        return self.physical.is_prepared_for(source) or source in self._prepared_for

    def prepared(self, source: Source) -> None:
        """They have, in the sandbox: what they SET goes with its rollback."""
        self._prepared_for.setdefault(source, {})

    def keep_settings(self, source: Source, session: ServerSession) -> None:
        """What listeners have SET on one virtual connection all of that source begin with."""
        self._prepared_for[source] = dict(session.settings)

    def new_session(self, source: Source) -> ServerSession:
        """For a virtual connection of that source that comes to this sandbox."""
        return ServerSession({**source.settings, **self._prepared_for.get(source, {})})

    # -- statements ----------------------------------------------------------------------

    def run(
        self,
        io: IO,
        transaction: Transaction,
        statement: Statement,
        call: Callable[[], T],
        *,
        finish: bool = False,
    ) -> T:
        """Run one statement of a transaction; ``finish`` commits it at once (autocommit)."""
        if self.turns.on_top is transaction and self.turns.mutex.acquire(0):
            try:
                # Nobody has moved on the stack since its last statement: it need not be asked.
                # A statement that ran during the check-in has set on_top after finish() did.
                if self._needs_nothing_before(transaction, statement):
                    return self._run_on_top(io, transaction, statement, call)
            finally:
                self.turns.mutex.release()
        with self.turns.turn(io, transaction, statement.kind):
            return self._run_in_turn(io, transaction, statement, call, finish=finish)

    def _run_in_turn(
        self,
        io: IO,
        transaction: Transaction,
        statement: Statement,
        call: Callable[[], T],
        *,
        finish: bool,
    ) -> T:
        stack, stats = self.stack, self.sandbox.stats
        stats.statements += 1
        if transaction.failed and stack.aborted_by is not transaction:
            return self._run_failed(io, transaction, call)
        if statement.effects or stack.clock is not self.sandbox.clock:
            check_clock(self, transaction, statement)
        if statement.kind in _READING and stack.below_top(transaction):
            return self._run_guarded(io, transaction, statement, call)
        if statement.ddl:
            self.physical.schema_changed = self.schema_changed = True
        try:
            if statement.kind not in _READING and not transaction.failed:
                self._before_writing(io, transaction, statement)
            self._enter(io, transaction, statement.kind, timed=statement.timed)
            if statement.effects:
                before(self, io, transaction, statement.effects)
            result = io.call(self.real, call)
        except BaseException as error:
            self._failed(transaction, error, statement, finish=finish)
            self._explain(io, error, statement)
            if finish and self.driver.state(error) == _ENDS_TRANSACTION:
                raise self._commits_by_itself(statement) from error
            raise
        self.check_contained(statement)
        if statement.effects:
            after(self, transaction, statement.effects)
        if finish:
            commit(self, io, transaction)
            self.turns.notify()
        else:
            self.turns.on_top = transaction
        return result

    def _needs_nothing_before(self, transaction: Transaction, statement: Statement) -> bool:
        return self.turns.on_top is transaction and not (
            statement.ddl
            or statement.effects
            or self._closed
            or (self._late and statement.timed)
            or (transaction.postponed is None and statement.kind is not Kind.READ)
            or self.stack.clock is not self.sandbox.clock
        )

    def _run_on_top(
        self, io: IO, transaction: Transaction, statement: Statement, call: Callable[[], T]
    ) -> T:
        self.sandbox.stats.statements += 1
        if statement.kind is not Kind.READ:
            transaction.frames[-1].dirty = True
        try:
            result = io.call(self.physical.real, call)
        except BaseException as error:
            self._failed(transaction, error, statement)
            self._explain(io, error, statement)
            raise
        self.check_contained(statement)
        return result

    @contextmanager
    def held(self, io: IO, transaction: Transaction, statement: Statement) -> Iterator[Any]:
        """Have the real connection alone for a conversation with it, such as a COPY."""
        # Also one that reads waits for those above it: a guard would not outlast its first words.
        with self.turns.turn(io, transaction, Kind.WRITE):
            self.sandbox.stats.statements += 1
            try:
                self._enter(io, transaction, Kind.WRITE)
                yield self.real
            except BaseException as error:
                self._failed(transaction, error, statement)
                self._explain(io, error, statement)
                raise
            self.check_contained(statement)

    def fetch(self, io: IO, transaction: Transaction | None, call: Callable[[], T]) -> T:
        """Get rows of a cursor that lives on the server, or close it: a statement like any other.

        None: its transaction is over, and the server will probably say so.
        """
        if transaction is None:
            alone = Transaction(place="a cursor", thread=io.thread())
            return self.run(io, alone, _FETCH, call, finish=True)
        return self.run(io, transaction, _FETCH, call)

    def ensure_begun(self, io: IO) -> None:
        """Begin the outer transaction, for calls to the driver that we do not understand."""
        if not self.stack.begun and io.can_wait():
            with self.turns.turn(io, Transaction(), Kind.READ):
                self.send(io, self.stack.settle())
                self.stack.pin()

    def move(
        self,
        io: IO,
        transaction: Transaction,
        statement: Statement,
        call: Callable[[str], object],
    ) -> bool:
        """Do the application's SAVEPOINT, RELEASE or ROLLBACK TO under the name that is ours.

        False if it was left to the server to refuse, in its own words, by ``call``.
        """
        kind, label = statement.kind, statement.name or ""
        with self.turns.turn(io, transaction, kind):
            stack = self.stack
            self.sandbox.stats.statements += 1
            if transaction.failed and kind is not Kind.ROLLBACK_TO:
                return self._refused(io, transaction, statement, call)
            self._enter(io, transaction, kind)
            frame = transaction.frame(label)
            if kind is Kind.SAVEPOINT:
                sql = stack.savepoint(transaction, label)
            elif frame is None:
                return self._refused(io, transaction, statement, call)
            elif kind is Kind.RELEASE:
                sql = stack.release(transaction, frame)
            else:
                sql = stack.rollback_to(transaction, frame)
            self.send(io, [sql], added=False)
            return True

    def _refused(
        self,
        io: IO,
        transaction: Transaction,
        statement: Statement,
        call: Callable[[str], object],
    ) -> bool:
        """Savepoints that do not exist, or anything at all in a failed transaction."""
        if transaction.failed and self.stack.aborted_by is not transaction:
            self._run_failed(io, transaction, lambda: call(statement.text))
            return False
        try:
            io.call(self.real, call, statement.text)
        except BaseException as error:
            self._failed(transaction, error, statement)
            raise
        return False

    def set_read_only(self, io: IO, transaction: Transaction, *, read_only: bool) -> None:
        """SET TRANSACTION READ ONLY or READ WRITE comes next: it is to end with its transaction."""
        with self.turns.turn(io, transaction, Kind.SETTING):
            self.send(io, self.stack.make_read_only(transaction, read_only=read_only))

    def commit(self, io: IO, transaction: Transaction) -> None:
        """The application's COMMIT: the RELEASE is owed, and what else it does is done.

        Raises what the server says of deferred constraints.
        """
        with self.turns.turn(io, transaction, Kind.COMMIT):
            try:
                commit(self, io, transaction)
            finally:
                self.turns.notify()

    def rollback(self, io: IO, transaction: Transaction) -> None:
        """The application's ROLLBACK; nothing is sent for a transaction that only read."""
        if self.ended:
            transaction.over = True
            return
        with self.turns.turn(io, transaction, Kind.ROLLBACK):
            self.send(io, self.stack.rollback(transaction))
            self.turns.notify()

    def abandon(self, transaction: Transaction) -> None:
        """Its virtual connection went away where no I/O was possible, perhaps by garbage
        collection in the middle of another statement: no lock, no waiting. Who waits finds out.
        """
        self.stack.abandon(transaction)
        self.turns.on_top = None
        if self._closed:
            transaction.over = True

    # -- the end ---------------------------------------------------------------------------

    def finish(self, io: IO) -> str | None:
        """Roll the outer transaction back; returns how it was escaped from, if it was.

        Called once, by who checks in. Statements that still run end first; whoever comes later
        is refused.
        """
        self._closed = True
        self.turns.on_top = None
        # The caller may be a plain hook although the connection is asynchronous: a statement
        # that still runs there may need the very thread that waits here, so not for long.
        mutex = self.turns.mutex
        held = io.lock(mutex, END_AFTER) if io.can_wait() else mutex.acquire(END_AFTER)
        if not held:
            self._broken = f"a statement of {self.turns.holder} was still running"
        try:
            if self._broken is None and self._escaped is None:
                if self.driver.lost(self.real):
                    self._broken = "the server or the network ended it"
                elif self.stack.begun and not self.is_contained():
                    self._escaped = UNSEEN
                elif self.stack.begun:
                    sql = self.stack.finish()
                    if self.session_locks:
                        # They outlive rollbacks.
                        sql.append("SELECT pg_catalog.pg_advisory_unlock_all()")
                    self.sandbox.stats.round_trips += io.run(
                        self.real, self.driver.send, self.real, sql
                    )
        except Exception as error:  # noqa: BLE001 - whatever it was, the connection is done for
            if self.driver.no_savepoint(error):
                self._escaped = self.driver.culprit(error)
            self._broken = f"the ROLLBACK at check-in failed: {error}"
        finally:
            self.turns.notify()
            if held:
                self.turns.mutex.release()
        return self._escaped

    @property
    def reusable(self) -> bool:
        """Whether the real connection is as it was before the sandbox."""
        return self._broken is None and self._escaped is None and not self.physical.schema_changed

    # -- the turn ----------------------------------------------------------------------------

    def _enter(self, io: IO, transaction: Transaction, kind: Kind, *, timed: bool = True) -> None:
        stack = self.stack
        if transaction.isolation != stack.isolation and not transaction.frames:
            self._strengthen(io, transaction)
        if stack.settings.unread(transaction):
            read_others(self, io, transaction)
        sql = stack.enter(transaction, kind, timed=timed)
        self._late = not sql and not timed
        self.send(io, sql)
        # What healed another's failure on the way may have undone somebody's commit.
        self.check_poison()

    def _strengthen(self, io: IO, transaction: Transaction) -> None:
        """The outer transaction may have to have a higher isolation level than it began with."""
        stack, default = self.stack, self.driver.dialect.default_isolation
        if not stack.begun or not weaker(stack.isolation, transaction.isolation, default):
            return
        if stack.untouched():
            # Nothing in it would be missed.
            self.send(io, stack.restart())
        elif not transaction.objected:
            transaction.objected = True
            self.sandbox.object_to_isolation(
                transaction.where, transaction.isolation, stack.isolation
            )

    def _before_writing(self, io: IO, transaction: Transaction, statement: Statement) -> None:
        """What others in the outer transaction have set up for themselves is not this one's."""
        stack = self.stack
        if not stack.wrote(transaction):
            note_violations(self, io, transaction)
            if other := stack.read_only_around(transaction):
                raise SandboxBusyError(
                    f"{transaction.where} cannot write: the transaction of {other.where}, which"
                    f" is open on the same connection, has written and then become READ ONLY, and"
                    f" everything inside it is so too. End that transaction first, or give the two"
                    f" their own sandboxes."
                )
        own = [effect.text for effect in transaction.effects if isinstance(effect, Constraints)]
        if own and stack.constrained_by is not transaction:
            stack.constrained_by = transaction
            self._enter(io, transaction, statement.kind)
            self.send(io, own)

    def _commits_by_itself(self, statement: Statement) -> UnsupportedInSandboxError:
        return UnsupportedInSandboxError(
            f"{shortened(statement.text)} ends a transaction from inside a procedure or a DO block,"
            f" which works only outside of any transaction, and {self.sandbox.label} is one. It was"
            f" rolled back. A test that needs it needs a database of its own"
            f' (isolation="database").'
        )

    def _failed(
        self,
        transaction: Transaction,
        error: BaseException,
        statement: Statement,
        *,
        finish: bool = False,
    ) -> None:
        self.turns.on_top = None
        if self.driver.lost(self.real):
            self._broken = f"{type(error).__name__}: {error}"
        elif not self.driver.in_transaction(self.real):
            if self.driver.rolled_back(error):
                self._broken = f"the server rolled back all of it: {error}"
            else:
                self._escaped = shortened(statement.text)
        else:
            if self.driver.aborted(self.real, error):
                self.stack.fail(transaction)
            if finish:
                self.stack.abandon(transaction)
                self.turns.notify()

    def _explain(self, io: IO, error: BaseException, statement: Statement) -> None:
        """If it failed for want of a lock, let a note on the error say who had it."""
        if self.ended or not self.driver.dialect.has_effects:
            return
        if not is_about_locks(error, statement.text):
            return
        with suppress(Exception):  # it is the application's error that counts
            guard = self._guard(io, Transaction())
            try:
                note = explain(error, lambda sql: self.ask(io, sql), statement.text)
            finally:
                self.send(io, self.stack.undo_guard(guard))
            if note is not None:
                error.add_note(note)

    def _run_guarded(
        self, io: IO, transaction: Transaction, statement: Statement, call: Callable[[], T]
    ) -> T:
        """A read of a transaction that others' work lies upon: it must not break theirs."""
        read_others(self, io, transaction)
        guard = self._guard(io, transaction, own_settings=True)
        try:
            before(self, io, transaction, statement.effects)
            result = io.call(self.real, call)
        except BaseException as error:
            if self.driver.lost(self.real):
                self._broken = f"{type(error).__name__}: {error}"
            else:
                transaction.failed = self.driver.aborted(self.real, error)
                self.send(io, self.stack.undo_guard(guard))
            raise
        after(self, transaction, statement.effects)
        return result

    def _run_failed(self, io: IO, transaction: Transaction, call: Callable[[], T]) -> T:
        """Let the server say in its own words that this transaction has failed.

        Its failure was healed so that others could go on; the connection is put back into the
        failed state for just this statement.
        """
        guard = self._guard(io, transaction)
        with suppress(Exception):  # failing is its purpose
            io.call(self.real, self.driver.send, self.real, [_REABORT])
        try:
            return io.call(self.real, call)
        finally:
            self.send(io, self.stack.undo_guard(guard))

    def _guard(self, io: IO, transaction: Transaction, *, own_settings: bool = False) -> Frame:
        sql = self.stack.settle(transaction)
        pushed, guard = self.stack.guard()
        own = self.stack.own_settings(transaction) if own_settings else []
        self.send(io, sql + pushed + own)
        self.check_poison()
        return guard

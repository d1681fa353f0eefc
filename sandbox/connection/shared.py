"""One real connection that many virtual ones use, a statement at a time.

The decisions are those of :class:`sandbox.core.transaction.Stack`; here is the I/O around them:
take the mutex, wait for who must end first, send what the stack says, run the statement, tell
the stack how it went. The same code serves threads and SQLAlchemy's greenlets; how to wait and
where to run is the :class:`~sandbox.connection.driver.IO` of the caller.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sandbox.connection.turns import Turns
from sandbox.core.statements import Kind, Statement
from sandbox.core.transaction import Frame, Stack, Transaction
from sandbox.errors import (
    BrokenSandboxError,
    InterleavedTransactionError,
    OwnerExitedError,
    SandboxEscapeError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sandbox.connection.driver import IO
    from sandbox.connection.physical import PhysicalConnection, Source
    from sandbox.connection.sandbox import Sandbox

__all__ = ("SharedConnection",)

T = TypeVar("T")

END_AFTER: Final = 1.0
"""Seconds that a check-in waits for a statement that is still running."""

_FETCH: Final = Statement(Kind.READ, "FETCH")
_REABORT: Final = 'ROLLBACK TO SAVEPOINT "sandbox: this transaction has failed"'


class SharedConnection:
    """The real connection of a sandbox. Any number of threads and tasks may call it at once."""

    def __init__(
        self,
        physical: PhysicalConnection,
        sandbox: Sandbox,
        replace: Callable[[], PhysicalConnection],
    ) -> None:
        self.physical = physical
        self._replace: Callable[[], PhysicalConnection] | None = replace
        self.driver = physical.driver
        self.sandbox = sandbox
        self.stack = Stack()
        self._turns = Turns(self.stack, sandbox, self._check_usable)
        self._prepared_for: set[Source] = set()
        self._broken: str | None = None
        self._escaped: str | None = None
        self._closed = False

    @property
    def real(self) -> Any:
        """The driver's connection."""
        return self.physical.real

    @property
    def closed(self) -> bool:
        """Whether its sandbox was checked in."""
        return self._closed

    @property
    def lost(self) -> bool:
        """Whether it can no longer be used."""
        return self._broken is not None

    @property
    def ended(self) -> bool:
        """Whether everything done on it is gone: checked in, lost, or committed by somebody."""
        return self._closed or self._broken is not None or self._escaped is not None

    def is_prepared_for(self, source: Source) -> bool:
        """Whether the listeners of that engine have run, on the connection or in the sandbox."""
        return self.physical.is_prepared_for(source) or source in self._prepared_for

    def prepared(self, source: Source) -> None:
        """They have, in the sandbox: what they SET goes with its rollback."""
        self._prepared_for.add(source)

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
        if self._turns.on_top is transaction and self._turns.mutex.acquire(0):
            try:
                # Nobody has moved on the stack since its last statement: it need not be asked.
                # A statement that ran during the check-in has set _on_top after finish() did.
                if self._turns.on_top is transaction and not (statement.ddl or self._closed):
                    return self._run_on_top(io, transaction, statement, call)
            finally:
                self._turns.mutex.release()
        with self._turns.turn(io, transaction, statement.kind):
            stack, stats = self.stack, self.sandbox.stats
            stats.statements += 1
            if transaction.failed and stack.aborted_by is not transaction:
                return self._run_failed(io, transaction, call)
            if statement.kind is Kind.READ and stack.below_top(transaction):
                return self._run_guarded(io, transaction, call)
            if statement.ddl:
                self.physical.schema_changed = True
            try:
                self._enter(io, transaction, statement.kind)
                result = io.call(self.real, call)
            except BaseException as error:
                self._failed(transaction, error, statement, finish=finish)
                raise
            self._check_contained(statement)
            if finish:
                stack.commit(transaction)
                self._turns.notify()
            else:
                self._turns.on_top = transaction
            return result

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
            raise
        self._check_contained(statement)
        return result

    @contextmanager
    def held(self, io: IO, transaction: Transaction, statement: Statement) -> Iterator[Any]:
        """Have the real connection alone for a conversation with it, such as a COPY."""
        # Also one that reads waits for those above it: a guard would not outlast its first words.
        with self._turns.turn(io, transaction, Kind.WRITE):
            self.sandbox.stats.statements += 1
            try:
                self._enter(io, transaction, Kind.WRITE)
                yield self.real
            except BaseException as error:
                self._failed(transaction, error, statement)
                raise
            self._check_contained(statement)

    def fetch(self, io: IO, transaction: Transaction | None, call: Callable[[], T]) -> T:
        """Get rows of a cursor that lives on the server, or close it: a statement like any other.

        None: its transaction is over, and the server will probably say so.
        """
        if transaction is None:
            alone = Transaction(where="a cursor", thread=io.thread())
            return self.run(io, alone, _FETCH, call, finish=True)
        return self.run(io, transaction, _FETCH, call)

    def ensure_begun(self, io: IO) -> None:
        """Begin the outer transaction, for calls to the driver that we do not understand."""
        if not self.stack.begun and io.can_wait():
            with self._turns.turn(io, Transaction(), Kind.READ):
                self._send(io, self.stack.settle())
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
        with self._turns.turn(io, transaction, kind):
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
            self._send(io, [sql], added=False)
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

    def commit(self, io: IO, transaction: Transaction) -> None:
        """The application's COMMIT: the RELEASE is owed, nothing is sent."""
        with self._turns.turn(io, transaction, Kind.COMMIT):
            self._send(io, self.stack.commit(transaction))
            self._turns.notify()

    def rollback(self, io: IO, transaction: Transaction) -> None:
        """The application's ROLLBACK; nothing is sent for a transaction that only read."""
        if self.ended:
            transaction.over = True
            return
        with self._turns.turn(io, transaction, Kind.ROLLBACK):
            self._send(io, self.stack.rollback(transaction))
            self._turns.notify()

    def abandon(self, transaction: Transaction) -> None:
        """Its virtual connection went away where no I/O was possible, perhaps by garbage
        collection in the middle of another statement: no lock, no waiting. Who waits finds out.
        """
        self.stack.abandon(transaction)
        self._turns.on_top = None
        if self._closed:
            transaction.over = True

    # -- the end ---------------------------------------------------------------------------

    def finish(self, io: IO) -> str | None:
        """Roll the outer transaction back; returns how it was escaped from, if it was.

        Called once, by who checks in. Statements that still run end first; whoever comes later
        is refused.
        """
        self._closed = True
        self._turns.on_top = None
        # The caller may be a plain hook although the connection is asynchronous: a statement
        # that still runs there may need the very thread that waits here, so not for long.
        mutex = self._turns.mutex
        held = io.lock(mutex, END_AFTER) if io.can_wait() else mutex.acquire(END_AFTER)
        if not held:
            self._broken = f"a statement of {self._turns.holder} was still running"
        try:
            if self._broken is None and self._escaped is None:
                if self.driver.lost(self.real):
                    self._broken = "the server or the network ended it"
                elif self.stack.begun and not self.driver.in_transaction(self.real):
                    self._escaped = "something the sandbox did not see"
                elif self.stack.begun:
                    sql = self.stack.finish()
                    self.sandbox.stats.round_trips += io.run(
                        self.real, self.driver.send, self.real, sql
                    )
        except Exception as error:  # noqa: BLE001 - whatever it was, the connection is done for
            self._broken = f"the ROLLBACK at check-in failed: {error}"
        finally:
            self._turns.notify()
            if held:
                self._turns.mutex.release()
        return self._escaped

    @property
    def reusable(self) -> bool:
        """Whether the real connection is as it was before the sandbox."""
        return self._broken is None and self._escaped is None and not self.physical.schema_changed

    # -- the turn ----------------------------------------------------------------------------

    def _check_usable(self, kind: Kind) -> None:
        if self._closed:
            raise OwnerExitedError(
                f"{self.sandbox.label} has ended: its sandbox was checked in and rolled back."
                f" Nothing was written. End transactions before the test ends."
            )
        if self._escaped is not None:
            raise SandboxEscapeError(self._escape_message())
        if self._broken is not None:
            raise BrokenSandboxError(
                f"The connection of {self.sandbox.label} was lost ({self._broken}), and with it"
                f" everything the test had written. The next test gets a new one."
            )
        if kind not in {Kind.COMMIT, Kind.ROLLBACK}:
            self._check_poison()

    def _check_poison(self) -> None:
        poison = self.stack.poison
        if poison is not None:
            victims = ", ".join(victim.where for victim in poison.victims)
            raise InterleavedTransactionError(
                f"The rollback of {poison.culprit.where} has also undone what {victims} had"
                f" committed inside it: on one real connection the later transaction lies in the"
                f" earlier. In production it would have been kept. End the outer transaction"
                f" before the inner begins, or give the two their own connections."
            )

    def _enter(self, io: IO, transaction: Transaction, kind: Kind) -> None:
        self._send(io, self.stack.enter(transaction, kind))
        # What healed another's failure on the way may have undone somebody's commit.
        self._check_poison()

    # -- the server ----------------------------------------------------------------------------

    def _send(self, io: IO, statements: list[str], *, added: bool = True) -> None:
        if not statements:
            return
        replace, self._replace = self._replace, None
        try:
            trips = io.call(self.real, self.driver.send, self.real, statements)
        except asyncio.CancelledError:
            # Drivers finish what they are sending before they let a cancellation through.
            raise
        except BaseException as error:
            if replace is not None and self.driver.lost(self.real):
                # It was lost while it lay idle and nothing had happened on it: take another.
                self.physical.discard()
                self.physical = replace()
                self._send(io, statements, added=added)
                return
            # Control statements of ours do not fail on a connection that is well.
            self._broken = f"{'; '.join(statements)} failed: {error!r}"
            raise
        if added:
            self.sandbox.stats.round_trips += trips

    def _failed(
        self,
        transaction: Transaction,
        error: BaseException,
        statement: Statement,
        *,
        finish: bool = False,
    ) -> None:
        self._turns.on_top = None
        if self.driver.lost(self.real):
            self._broken = f"{type(error).__name__}: {error}"
        elif not self.driver.in_transaction(self.real):
            self._escaped = _shorten(statement.text)
        else:
            if self.driver.aborted(self.real, error):
                self.stack.fail(transaction)
            if finish:
                self.stack.abandon(transaction)
                self._turns.notify()

    def _run_guarded(self, io: IO, transaction: Transaction, call: Callable[[], T]) -> T:
        """A read of a transaction that others' work lies upon: it must not break theirs."""
        guard = self._guard(io, transaction)
        try:
            return io.call(self.real, call)
        except BaseException as error:
            if self.driver.lost(self.real):
                self._broken = f"{type(error).__name__}: {error}"
            else:
                transaction.failed = self.driver.aborted(self.real, error)
                self._send(io, self.stack.undo_guard(guard))
            raise

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
            self._send(io, self.stack.undo_guard(guard))

    def _guard(self, io: IO, transaction: Transaction) -> Frame:
        self._send(io, self.stack.settle(transaction))
        sql, guard = self.stack.guard()
        self._send(io, sql)
        self._check_poison()
        return guard

    def _check_contained(self, statement: Statement) -> None:
        if not self.driver.in_transaction(self.physical.real):
            self._turns.on_top = None
            self._escaped = _shorten(statement.text)
            raise SandboxEscapeError(self._escape_message())

    def _escape_message(self) -> str:
        return (
            f"The transaction that contains {self.sandbox.label} was ended by {self._escaped}:"
            f" what the test wrote may be in the database for good. Let the driver or the ORM"
            f" commit instead (connection.commit()); its commits are contained."
        )


def _shorten(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}…"

"""The line to the server below a sandbox: what the sandbox itself says on it, and its end.

Control statements, questions of its own, attempts that may fail; and the three ways in which all
of it ends: the sandbox is checked in, the connection is lost, or somebody ends the outer
transaction.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from sandbox.connection.turns import Turns, interleaved
from sandbox.core.statements import Kind, Statement
from sandbox.core.transaction import Stack
from sandbox.errors import (
    BrokenSandboxError,
    InterleavedTransactionError,
    OwnerExitedError,
    SandboxEscapeError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sandbox.connection.driver import IO
    from sandbox.connection.physical import PhysicalConnection
    from sandbox.connection.sandbox import Sandbox

__all__ = ("UNSEEN", "Line", "shortened")

UNSEEN: Final = "something the sandbox did not see"


class Line:
    """A real connection in the hands of a sandbox. Whoever calls has its turn."""

    def __init__(
        self,
        physical: PhysicalConnection,
        sandbox: Sandbox,
        replace: Callable[[], PhysicalConnection],
    ) -> None:
        self.physical = physical
        self.driver = physical.driver
        self.sandbox = sandbox
        self.stack = Stack()
        self.turns = Turns(self.stack, sandbox, self.check_usable)
        self.schema_changed = False
        """Since the facts of the schema were asked last."""
        self.session_locks = False
        """Somebody may have an advisory lock of the session."""
        self.marker: str | None = None
        """The application_name of the outer transaction: the server tells when it reverts."""
        self._name_before: str | None = None
        self._replace: Callable[[], PhysicalConnection] | None = replace
        self._broken: str | None = None
        self._escaped: str | None = None
        self._closed = False

    @property
    def real(self) -> Any:
        """The driver's connection."""
        return self.physical.real

    @property
    def pid(self) -> int:
        """The server's number for this connection, 0 where there is none."""
        return self.driver.pid(self.real)

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

    # -- what is said ---------------------------------------------------------------------------

    def send(self, io: IO, statements: list[str], *, added: bool = True) -> None:
        """Send control statements of ours, which do not fail on a connection that is well."""
        if not statements:
            return
        if self.physical.schema_changed and any(s.startswith("ROLLBACK") for s in statements):
            statements = [*statements, *self.driver.forget_plans(self.real)]
        # It would succeed in somebody else's transaction, too, and hide that ours has ended.
        if "ROLLBACK" in statements and not (self.driver.lost(self.real) or self.is_contained()):
            self._escaped = UNSEEN
            raise SandboxEscapeError(self._escape_message())
        self.stack.sent()
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
                self.send(io, statements, added=added)
                return
            if self.driver.no_savepoint(error):
                self._escaped = self.driver.culprit(error)
                raise SandboxEscapeError(self._escape_message()) from error
            self._broken = f"{'; '.join(statements)} failed: {error!r}"
            raise
        if added:
            self.sandbox.stats.round_trips += trips

    def ask(self, io: IO, sql: str) -> list[tuple[Any, ...]]:
        """Ask the server something for ourselves; its transaction must be whole."""
        self.sandbox.stats.round_trips += 1
        return io.call(self.real, self.driver.ask, self.real, sql)

    def try_out(self, io: IO, name: str, statements: Sequence[str], *, undo: bool = False) -> None:
        """Send what may well fail, in a savepoint of that name; the driver's error is raised.

        With ``undo`` also what does not fail leaves no trace.
        """
        self.sandbox.stats.round_trips += 1
        back = [f"ROLLBACK TO SAVEPOINT {name}"] if undo else []
        batch = [f"SAVEPOINT {name}", *statements, *back, f"RELEASE SAVEPOINT {name}"]
        try:
            io.call(self.real, self.driver.check, self.real, batch)
        except BaseException as error:
            if self.driver.lost(self.real):
                self._broken = f"{type(error).__name__}: {error}"
            elif not self.driver.in_transaction(self.real):
                self._escaped = UNSEEN
            else:
                self.send(io, [f"ROLLBACK TO SAVEPOINT {name}"])
            raise

    def attempt(self, io: IO, statement: str) -> bool:
        """Send something that may fail without harm; whether it did not."""
        try:
            self.try_out(io, self.stack.scratch(), [statement])
        except Exception:
            if self.ended:
                raise
            return False
        return True

    # -- how it ends ---------------------------------------------------------------------------

    def check_usable(self, kind: Kind) -> None:
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
            self.check_poison()

    def check_poison(self) -> None:
        poison = self.stack.poison
        if poison is not None:
            victims = ", ".join(victim.where for victim in poison.victims)
            raise InterleavedTransactionError(
                f"The rollback of {poison.culprit.where} has also undone what {victims} had"
                f" committed inside it: on one real connection the later transaction lies in the"
                f" earlier. In production it would have been kept."
                f"{interleaved(poison)}"
                f"\n\nEnd the outer transaction before the inner begins, or run the test in a"
                f' database of its own, where each has its own connection (isolation="database").'
            )

    def is_contained(self) -> bool:
        """Whether the outer transaction is still the one that was begun; nobody is asked."""
        if not self.driver.in_transaction(self.real):
            return False
        if self.marker is None or self.stack.has_failed:
            # A failure outside of any savepoint undoes settings at once, before the ROLLBACK.
            return True
        # It reverts with the transaction. Another value than these the application has set itself.
        name = self.driver.application_name(self.real)
        if name == self.marker or name != self._name_before:
            return True
        # A failure that we have not seen, where the driver knows that there is one.
        return self.driver.aborted(self.real, Exception(UNSEEN))

    def mark(self, name: str) -> None:
        """The outer transaction, which has not begun, will set this application_name."""
        self._name_before = self.driver.application_name(self.real)
        self.marker = name if name != self._name_before else None

    def check_contained(self, statement: Statement) -> None:
        if not self.driver.in_transaction(self.physical.real):
            self.turns.on_top = None
            self._escaped = shortened(statement.text)
            raise SandboxEscapeError(self._escape_message())

    def _escape_message(self) -> str:
        return (
            f"The transaction that contains {self.sandbox.label} was ended by {self._escaped}:"
            f" what the test wrote may be in the database for good. Let the driver or the ORM"
            f" commit instead (connection.commit()); its commits are contained."
        )


def shortened(text: str) -> str:
    """For messages."""
    return text if len(text) <= 200 else f"{text[:200]}…"

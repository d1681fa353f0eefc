"""Whose turn it is on a real connection: one statement at a time, in the order they came.

Each statement holds the connection alone. Before it may go ahead the stack is asked whether a
transaction that has written should end first; then it waits, for a bounded time.
"""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sandbox.connection.mutex import Mutex
from sandbox.connection.waits import Wait
from sandbox.core.lineage import descends
from sandbox.core.places import began, here, lines, standing, where
from sandbox.errors import SandboxBusyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sandbox.connection.driver import IO
    from sandbox.connection.sandbox import Sandbox
    from sandbox.core.frames import Poison, Transaction
    from sandbox.core.statements import Kind
    from sandbox.core.transaction import Stack

__all__ = ("Turns", "interleaved")

LOOK_AFTER: Final = 0.1
"""Seconds after which a waiter looks again: those who were garbage collected tell nobody."""


class Turns:
    """The queue before one real connection. Any thread or task may stand in it."""

    def __init__(
        self, stack: Stack, sandbox: Sandbox, check_usable: Callable[[Kind], None]
    ) -> None:
        self.mutex = Mutex()
        self.on_top: Transaction | None = None
        """Whose next statement needs nothing before it; None as soon as anybody else moves."""
        self._holder: Transaction | None = None
        self._stack = stack
        self._sandbox = sandbox
        self._check_usable = check_usable
        self._waiters: list[Mutex] = []

    @property
    def holder(self) -> str:
        """Where the transaction began that had the connection last."""
        return self._holder.where if self._holder is not None else ""

    @contextmanager
    def turn(self, io: IO, transaction: Transaction, kind: Kind) -> Iterator[None]:
        """Have the connection alone, once the stack lets this transaction through."""
        turn = _Turn()
        try:
            try:
                self._acquire(io, transaction, turn)
                self._admit(io, transaction, kind, turn)
            finally:
                if turn.since is not None:
                    self._note(io, transaction, turn)
            yield
        finally:
            if turn.held:
                self.mutex.release()

    def notify(self) -> None:
        """Tell those who wait that a transaction has ended."""
        waiters, self._waiters = self._waiters, []
        for signal in waiters:
            signal.release()

    def _acquire(self, io: IO, transaction: Transaction, turn: _Turn) -> None:
        if not self.mutex.acquire(0):
            limit = self._sandbox.options.busy_after
            holder = self._holder
            self._begin_wait(turn, holder)
            if not io.lock(self.mutex, limit):
                raise self._still_running(io, transaction, holder, limit)
        turn.held = True
        self.on_top = None
        self._holder = transaction

    def _admit(self, io: IO, transaction: Transaction, kind: Kind, turn: _Turn) -> None:
        """Wait until the stack lets this statement through, or raise why it never will."""
        options = self._sandbox.options
        since: float | None = None
        while True:
            self._check_usable(kind)
            blocker = self._stack.blocker(transaction, kind)
            if blocker is None:
                return
            nests = not transaction.frames
            if nests and descends(blocker):
                return
            now = time.monotonic()
            since = since if since is not None else now
            limit = options.nest_after if nests else options.busy_after
            if now - since >= limit:
                if nests:
                    return
                raise self._not_ended(io, transaction, blocker, limit)
            self._begin_wait(turn, blocker)
            self._wait(io, min(limit - (now - since), LOOK_AFTER), turn)
            self._acquire(io, transaction, turn)

    def _wait(self, io: IO, timeout: float, turn: _Turn) -> None:
        """Let others go on until one of them ends, or for so long."""
        signal = Mutex()
        signal.acquire(0)
        self._waiters.append(signal)
        turn.held = False
        self.mutex.release()
        try:
            io.lock(signal, timeout)
        finally:
            with suppress(ValueError):  # it was told
                self._waiters.remove(signal)

    # -- saying so ---------------------------------------------------------------------------

    def _begin_wait(self, turn: _Turn, holder: Transaction | None) -> None:
        if turn.since is None:
            turn.since, turn.holder = time.monotonic(), holder
            self._sandbox.stats.begin_wait()

    def _note(self, io: IO, transaction: Transaction, turn: _Turn) -> None:
        assert turn.since is not None
        seconds = time.monotonic() - turn.since

        def wait() -> Wait:
            waiter = where(here(io.outer_frame, 1)) or transaction.where
            holder = turn.holder.where if turn.holder is not None else ""
            return Wait(seconds, waiter, holder)

        self._sandbox.stats.end_wait(seconds, wait)

    def _still_running(
        self, io: IO, transaction: Transaction, holder: Transaction | None, limit: float
    ) -> SandboxBusyError:
        other = holder.where if holder is not None else ""
        return SandboxBusyError(
            f"{transaction.where or 'A statement'} waited {limit:g} s for the connection of"
            f" {self._sandbox.label}: a statement of {other} is still running."
            f"{_stacks(io, transaction, holder)}"
            f"\n\nEnd that statement first, or give this work its own sandbox."
        )

    def _not_ended(
        self, io: IO, transaction: Transaction, blocker: Transaction, limit: float
    ) -> SandboxBusyError:
        return SandboxBusyError(
            f"{transaction.where} cannot go on: the transaction of {blocker.where} began after it"
            f" on the same connection and has written, and for {limit:g} s it did not end."
            f"{_stacks(io, transaction, blocker)}"
            f"\n\nCommit or roll back the inner one first, or give the two their own sandboxes."
        )


@dataclass(slots=True)
class _Turn:
    """Whether the caller holds the mutex, whatever it was interrupted by, and what it cost."""

    held: bool = False
    since: float | None = None
    """When it began to wait, if it had to."""
    holder: Transaction | None = None
    """For whom."""


def _stacks(io: IO, transaction: Transaction, holder: Transaction | None) -> str:
    """Both sides, as paragraphs of a message."""
    waits = "".join(f"\n    {place}" for place in lines(here(io.outer_frame)))
    text = f"\n\n  The one that waits is at{waits}"
    if transaction.origin is not None:
        text += f"\n  its transaction {began(transaction)}"
    if holder is not None and holder is not transaction:
        text += f"\n\n  The one it waits for {standing(holder)}"
    return text


def interleaved(poison: Poison) -> str:
    """Where the transactions began of which one has undone the others, as paragraphs."""
    text = f"\n\n  The one that rolled back {began(poison.culprit)}"
    for victim in poison.victims:
        text += f"\n\n  The one that was undone {began(victim)}"
    return text

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
from sandbox.core.transaction import Stack, Transaction, descends
from sandbox.errors import SandboxBusyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sandbox.connection.driver import IO
    from sandbox.connection.sandbox import Sandbox
    from sandbox.core.statements import Kind

__all__ = ("Turns",)

LOOK_AFTER: Final = 0.1
"""Seconds after which a waiter looks again: those who were garbage collected tell nobody."""


class Turns:
    """The queue before one real connection. Any thread or task may stand in it."""

    def __init__(
        self, stack: Stack, sandbox: Sandbox, check_usable: Callable[[Kind], None]
    ) -> None:
        self.mutex = Mutex()
        self.holder = ""
        """Where the transaction began that had the connection last."""
        self.on_top: Transaction | None = None
        """Whose next statement needs nothing before it; None as soon as anybody else moves."""
        self._stack = stack
        self._sandbox = sandbox
        self._check_usable = check_usable
        self._waiters: list[Mutex] = []

    @contextmanager
    def turn(self, io: IO, transaction: Transaction, kind: Kind) -> Iterator[None]:
        """Have the connection alone, once the stack lets this transaction through."""
        turn = _Turn()
        try:
            self._acquire(io, transaction, turn)
            self._admit(io, transaction, kind, turn)
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
        limit = self._sandbox.options.busy_after
        if not self.mutex.acquire(0) and not io.lock(self.mutex, limit):
            raise SandboxBusyError(
                f"{transaction.where or 'A statement'} waited {limit:g} s for the connection of"
                f" {self._sandbox.label}: a statement of {self.holder} is still running."
                f" End that statement first, or give this work its own sandbox."
            )
        turn.held = True
        self.on_top = None
        self.holder = transaction.where

    def _admit(self, io: IO, transaction: Transaction, kind: Kind, turn: _Turn) -> None:
        """Wait until the stack lets this statement through, or raise why it never will."""
        options = self._sandbox.options
        began: float | None = None
        while True:
            self._check_usable(kind)
            blocker = self._stack.blocker(transaction, kind)
            if blocker is None:
                return
            nests = not transaction.frames
            if nests and descends(blocker):
                return
            now = time.monotonic()
            began = began if began is not None else now
            limit = options.nest_after if nests else options.busy_after
            if now - began >= limit:
                if nests:
                    return
                raise SandboxBusyError(
                    f"{transaction.where} cannot go on: the transaction of {blocker.where} began"
                    f" after it on the same connection and has written, and for {limit:g} s it"
                    f" did not end. Commit or roll back the inner one first, or give the two"
                    f" their own sandboxes."
                )
            self._wait(io, min(limit - (now - began), LOOK_AFTER), turn)
            self._acquire(io, transaction, turn)

    def _wait(self, io: IO, timeout: float, turn: _Turn) -> None:
        """Let others go on until one of them ends, or for so long."""
        signal = Mutex()
        signal.acquire(0)
        self._waiters.append(signal)
        began = time.monotonic()
        turn.held = False
        self.mutex.release()
        try:
            io.lock(signal, timeout)
        finally:
            self._sandbox.stats.waits += 1
            self._sandbox.stats.waited += time.monotonic() - began
            with suppress(ValueError):  # it was told
                self._waiters.remove(signal)


@dataclass(slots=True)
class _Turn:
    """Whether the caller holds the mutex, whatever it was interrupted by."""

    held: bool = False

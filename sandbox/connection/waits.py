"""What waiting for one another has cost the transactions of a sandbox."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("Stats", "Wait")

NOTED_AFTER: Final = 0.001
"""Seconds from which on a wait is remembered by itself; shorter ones are only counted."""

KEPT: Final = 20
"""How many waits are remembered: the longest."""


@dataclass(frozen=True, slots=True)
class Wait:
    """One statement that waited for another transaction, or another's statement, of its sandbox."""

    seconds: float
    waiter: str
    """The place in the application that waited: ``file:line (function)``."""
    holder: str
    """Where the transaction began that it waited for."""


@dataclass(slots=True)
class Stats:
    """What a sandbox has cost so far. Read from any thread or task."""

    statements: int = 0
    """Statements of the application."""
    round_trips: int = 0
    """Round trips that the sandbox added: BEGIN, SAVEPOINT, RELEASE, ROLLBACK."""
    waits: int = 0
    """How many statements waited for others of the sandbox, those that still do included."""
    waited: float = 0.0
    """Seconds spent in waits that are over."""
    longest: list[Wait] = field(default_factory=list)
    """The longest of them, the longest first."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def begin_wait(self) -> None:
        """A statement begins to wait."""
        with self._lock:
            self.waits += 1

    def end_wait(self, seconds: float, wait: Callable[[], Wait]) -> None:
        """It goes on, or has given up; ``wait`` is called if it is to be remembered."""
        with self._lock:
            self.waited += seconds
            full = len(self.longest) >= KEPT
            if seconds < NOTED_AFTER or (full and seconds <= self.longest[-1].seconds):
                return
            # A new list: others may be reading this one.
            kept = sorted([*self.longest, wait()], key=lambda each: -each.seconds)
            self.longest = kept[:KEPT]

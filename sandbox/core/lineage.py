"""Who descends from whom: which transactions were open where a thread or task was started."""

from __future__ import annotations

import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sandbox.core.frames import Transaction

__all__ = ("descends", "enlist")

_lineage: ContextVar[tuple[Transaction, ...]] = ContextVar("sandbox_transactions", default=())


def enlist(transaction: Transaction) -> None:
    """Note in this context that the transaction is open, for those who will inherit it."""
    still_open = tuple(other for other in _lineage.get() if not other.over)
    _lineage.set((*still_open, transaction))


def descends(holder: Transaction) -> bool:
    """Whether the caller is the holder's, or was started by it while the transaction was open.

    Such a caller nests at once: the holder is probably waiting for it. This is the fixture that
    flushed rows and now calls the application, which opens a session of its own.
    """
    if holder.thread is not None and holder.thread is threading.current_thread():
        return True
    return holder in _lineage.get()

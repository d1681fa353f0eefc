"""Escapes that this process has seen, for whoever repairs what they may have left behind."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable

__all__ = ("Escape", "note", "take")


@dataclass(frozen=True, slots=True)
class Escape:
    """The outer transaction of a sandbox was ended by somebody else."""

    database: Hashable
    name: str
    """The database's, for messages."""
    label: str
    """Whose sandbox it was."""
    how: str


_seen: deque[Escape] = deque(maxlen=1000)
_lock = threading.Lock()


def note(escape: Escape) -> None:
    """Remember it until it is taken. From any thread."""
    with _lock:
        _seen.append(escape)


def take() -> list[Escape]:
    """Those since the last call, the oldest first."""
    with _lock:
        taken = list(_seen)
        _seen.clear()
    return taken

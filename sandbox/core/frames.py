"""What the savepoints of a connection and the transactions in them are made of."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sandbox.core.places import where
from sandbox.core.session import ServerSession

if TYPE_CHECKING:
    import threading

    from sandbox.core.effects import Effect
    from sandbox.core.places import Origin
    from sandbox.core.settings import Own

__all__ = ("Frame", "FrameState", "Poison", "Transaction")


class FrameState(enum.Enum):
    """What a savepoint on the server is still good for."""

    OPEN = "open"
    DONE = "done"
    FREE = "free"


@dataclass(slots=True, eq=False)
class Frame:
    """One savepoint on the server, or the outer transaction itself.

    The first transaction after BEGIN needs no savepoint: there is nothing else that its rollback
    could undo. Its frame has no name, is the lowest, and cannot be released.
    """

    name: str
    transaction: Transaction | None = None
    label: str | None = None
    """The application's name for it; None for the frame of the transaction itself."""
    state: FrameState = FrameState.OPEN
    dirty: bool = False
    """Its own transaction wrote in it."""
    foreign: tuple[Transaction, ...] = ()
    """Transactions that committed into it and would be undone with it."""
    read_only: bool = False
    """SET TRANSACTION READ ONLY was sent in it: it lasts until the savepoint is released."""
    settings: dict[str, str | None] = field(default_factory=dict)
    """What the settings are again after a rollback to it; others are as the server began."""


@dataclass(slots=True, eq=False)
class Transaction:
    """One transaction as the application sees it.

    Made by a virtual connection at its first statement, over after commit, rollback or close.
    """

    place: str = ""
    thread: threading.Thread | None = None
    """The thread that began it, where a thread is the unit of concurrency; else None."""
    origin: Origin | None = None
    """The same for messages: the frames that began it, and who they belong to."""
    isolation: str | None = None
    """The level that it asked for."""
    objected: bool = False
    """It was told that it does not get that level."""
    read_only: bool | None = None
    frames: list[Frame] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    failed: bool = False
    over: bool = False
    lost_work: bool = False
    """It had written when the outer transaction ended around it."""
    session: ServerSession = field(default_factory=ServerSession)
    """Of its virtual connection."""
    postponed: frozenset[str] | None = None
    """Deferred constraints that others had violated when it first wrote, so that its own commit
    cannot check them; None before it has written."""
    effects: list[Effect] = field(default_factory=list)
    """What its commit has to end."""
    settings: dict[str, Own] = field(default_factory=dict)
    marks: list[tuple[int, dict[str, Own]]] = field(default_factory=list)
    """For each of its savepoints how many effects and which settings there were."""
    now: str | None = None
    """What its clock says; None before it has begun, empty for the outer transaction's time."""
    clock: object = None
    """The clock that was read."""

    @property
    def where(self) -> str:
        """The place in the application that began it, for messages: ``file:line (function)``."""
        if not self.place and self.origin is not None:
            self.place = where(self.origin.trace) or "a statement"
        return self.place

    def frame(self, label: str) -> Frame | None:
        """The innermost savepoint of that name, as SQL's scoping has it."""
        for frame in reversed(self.frames):
            if frame.label == label:
                return frame
        return None


@dataclass(frozen=True, slots=True)
class Poison:
    """A rollback that undid what others had committed."""

    culprit: Transaction
    victims: tuple[Transaction, ...]

"""Many application transactions on the one transaction of a sandbox.

A sandbox owns one real connection with one *outer* transaction that is never committed. Every
application transaction is a savepoint in it, so that its rollback undoes just its own work. The
savepoints of a connection form a stack; this module decides, without any I/O, which statements
turn what the application asks for into moves on that stack.

Terms. A *frame* is one savepoint that exists on the server. A transaction has a frame of its
own and one for each savepoint that the application made in it. A frame is

- *open*: its transaction is running;
- *done*: its transaction committed; the RELEASE is owed and rides on the next SAVEPOINT;
- *free*: there is nothing in it, so that the next transaction takes it over at no cost.

A transaction that has only read is *clean*. Its frames may be taken by anybody and are made
again at its next statement; its rollback changes nothing and sends nothing.

The caller (:mod:`sandbox.connection.shared`) holds the connection's mutex around every call.
The rules are those of PostgreSQL's manual, "SAVEPOINT", and hold for SQLite as well.
"""

from __future__ import annotations

import enum
import threading
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final

from sandbox.core.statements import Kind

__all__ = ("Frame", "FrameState", "Poison", "Stack", "Transaction", "descends", "enlist")

PREFIX: Final = "sandbox_"


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


@dataclass(slots=True, eq=False)
class Transaction:
    """One transaction as the application sees it.

    Made by a virtual connection at its first statement, over after commit, rollback or close.
    ``where`` is the place in the application that began it, for messages.
    """

    where: str = ""
    thread: threading.Thread | None = None
    """The thread that began it, where a thread is the unit of concurrency; else None."""
    isolation: str | None = None
    read_only: bool | None = None
    frames: list[Frame] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    failed: bool = False
    over: bool = False
    lost_work: bool = False
    """It had written when the outer transaction ended around it."""

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


class Stack:
    """The savepoints of one real connection, and what to send to move between them.

    Not thread-safe: the owner of the connection's mutex calls it. Methods that return a list
    return the statements to send, in order, before anything else happens on the connection; the
    state is already the one after them. A connection that fails to take them is lost.
    """

    __slots__ = (
        "_abandoned",
        "_fresh",
        "_number",
        "aborted_by",
        "begun",
        "frames",
        "isolation",
        "poison",
    )

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.begun = False
        self.isolation: str | None = None
        self.aborted_by: Transaction | None = None
        self.poison: Poison | None = None
        self._abandoned: list[Transaction] = []
        self._fresh = False
        self._number = 0

    # -- who may go ahead ---------------------------------------------------------------

    def blocker(self, transaction: Transaction, kind: Kind) -> Transaction | None:
        """The transaction that should end before this statement, or None.

        Reads never wait, nor does what sends nothing: a commit, unless it is of a failed
        transaction and thereby a rollback, and the rollback of a clean one. A transaction with
        frames waits for those above it, since writing below the top would put its work into their
        hands. One without waits for whoever has written: nesting in another's work is the last
        resort.
        """
        if kind in _READING or (kind is Kind.COMMIT and not transaction.failed):
            return None
        if kind in _ENDS and self.clean(transaction):
            return None
        start = self._above(transaction) if transaction.frames else 0
        for frame in reversed(self.frames[start:]):
            other = frame.transaction
            if frame.state is not FrameState.OPEN or other is None or other is transaction:
                continue
            if self._has_work(other):
                return other
        return None

    def clean(self, transaction: Transaction) -> bool:
        """Nothing would be lost if its frames went away."""
        # Whatever a READ ONLY transaction did, others must not be caught in its savepoint.
        return self.aborted_by is not transaction and (
            bool(transaction.read_only) or not self._wrote(transaction)
        )

    def below_top(self, transaction: Transaction) -> bool:
        """Whether others that have written stand above its frames."""
        return bool(transaction.frames) and any(
            frame.state is FrameState.OPEN
            and frame.transaction is not None
            and not self.clean(frame.transaction)
            for frame in self.frames[self._above(transaction) :]
        )

    # -- moves --------------------------------------------------------------------------

    def enter(self, transaction: Transaction, kind: Kind) -> list[str]:
        """Put the transaction on top, ready for a statement of this kind."""
        sql = self.settle(transaction)
        if transaction.frames and self.aborted_by is not transaction:
            sql += self._come_on_top(transaction)
        if not transaction.frames:
            sql += self._take_frame(transaction)
        for label in transaction.labels[len(transaction.frames) - 1 :]:
            sql.append(self._push(transaction, label))
        if kind not in _HARMLESS:
            transaction.frames[-1].dirty = True
        return sql

    def guard(self) -> tuple[list[str], Frame]:
        """A savepoint on top of everybody, for a read of a transaction that is not on top."""
        if self.frames and self.frames[-1].state is FrameState.FREE and self.frames[-1].name:
            return [], self.frames[-1]
        self._fresh = False
        frame = Frame(self._name(), state=FrameState.FREE)
        self.frames.append(frame)
        return [f"SAVEPOINT {frame.name}"], frame

    def undo_guard(self, frame: Frame) -> list[str]:
        """After the guarded statement failed: the server is whole again."""
        return [f"ROLLBACK TO SAVEPOINT {frame.name}"]

    def settle(self, transaction: Transaction | None = None) -> list[str]:
        """What the outer transaction needs before this transaction may use it.

        Heals the failure of another, which keeps its own error to itself; rolls back those that
        were abandoned, unless others work on top of them; begins it. May find ``poison``.
        """
        sql: list[str] = []
        holder = self.aborted_by
        if holder is not None and holder is not transaction and holder not in self._abandoned:
            sql += self._undo(holder, holder.frames[-1])
        for other in sorted(self._abandoned, key=self._height, reverse=True):
            # One poison is enough, and it is to name all its victims.
            if self.poison is None and not self.below_top(other):
                self._abandoned.remove(other)
                sql += self.rollback(other)
        if not self.begun:
            sql.append(self._begin(transaction))
        return sql

    def pin(self) -> None:
        """Something that no transaction accounts for happens in the outer one.

        So it must not be undone by the rollback of whoever comes first.
        """
        self._fresh = False

    def savepoint(self, transaction: Transaction, label: str) -> str:
        """The statement to send for the application's SAVEPOINT; the transaction is on top."""
        if transaction.failed:
            # The server refuses it, so that there is none to count on.
            return f"SAVEPOINT {self._name()}"
        transaction.labels.append(label)
        return self._push(transaction, label)

    def rollback_to(self, transaction: Transaction, frame: Frame) -> str:
        """The statement for ROLLBACK TO SAVEPOINT; it also ends the transaction's failure."""
        (statement,) = self._undo(transaction, frame)
        transaction.failed = False
        return statement

    def release(self, transaction: Transaction, frame: Frame) -> str:
        """The statement for RELEASE SAVEPOINT: what was in it now belongs to the one below."""
        position = transaction.frames.index(frame)
        below = transaction.frames[position - 1]
        below.dirty |= any(gone.dirty for gone in transaction.frames[position:])
        below.foreign += self._done_in(self.frames[self.frames.index(frame) :])
        self._cut(self.frames.index(frame), transaction)
        del transaction.frames[position:]
        del transaction.labels[position - 1 :]
        return f"RELEASE SAVEPOINT {frame.name}"

    def commit(self, transaction: Transaction) -> list[str]:
        """End it and keep its work. Commit of a failed transaction is a rollback, as in SQL."""
        if transaction.failed:
            return self.rollback(transaction)
        transaction.over = True
        if not transaction.frames:
            return []
        if self.below_top(transaction):
            # It is released when it comes free; until then its frames only say whose they were.
            for frame in transaction.frames:
                frame.state = FrameState.DONE
            transaction.frames.clear()
        else:
            self._close(transaction)
        return []

    def rollback(self, transaction: Transaction) -> list[str]:
        """End it and undo its work; nobody with work of his own stands above it."""
        transaction.over = True
        if not transaction.frames:
            return []
        if self.aborted_by is not transaction and not self._wrote(transaction):
            if self.below_top(transaction):
                self._evict(transaction)
            else:
                self._close(transaction)
            return []
        sql = self._undo(transaction, transaction.frames[0])
        self._evict(transaction)
        return sql

    def fail(self, transaction: Transaction) -> None:
        """The server refused a statement and has aborted the transaction that was on top."""
        transaction.failed = True
        self.aborted_by = transaction

    def abandon(self, transaction: Transaction) -> None:
        """Its connection was lost track of; it is rolled back by whoever comes next."""
        if not transaction.over and transaction not in self._abandoned:
            self._abandoned.append(transaction)

    def finish(self) -> list[str]:
        """End the outer transaction: nothing of it remains."""
        begun = self.begun
        here = [frame.transaction for frame in self.frames if frame.transaction is not None]
        for transaction in (*here, *self._abandoned):
            transaction.lost_work = not transaction.over and self._wrote(transaction)
            transaction.over = True
            transaction.frames.clear()
        self.frames.clear()
        self._abandoned.clear()
        self.begun = False
        self.isolation = None
        self.aborted_by = None
        return ["ROLLBACK"] if begun else []

    # -- the stack ----------------------------------------------------------------------

    def _begin(self, transaction: Transaction | None) -> str:
        self.begun = self._fresh = True
        self.isolation = transaction.isolation if transaction is not None else None
        return f"BEGIN ISOLATION LEVEL {self.isolation}" if self.isolation else "BEGIN"

    def _take_frame(self, transaction: Transaction) -> list[str]:
        start = len(self.frames)
        while start and self._settled(self.frames[start - 1]):
            if not self.frames[start - 1].name and self.frames[start - 1].state is FrameState.DONE:
                break  # what fell into the outer transaction stays there
            start -= 1
        settled = self.frames[start:]
        sql: list[str] = []
        # Of several one would be taken and the others stay for ever. READ ONLY does not leave the
        # outer transaction any more.
        if len(settled) == 1 and self._empty(settled[0], transaction):
            (top,) = settled
            if top.transaction is not None:
                self._evict(top.transaction)
            top.transaction, top.state, top.label = transaction, FrameState.OPEN, None
            transaction.frames.append(top)
        elif self._fresh and not transaction.read_only:
            self._fresh = False
            transaction.frames.append(Frame("", transaction))
            self.frames += transaction.frames
        else:
            sql += self._merge(start)
            sql.append(self._push(transaction, None))
        if transaction.read_only:
            # It reverts with the savepoint; READ WRITE is what the outer transaction has.
            transaction.frames[0].read_only = True
            sql.append("SET TRANSACTION READ ONLY")
        return sql

    def _come_on_top(self, transaction: Transaction) -> list[str]:
        start = self._above(transaction)
        # What others committed into savepoints that it has not written in goes below them, where
        # rolling back to them does no harm. They are made again.
        while (
            transaction.frames
            and not transaction.frames[-1].dirty
            and self._done_in(self.frames[start - 1 :])
        ):
            transaction.frames.pop().transaction = None
            start -= 1
        return self._merge(start)

    def _merge(self, start: int) -> list[str]:
        """Release everything from there on into the frame below."""
        if start < len(self.frames) and not self.frames[start].name:
            # What falls into the outer transaction stays in it, whoever's frame that was.
            outer = self.frames[start]
            if outer.transaction is not None:
                self._evict(outer.transaction)
            outer.state, start = FrameState.DONE, start + 1
        upper = self.frames[start:]
        if not upper:
            return []
        if start:
            self.frames[start - 1].foreign += self._done_in(upper)
        for frame in upper:
            if frame.transaction is not None:
                self._evict(frame.transaction)
        del self.frames[start:]
        return [f"RELEASE SAVEPOINT {upper[0].name}"]

    def _close(self, transaction: Transaction) -> None:
        """Leave one frame where the transaction was: done if there is work in it, else free."""
        first = transaction.frames[0]
        position = self.frames.index(first)
        wrote = self._wrote(transaction) and not transaction.read_only
        foreign = first.foreign + self._done_in(self.frames[position + 1 :])
        # What is forgotten here is on the server until this frame is released.
        forgotten = position + 1 < len(self.frames)
        if forgotten and not first.name:
            # That one is never released: they are, by whoever comes next.
            for frame in transaction.frames:
                frame.state = FrameState.DONE
            transaction.frames.clear()
            return
        self._cut(position + 1, transaction)
        first.foreign, first.dirty = foreign, wrote
        first.state = FrameState.DONE if wrote or foreign or forgotten else FrameState.FREE
        transaction.frames.clear()

    def _undo(self, transaction: Transaction, frame: Frame) -> list[str]:
        position = self.frames.index(frame)
        victims = frame.foreign + self._done_in(self.frames[position + 1 :])
        for gone in self.frames[position + 1 :]:
            if gone.state is FrameState.OPEN and gone.transaction is not None:
                victims += (gone.transaction,) if self._has_work(gone.transaction) else ()
        victims = tuple(dict.fromkeys(v for v in victims if v is not transaction))
        if victims and self.poison is None:
            self.poison = Poison(transaction, victims)
        self._cut(position + 1, transaction)
        self.aborted_by = None
        if not frame.name:
            self.frames.clear()
            transaction.frames.clear()
            transaction.labels.clear()
            self.begun = False
            return ["ROLLBACK"]
        frame.dirty = frame.read_only = False
        frame.foreign = ()
        own = transaction.frames.index(frame)
        del transaction.frames[own + 1 :]
        del transaction.labels[own:]
        return [f"ROLLBACK TO SAVEPOINT {frame.name}"]

    def _push(self, transaction: Transaction, label: str | None) -> str:
        self._fresh = False
        frame = Frame(self._name(), transaction, label)
        self.frames.append(frame)
        transaction.frames.append(frame)
        return f"SAVEPOINT {frame.name}"

    def _cut(self, start: int, keep: Transaction) -> None:
        """These savepoints are gone from the server; others' transactions made them again."""
        for frame in self.frames[start:]:
            if frame.transaction is not None and frame.transaction is not keep:
                self._evict(frame.transaction)
        del self.frames[start:]

    @staticmethod
    def _evict(transaction: Transaction) -> None:
        """Its frames belong to nobody now; if it goes on it makes them again."""
        for frame in transaction.frames:
            frame.state = FrameState.DONE if frame.foreign else FrameState.FREE
        transaction.frames.clear()

    def _has_work(self, transaction: Transaction) -> bool:
        """Whether it has written what neither its own failure nor its loss undoes anyway."""
        if transaction in self._abandoned or transaction.read_only:
            return False
        kept = transaction.frames
        if self.aborted_by is transaction:
            kept = kept[:-1]
        return any(frame.dirty for frame in kept)

    @staticmethod
    def _wrote(transaction: Transaction) -> bool:
        return any(frame.dirty for frame in transaction.frames)

    def _height(self, transaction: Transaction) -> int:
        return self.frames.index(transaction.frames[0]) if transaction.frames else -1

    def _above(self, transaction: Transaction) -> int:
        return self.frames.index(transaction.frames[-1]) + 1

    def _empty(self, frame: Frame, taker: Transaction) -> bool:
        """Nothing is in it, so that it may be taken over as if it had just been made."""
        if taker.read_only and not frame.name:
            return False
        if frame.foreign or frame.read_only or frame.state is FrameState.DONE:
            return False
        return self._settled(frame)

    def _settled(self, frame: Frame) -> bool:
        """Nobody's running work is in it, so that it may be released."""
        if frame.state is not FrameState.OPEN:
            return True
        return frame.transaction is not None and self.clean(frame.transaction)

    @staticmethod
    def _done_in(frames: list[Frame]) -> tuple[Transaction, ...]:
        found: list[Transaction] = []
        for frame in frames:
            if frame.state is FrameState.DONE and frame.dirty and frame.transaction is not None:
                found.append(frame.transaction)
            found += frame.foreign
        return tuple(dict.fromkeys(found))

    def _name(self) -> str:
        self._number += 1
        return f"{PREFIX}{self._number}"


_READING: Final = frozenset({Kind.READ, Kind.EMPTY})
_ENDS: Final = frozenset({Kind.COMMIT, Kind.ROLLBACK})
_HARMLESS: Final = _READING | {Kind.SAVEPOINT, Kind.ROLLBACK_TO, Kind.RELEASE}

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

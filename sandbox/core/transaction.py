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

from typing import TYPE_CHECKING, Final

from sandbox.core.frames import Frame, FrameState, Poison, Transaction
from sandbox.core.settings import Settings
from sandbox.core.stacked import READING, Frames
from sandbox.core.statements import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("END", "END_UNMARKED", "END_WHOLE", "MARKER", "Stack")

PREFIX: Final = "sandbox_"
MARKER: Final = f"{PREFIX}0"
"""A savepoint made with BEGIN and never released: who can go back to it is still in the same outer
transaction, whatever was done to the connection meanwhile."""
END: Final = (f"ROLLBACK TO SAVEPOINT {MARKER}", "ROLLBACK")
END_WHOLE: Final = (f"RELEASE SAVEPOINT {MARKER}", "ROLLBACK")
"""The same where a transaction never aborts: there is nothing to undo first."""
END_UNMARKED: Final = ("ROLLBACK",)
"""Where there are other means to tell: no marker is made."""


class Stack(Frames):
    """The savepoints of one real connection, and what to send to move between them.

    Not thread-safe: the owner of the connection's mutex calls it. Methods that return a list
    return the statements to send, in order, before anything else happens on the connection; the
    state is already the one after them. A connection that fails to take them is lost.
    """

    __slots__ = (
        "_clocked",
        "_fresh",
        "_just_begun",
        "_number",
        "begun",
        "clock",
        "constrained_by",
        "end",
        "isolation",
        "opening",
        "poison",
        "reading",
    )

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.begun = False
        self.isolation: str | None = None
        self.aborted_by: Transaction | None = None
        self.poison: Poison | None = None
        self.settings = Settings()
        self.opening: tuple[str, ...] = ()
        """What is sent with each BEGIN."""
        self.end: tuple[str, ...] = END
        """What ends the outer transaction, and fails if somebody else has."""
        self.reading: Callable[[bool], str] | None = None
        """The clock, asked when a transaction begins, and told whether that is with the outer
        one's BEGIN. None: the database's clock cannot be set."""
        self.constrained_by: Transaction | None = None
        """Whose SET CONSTRAINTS is in force."""
        self.clock: object = None
        """Whose readings transactions have; with another one they are read again."""
        self._abandoned: list[Transaction] = []
        self._clocked = False
        """Some clock other than the real one was used."""
        self._ends_failure = False
        """The ROLLBACK that is about to be sent ends a transaction that has failed."""
        self._fresh = False
        self._just_begun = False
        """BEGIN is among what is about to be sent."""
        self._pinned = False
        self._number = 0

    # -- moves --------------------------------------------------------------------------

    def enter(self, transaction: Transaction, kind: Kind, *, timed: bool = True) -> list[str]:
        """Put the transaction on top, ready for a statement of this kind.

        One that is not ``timed`` does not look at the clock, which may then be set later if that
        would be the only thing to send.
        """
        sql = self.settle(transaction)
        if transaction.frames and self.aborted_by is not transaction:
            sql += self._come_on_top(transaction)
        if not transaction.frames:
            sql += self._take_frame(transaction)
        for label in transaction.labels[len(transaction.frames) - 1 :]:
            sql.append(self._push(transaction, label))
        if kind not in _HARMLESS:
            transaction.frames[-1].dirty = True
        return sql + self.own_settings(transaction, timed=timed or bool(sql))

    def own_settings(self, transaction: Transaction, *, timed: bool = True) -> list[str]:
        """Let the transaction, whose turn it is, find its own settings and its own time."""
        if self.aborted_by is not None:
            return []
        just_begun, self._just_begun = self._just_begun, False
        if self.reading is None:
            return self.settings.switch(transaction)
        if transaction.now is None or transaction.clock is not self.clock:
            transaction.now, transaction.clock = self.reading(just_begun), self.clock
        # A time that somebody has set must not be seen by a view of another transaction.
        self._clocked |= self.clock is not None
        return self.settings.switch(transaction, timed=timed or self._clocked)

    def guard(self) -> tuple[list[str], Frame]:
        """A savepoint on top of everybody, for a read of a transaction that is not on top."""
        top = self.frames[-1] if self.frames else None
        free = top is not None and top.state is FrameState.FREE and top.name
        # What is only on the server must not go with a rollback to an older savepoint.
        if top is not None and free and not self.settings.unread_by_anybody():
            return [], top
        self._fresh = False
        frame = Frame(self._name(), state=FrameState.FREE, settings=self.settings.snapshot())
        self.frames.append(frame)
        return [f"SAVEPOINT {frame.name}"], frame

    def undo_guard(self, frame: Frame) -> list[str]:
        """After the guarded statement failed: the server is whole again."""
        self.settings.back_to(frame)
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
            sql += self._begin(transaction)
        return sql

    def pin(self) -> None:
        """Something that no transaction accounts for happens in the outer one.

        So it must not be undone by the rollback of whoever comes first.
        """
        self._fresh = False
        self._pinned = True

    def savepoint(self, transaction: Transaction, label: str) -> str:
        """The statement to send for the application's SAVEPOINT; the transaction is on top."""
        if transaction.failed:
            # The server refuses it, so that there is none to count on.
            return f"SAVEPOINT {self._name()}"
        transaction.labels.append(label)
        transaction.marks.append((len(transaction.effects), dict(transaction.settings)))
        return self._push(transaction, label)

    def make_read_only(self, transaction: Transaction, *, read_only: bool) -> list[str]:
        """SET TRANSACTION READ ONLY, or READ WRITE, comes next; it reverts with a savepoint."""
        if transaction.failed:
            return []
        if self._wrote(transaction):
            sql = self.enter(transaction, Kind.SAVEPOINT)
            sql.append(self.savepoint(transaction, ""))
            transaction.frames[-1].read_only = True
            return sql
        self._evict(transaction)
        transaction.read_only = read_only or None
        return []

    def rollback_to(self, transaction: Transaction, frame: Frame) -> str:
        """The statement for ROLLBACK TO SAVEPOINT; it also ends the transaction's failure."""
        position = transaction.frames.index(frame) - 1
        effects, transaction.settings = transaction.marks[position]
        del transaction.effects[effects:], transaction.marks[position + 1 :]
        transaction.marks[position] = (effects, dict(transaction.settings))
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
        del transaction.labels[position - 1 :], transaction.marks[position - 1 :]
        return f"RELEASE SAVEPOINT {frame.name}"

    def commit(self, transaction: Transaction) -> list[str]:
        """End it and keep its work. Commit of a failed transaction is a rollback, as in SQL."""
        if transaction.failed:
            return self.rollback(transaction)
        self.settings.commit(transaction)
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

    def let_go(self, transaction: Transaction) -> list[str]:
        """End one that has taken locks and nothing else, so that they are free, as after COMMIT.

        Where others have committed or work in its savepoint, the locks stay until check-in.
        """
        if transaction.failed or not transaction.frames or not self.clean(transaction):
            return self.commit(transaction)
        first = transaction.frames[0]
        above = self.frames[self.frames.index(first) :]
        if any(f.foreign or f.dirty or f.transaction is not transaction for f in above):
            return self.commit(transaction)
        self.settings.commit(transaction)
        transaction.over = True
        sql = self._undo(transaction, first)
        self._evict(transaction)
        return sql

    def scratch(self) -> str:
        """The name of a savepoint that is gone again before anybody else moves."""
        self._fresh = False
        return self._name()

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
        self.settings.restart()
        return list(self.end) if begun else []

    def restart(self) -> list[str]:
        """End the outer transaction, which is untouched; the next statement begins another."""
        for frame in self.frames:
            if frame.transaction is not None:
                frame.transaction.frames.clear()
        self.frames.clear()
        self.begun = False
        self.settings.restart()
        return list(self.end)

    def read_only_around(self, transaction: Transaction) -> Transaction | None:
        """Another that made itself READ ONLY after it had written; who nests in it is so too."""
        if transaction.frames or transaction.read_only:
            return None
        for frame in self.frames:
            other = frame.transaction
            if not frame.read_only or frame.state is not FrameState.OPEN or other is None:
                continue
            if not self.clean(other):
                return other
        return None

    def sent(self) -> None:
        """What was returned last is on its way to the server."""
        self._ends_failure = False

    # -- the stack ----------------------------------------------------------------------

    def _begin(self, transaction: Transaction | None) -> list[str]:
        self.begun = self._fresh = self._just_begun = True
        self._pinned = False
        self.isolation = transaction.isolation if transaction is not None else None
        begin = f"BEGIN ISOLATION LEVEL {self.isolation}" if self.isolation else "BEGIN"
        marker = [] if self.end is END_UNMARKED else [f"SAVEPOINT {MARKER}"]
        return [begin, *self.opening, *marker]

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
        aborted, self.aborted_by = self.aborted_by is not None, None
        if not frame.name:
            self.frames.clear()
            transaction.frames.clear()
            transaction.labels.clear()
            self.begun = False
            self._ends_failure = aborted
            self.settings.restart()
            return list(self.end)
        self.settings.back_to(frame)
        frame.dirty = frame.read_only = False
        frame.foreign = ()
        own = transaction.frames.index(frame)
        del transaction.frames[own + 1 :]
        del transaction.labels[own:]
        return [f"ROLLBACK TO SAVEPOINT {frame.name}"]

    def _push(self, transaction: Transaction, label: str | None) -> str:
        self._fresh = False
        frame = Frame(self._name(), transaction, label, settings=self.settings.snapshot())
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

    def _name(self) -> str:
        self._number += 1
        return f"{PREFIX}{self._number}"


_HARMLESS: Final = READING | {Kind.SAVEPOINT, Kind.ROLLBACK_TO, Kind.RELEASE}

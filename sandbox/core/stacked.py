"""What can be said of the savepoints of a connection without moving any of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sandbox.core.frames import Frame, FrameState, Transaction
from sandbox.core.statements import Kind

if TYPE_CHECKING:
    from sandbox.core.settings import Settings

__all__ = ("READING", "Frames")

READING: Final = frozenset({Kind.READ, Kind.SETTING, Kind.EMPTY})
"""Kinds that change no data."""
_ENDS: Final = frozenset({Kind.COMMIT, Kind.ROLLBACK})


class Frames:
    """The frames of one real connection, the lowest first, and what they tell.

    For :class:`sandbox.core.transaction.Stack`, which moves them.
    """

    __slots__ = ("_abandoned", "_ends_failure", "_pinned", "aborted_by", "frames", "settings")

    frames: list[Frame]
    aborted_by: Transaction | None
    settings: Settings
    _abandoned: list[Transaction]
    _ends_failure: bool
    _pinned: bool

    # -- who may go ahead ---------------------------------------------------------------

    def blocker(self, transaction: Transaction, kind: Kind) -> Transaction | None:
        """The transaction that should end before this statement, or None.

        Reads never wait, nor does what sends nothing: a commit, unless it is of a failed
        transaction and thereby a rollback, and the rollback of a clean one. A transaction with
        frames waits for those above it, since writing below the top would put its work into their
        hands. One without waits for whoever has written: nesting in another's work is the last
        resort.
        """
        if kind in READING or (kind is Kind.COMMIT and not transaction.failed):
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

    @property
    def has_failed(self) -> bool:
        """Whether the server's transaction has, or had before the ROLLBACK that is its end."""
        return self.aborted_by is not None or self._ends_failure

    def untouched(self) -> bool:
        """Whether the outer transaction could be begun anew and nobody would notice."""
        if self._pinned or self.aborted_by is not None or self.settings.unread_by_anybody():
            return False
        return not any(
            frame.dirty
            or frame.foreign
            or frame.state is FrameState.DONE
            or (frame.transaction is not None and frame.transaction.effects)
            for frame in self.frames
        )

    def wrote(self, transaction: Transaction) -> bool:
        """Whether it has done anything that its rollback would undo."""
        return self._wrote(transaction)

    def others_at_work(self, transaction: Transaction) -> Transaction | None:
        """Another open transaction that has written, or None."""
        for frame in self.frames:
            other = frame.transaction
            if frame.state is not FrameState.OPEN or other is None or other is transaction:
                continue
            if self._has_work(other):
                return other
        return None

    def writer_above(self, transaction: Transaction) -> Transaction | None:
        """The first that has written and lies above its frames, or None."""
        if not transaction.frames:
            return None
        for frame in self.frames[self._above(transaction) :]:
            other = frame.transaction
            if frame.state is FrameState.OPEN and other is not None and self._has_work(other):
                return other
        return None

    # -- one by one -----------------------------------------------------------------------------

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

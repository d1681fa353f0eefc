"""Who may use which sandbox: owners, allowances and modes of every database.

The registry answers one question, :meth:`Registry.find`: which sandbox of this database does the
caller use? The answer is one of a closed set: a sandbox, :data:`PASS_THROUGH`, or an error. It
knows nothing of connections; what is registered is opaque to it.

The rules follow ``DBConnection.Ownership`` (Elixir): first what the caller owns, then what it
was allowed, then what is shared, then the mode. Unlike its ancestor kura_sandbox it never falls
through to the real database in silence.
"""

from __future__ import annotations

import enum
import fnmatch
import threading
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from sandbox.core.owner import Caller, Owner, current_owner
from sandbox.errors import (
    AlreadyOwnerError,
    AlreadySharedError,
    NotFoundError,
    NotOwnerError,
    OwnerExitedError,
    OwnershipError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

__all__ = ("PASS_THROUGH", "Child", "Mode", "PassThrough", "Registry", "Shared")

S = TypeVar("S")

Child = object
"""A thread, a task, a thread-name pattern, or a predicate without arguments."""


class Mode(enum.Enum):
    """What happens to a caller that neither owns nor was allowed anything."""

    AUTO = "auto"
    MANUAL = "manual"


@dataclass(frozen=True, slots=True)
class Shared:
    """The mode in which everybody uses that owner's sandbox."""

    owner: Owner


class PassThrough(enum.Enum):
    """The answer for a caller that may use the real database."""

    PASS_THROUGH = enum.auto()


PASS_THROUGH: Final = PassThrough.PASS_THROUGH


@dataclass(slots=True)
class _Database(Generic[S]):
    name: str
    mode: Mode = Mode.AUTO
    chosen: bool = False
    """Somebody asked for this mode; until then strangers pass only while nobody is sandboxed."""
    shared: Owner | None = None
    held: dict[Owner, S] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Allowance:
    """A caller that an owner vouches for; never keyed on an ident."""

    owner: Owner
    database: Hashable | None
    who: weakref.ref[object] | None = None
    pattern: str | None = None
    predicate: Callable[[], object] | None = None

    def covers(self, caller: Caller) -> bool:
        if self.who is not None:
            who = self.who()
            return who is not None and (who is caller.thread or who is caller.task)
        if self.pattern is not None:
            return fnmatch.fnmatchcase(caller.thread.name, self.pattern)
        return self.predicate is not None and bool(self.predicate())

    @property
    def gone(self) -> bool:
        """The thread or task is no more."""
        return self.who is not None and self.who() is None

    def same_child(self, child: object) -> bool:
        if self.who is not None:
            return child is not None and self.who() is child
        return child == self.pattern if isinstance(child, str) else child is self.predicate

    def __str__(self) -> str:
        if self.who is not None:
            return repr(self.who())
        return f"threads named {self.pattern!r}" if self.pattern else repr(self.predicate)


class Registry(Generic[S]):
    """Owners, allowances and modes. Safe to call from any thread.

    Look-ups of an owner's own sandbox take no lock: they are two dictionary reads, and everyone
    else's happen under the lock.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._databases: dict[Hashable, _Database[S]] = {}
        self._allowances: list[_Allowance] = []

    # -- databases and modes ----------------------------------------------------------------

    def know(self, database: Hashable, name: str) -> None:
        """Start to watch over a database; idempotent.

        A database that can end says so by an attribute ``gone``: it is forgotten then.
        """
        with self._lock:
            if database not in self._databases:
                self._databases = {
                    key: entry
                    for key, entry in self._databases.items()
                    if entry.held or not getattr(key, "gone", False)
                }
                self._databases[database] = _Database(name)

    def knows(self, database: Hashable) -> bool:
        """Whether callers of this database are to be looked up at all."""
        return database in self._databases

    def forget(self) -> None:
        """Stop watching over databases that nobody has checked out; their modes go with them."""
        with self._lock:
            self._databases = {key: entry for key, entry in self._databases.items() if entry.held}

    def mode(self, database: Hashable) -> Mode | Shared:
        """The mode in force."""
        entry = self._databases[database]
        return Shared(entry.shared) if entry.shared is not None else entry.mode

    def set_mode(self, database: Hashable, mode: Mode | Shared) -> None:
        """Change the mode; sharing ends with the owner, and the mode before it returns.

        Raises AlreadySharedError while another owner shares, NotFoundError for an owner that has
        nothing checked out.
        """
        with self._lock:
            entry = self._databases[database]
            if isinstance(mode, Shared):
                if mode.owner not in entry.held:
                    raise NotFoundError(
                        f"{mode.owner.label} cannot share {entry.name}: it has not checked it out."
                        f" Check out first: sandbox.checkout(target, shared=True)."
                    )
                if entry.shared is not None and entry.shared is not mode.owner:
                    raise AlreadySharedError(
                        f"{mode.owner.label} cannot share {entry.name}: {entry.shared.label}"
                        f" shares it already. Check that one in first, or use sandbox.allow()"
                        f" for the callers that need this one."
                    )
                entry.shared = mode.owner
            else:
                entry.mode = mode
                entry.chosen = True
                entry.shared = None

    # -- owners ------------------------------------------------------------------------------

    def checkout(self, owner: Owner, database: Hashable, sandbox: S) -> None:
        """Give the owner its sandbox of this database."""
        with self._lock:
            entry = self._databases[database]
            if owner in entry.held:
                raise AlreadyOwnerError(
                    f"{owner.label} has already checked out {entry.name}. A test has one sandbox"
                    f" of a database; what its threads and tasks need is sandbox.allow(), and"
                    f" another owner is made with sandbox.run_as(sandbox.Owner(label))."
                )
            owner.ended = False
            entry.held[owner] = sandbox

    def checkin(self, owner: Owner, database: Hashable) -> S:
        """Take the owner's sandbox from it; its allowances and its sharing end with it."""
        with self._lock:
            entry = self._databases[database]
            if owner not in entry.held:
                raise NotFoundError(f"{owner.label} has nothing checked out of {entry.name}.")
            sandbox = entry.held.pop(owner)
            if entry.shared is owner:
                entry.shared = None
            holds_more = any(owner in other.held for other in self._databases.values())
            self._allowances = [
                allowance
                for allowance in self._allowances
                if allowance.owner is not owner or (holds_more and allowance.database != database)
            ]
            owner.ended = not holds_more
            return sandbox

    def holdings(self, owner: Owner) -> list[tuple[Hashable, S]]:
        """What the owner has checked out."""
        with self._lock:
            return [
                (database, entry.held[owner])
                for database, entry in self._databases.items()
                if owner in entry.held
            ]

    def held(self) -> list[S]:
        """Every sandbox that is checked out."""
        with self._lock:
            return [s for entry in self._databases.values() for s in entry.held.values()]

    def owner_of(self, who: object) -> Owner:
        """The live owner that ``who`` is, holds, made or was allowed by."""
        owner = getattr(who, "owner", who)
        with self._lock:
            if not isinstance(owner, Owner):
                found = [a.owner for a in self._allowances if a.same_child(who)]
                found += [
                    held
                    for entry in self._databases.values()
                    for held in entry.held
                    if held.made_by(who)
                ]
                if not found:
                    raise NotFoundError(
                        f"{who!r} has no sandbox that it could allow others to use."
                    )
                owner = found[0]
            if not any(owner in entry.held for entry in self._databases.values()):
                raise NotFoundError(
                    f"{owner.label} has no sandbox that it could allow others to use."
                    f" Check out first: sandbox.checkout(target)."
                )
            return owner

    # -- allowances --------------------------------------------------------------------------

    def allow(
        self,
        owner: Owner,
        child: Child,
        database: Hashable | None = None,
        *,
        unallow_existing: bool = False,
    ) -> None:
        """Let the child use the owner's sandboxes (of one database, or all) until it checks in.

        Allowing the same child again is no error; AlreadyOwnerError if another owner did, of the
        same database.
        """
        allowance = _Allowance(owner, database)
        if isinstance(child, str):
            allowance.pattern = child
        elif callable(child) and not hasattr(child, "start"):
            allowance.predicate = child
        else:
            allowance.who = weakref.ref(child)
        with self._lock:
            same = [
                a
                for a in self._allowances
                if a.same_child(child) and (database is None or a.database in {None, database})
            ]
            others = [a for a in same if a.owner is not owner]
            if others and not unallow_existing:
                raise AlreadyOwnerError(
                    f"{allowance} uses the sandbox of {others[0].owner.label} already."
                    f" sandbox.allow(…, unallow_existing=True) moves it to {owner.label}."
                )
            if not any(a.owner is owner and a.database in {None, database} for a in same):
                self._allowances.append(allowance)
            self._allowances = [a for a in self._allowances if a not in others and not a.gone]

    def unallow(self, child: Child, database: Hashable | None = None) -> None:
        """Take an allowance back; NotFoundError if there is none."""
        with self._lock:
            found = [
                a
                for a in self._allowances
                if a.same_child(child) and database in {None, a.database}
            ]
            if not found:
                raise NotFoundError(f"{child!r} was not allowed to use any sandbox.")
            for allowance in found:
                self._allowances.remove(allowance)

    # -- the question ------------------------------------------------------------------------

    def find(self, database: Hashable) -> S | PassThrough:
        """The sandbox that the caller uses, or PASS_THROUGH; raises OwnershipError."""
        entry = self._databases.get(database)
        if entry is None:
            return PASS_THROUGH
        owner = current_owner()
        if owner is not None:
            sandbox = entry.held.get(owner)
            if sandbox is not None:
                return sandbox
        return self._find_for_others(entry, database, owner)

    def _find_for_others(
        self, entry: _Database[S], database: Hashable, owner: Owner | None
    ) -> S | PassThrough:
        caller = Caller()
        with self._lock:
            for allowance in self._allowances:
                if (
                    allowance.database in {None, database}
                    and allowance.owner in entry.held
                    and allowance.covers(caller)
                ):
                    return entry.held[allowance.owner]
            if entry.shared is not None:
                return entry.held[entry.shared]
            if owner is not None and owner.ended:
                raise OwnerExitedError(
                    f"{caller} belongs to {owner.label}, which has ended: its sandbox of"
                    f" {entry.name} was checked in and rolled back. Nothing was written."
                    f" Wait for threads and tasks before the test ends (join the thread, await the"
                    f" task, shut the executor down), or start them anew in the next test."
                )
            if entry.mode is Mode.AUTO and (entry.chosen or not entry.held):
                return PASS_THROUGH
            raise OwnershipError(self._refusal(entry, caller))

    def require_own(self, database: Hashable) -> Owner:
        """The caller as owner of this database, for what only owners may do."""
        entry = self._databases.get(database)
        owner = current_owner()
        if entry is not None and owner is not None and owner in entry.held:
            return owner
        name = entry.name if entry is not None else str(database)
        if entry is not None:
            try:
                sandbox = self._find_for_others(entry, database, owner)
            except OwnershipError:
                sandbox = PASS_THROUGH
            if sandbox is not PASS_THROUGH:
                holder = next(o for o, s in entry.held.items() if s is sandbox)
                raise NotOwnerError(
                    f"{Caller()} may use the sandbox of {name}, but it belongs to {holder.label}:"
                    f" only the owner checks it in."
                )
        raise NotFoundError(f"{Caller()} has nothing checked out of {name}.")

    def _refusal(self, entry: _Database[S], caller: Caller) -> str:
        owners = ", ".join(owner.label for owner in entry.held) or "none"
        rule = (
            "The mode is 'manual', in which only owners and those they allow reach the database."
            if entry.mode is Mode.MANUAL
            else "While somebody has it checked out, only owners and those they allow reach the"
            ' database, unless sandbox.mode(target, "auto") says otherwise.'
        )
        return (
            f"{caller} may not use {entry.name}: it owns no sandbox of it and nobody allowed it."
            f"\n\n{rule} Owners now: {owners}."
            f"\n\nFour ways out:"
            f"\n  1. Check out in this thread or task: sandbox.checkout(target); under pytest, use"
            f" the fixture `sandboxed` or the setting sandbox_autouse."
            f"\n  2. Let an owner vouch for it: sandbox.allow(owner, threading.current_thread()),"
            f' or by thread name: sandbox.allow(owner, "worker-*").'
            f"\n  3. Carry the owner along: sandbox.run_as(owner) around the work, or"
            f" sandbox.inherit_threads() for every thread."
            f"\n  4. Share one sandbox with everybody: sandbox.checkout(target, shared=True), or"
            f" @pytest.mark.sandbox(shared=True)."
        )

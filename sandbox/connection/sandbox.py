"""A sandbox: what one owner has of one database until it checks in."""

from __future__ import annotations

import threading
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sandbox.connection.mutex import Mutex
from sandbox.connection.options import Options
from sandbox.connection.shared import SharedConnection
from sandbox.errors import IsolationLevelWarning, OwnerExitedError, SandboxError

if TYPE_CHECKING:
    from collections.abc import Hashable

    from sandbox.connection.physical import Source
    from sandbox.core.owner import Owner

__all__ = ("Sandbox", "Stats")


@dataclass(slots=True)
class Stats:
    """What a sandbox has cost so far."""

    statements: int = 0
    """Statements of the application."""
    round_trips: int = 0
    """Round trips that the sandbox added: BEGIN, SAVEPOINT, RELEASE, ROLLBACK."""
    waits: int = 0
    """How often a transaction waited for another to end."""
    waited: float = 0.0
    """Seconds spent in those waits."""


class Sandbox:
    """One owner's view of one database. Made by :func:`sandbox.checkout`.

    Whatever is written through it is rolled back when its owner checks in. Its attributes may be
    read from any thread or task.
    """

    def __init__(
        self, owner: Owner, database: Hashable, name: str, options: Options | None = None
    ) -> None:
        self.owner = owner
        self.database = database
        self.name = name
        self.options = options if options is not None else Options()
        self.stats = Stats()
        self._lock = threading.Lock()
        self._opening = Mutex()
        self._shared: dict[Hashable, tuple[SharedConnection, Source]] = {}
        self._closed = False

    @property
    def label(self) -> str:
        """Whose it is: the test's id."""
        return self.owner.label

    @property
    def closed(self) -> bool:
        """Whether it was checked in."""
        return self._closed

    def __repr__(self) -> str:
        return f"<Sandbox of {self.name} for {self.label}{' (closed)' if self._closed else ''}>"

    def connection(self, source: Source) -> SharedConnection:
        """The real connection for this kind of source; the first caller opens it."""
        entry = self._shared.get(source.key)
        if entry is None:
            # Threads that come first at once wait for one connection rather than opening many.
            # Not for ever: a listener that runs meanwhile may itself ask for a connection.
            held = source.io.lock(self._opening, self.options.busy_after)
            try:
                entry = self._shared.get(source.key) or self._open(source)
            finally:
                if held:
                    self._opening.release()
        shared = entry[0]
        if not shared.is_prepared_for(source):
            shared.prepared(source)
            source.prepare_inside(shared)
        return shared

    def _open(self, source: Source) -> tuple[SharedConnection, Source]:
        physical = source.borrow()
        with self._lock:
            entry = self._shared.get(source.key)
            if entry is None and not self._closed:
                entry = self._shared[source.key] = (
                    SharedConnection(physical, self, lambda: source.borrow(fresh=True)),
                    source,
                )
        if entry is None or entry[0].physical is not physical:
            source.give_back(physical)
        if entry is None:
            raise OwnerExitedError(f"{self!r} was checked in while this caller was binding.")
        return entry

    def check_closable(self) -> None:
        """Raise SandboxError if close() could not wait for the connection from here."""
        for shared, source in list(self._shared.values()):
            if not source.io.reaches(shared.real):
                raise SandboxError(
                    f"The connection of {self.label} lives on the event loop that is running here,"
                    f" which cannot wait for itself. Nothing was rolled back yet: use"
                    f" `await sandbox.acheckin()`, or `async with sandbox.sandboxed(...)`."
                )

    def warn_isolation(self, where: str, asked: str | None, given: str | None) -> None:
        """Say that a transaction gets a weaker isolation level than it asked for."""
        warnings.warn(
            f"{where} asked for {asked}, but the transaction that contains {self.label} began"
            f" with {given or 'the default level'} and cannot be changed. Check out with"
            f" isolation_level={asked!r}, or let the first transaction of the test ask for it."
            f" See docs/reference/errors.md#isolationlevelwarning",
            IsolationLevelWarning,
            stacklevel=2,
        )

    def close(self) -> list[str]:
        """Roll everything back; returns how it was escaped from, empty if it was not.

        For the owner's checkin. Blocks until statements that still run have ended.
        """
        with self._lock:
            self._closed = True
            entries = list(self._shared.values())
            self._shared.clear()
        escapes = []
        for shared, source in entries:
            escaped = shared.finish(source.io)
            if escaped is not None:
                escapes.append(escaped)
            source.give_back(shared.physical, reusable=shared.reusable)
            source.io.left()
        return escapes

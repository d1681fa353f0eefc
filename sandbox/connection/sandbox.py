"""A sandbox: what one owner has of one database until it checks in."""

from __future__ import annotations

import threading
import warnings
from typing import TYPE_CHECKING

from sandbox.connection.blockers import register
from sandbox.connection.channels import Channels
from sandbox.connection.escapes import Escape, note
from sandbox.connection.mutex import Mutex
from sandbox.connection.options import Options
from sandbox.connection.shared import SharedConnection
from sandbox.connection.waits import Stats
from sandbox.errors import (
    IsolationLevelWarning,
    OwnerExitedError,
    SandboxError,
    UnsupportedInSandboxError,
)

if TYPE_CHECKING:
    from collections.abc import Hashable

    from sandbox.connection.physical import PhysicalConnection, Source
    from sandbox.core.clock import Clock
    from sandbox.core.owner import Owner

__all__ = ("Sandbox", "Stats")


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
        self.clock: Clock | None = None
        """What tells its transactions the time; None: real time. Set by :func:`sandbox.clock`."""
        self._lock = threading.Lock()
        self._opening = Mutex()
        self._channels: Channels | None = None
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

    @property
    def channels(self) -> Channels:
        """Who listens to what in it; made when somebody first notifies or listens."""
        if self._channels is not None:
            return self._channels  # also while garbage is collected, which must not wait
        with self._lock:
            if self._channels is None:
                self._channels = Channels(self.label)
                if self._closed:
                    self._channels.close()
            return self._channels

    def __repr__(self) -> str:
        return f"<Sandbox of {self.name} for {self.label}{' (closed)' if self._closed else ''}>"

    def follows_clock(self) -> bool | None:
        """Whether its database's now() can be given another time; None before it is known."""
        known = [shared.physical.facts.clock for shared, _ in list(self._shared.values())]
        return all(known) if known else None

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
        physical = self._borrow(source)
        with self._lock:
            entry = self._shared.get(source.key)
            if entry is None and not self._closed:
                entry = self._shared[source.key] = (
                    SharedConnection(physical, self, lambda: self._borrow(source, fresh=True)),
                    source,
                )
        if entry is None or entry[0].physical is not physical:
            source.give_back(physical)
        if entry is None:
            raise OwnerExitedError(f"{self!r} was checked in while this caller was binding.")
        register(entry[0])
        return entry

    def _borrow(self, source: Source, *, fresh: bool = False) -> PhysicalConnection:
        """A real connection of which everything is known that a sandbox needs to know."""
        physical = source.borrow(fresh=fresh)
        try:
            physical.learn(source.io)
            physical.limit_waits(source.io, self.options.lock_timeout)
        except BaseException:
            lost = source.driver.lost(physical.real)
            source.give_back(physical, reusable=False)
            if fresh or not lost:
                raise
            # It was lost while it lay idle.
            return self._borrow(source, fresh=True)
        return physical

    def check_closable(self) -> None:
        """Raise SandboxError if close() could not wait for the connection from here."""
        for shared, source in list(self._shared.values()):
            if not source.io.reaches(shared.real):
                raise SandboxError(
                    f"The connection of {self.label} lives on the event loop that is running here,"
                    f" which cannot wait for itself. Nothing was rolled back yet: use"
                    f" `await sandbox.acheckin()`, or `async with sandbox.sandboxed(...)`."
                )

    def object_to_isolation(self, where: str, asked: str | None, given: str | None) -> None:
        """A transaction gets a weaker isolation level than it asked for: refuse it, or warn."""
        problem = (
            f"{where} asked for {asked}, but the transaction that contains {self.label} began"
            f" with {given or 'the default level'} and cannot be changed."
        )
        remedy = (
            f" Check out with isolation_level={asked!r} (@pytest.mark.sandbox(isolation_level=…)),"
            f" or let the first transaction of the test ask for it"
        )
        if self.options.late_isolation == "error":
            raise UnsupportedInSandboxError(
                f"{problem} The statement was not sent.{remedy}; or run the test in a database of"
                f' its own (isolation="database"), or accept the weaker level with'
                f' late_isolation="warn".'
            )
        warnings.warn(
            f"{problem}{remedy}. See docs/reference/errors.md#isolationlevelwarning",
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
            channels = self._channels
        if channels is not None:
            # First: who waits there holds nothing, and is to be gone with the sandbox.
            channels.close()
        escapes = []
        for shared, source in entries:
            escaped = shared.finish(source.io)
            if escaped is not None:
                escapes.append(escaped)
                note(Escape(self.database, self.name, self.label, escaped))
            source.give_back(shared.physical, reusable=shared.reusable)
            source.io.left()
        return escapes

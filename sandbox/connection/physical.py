"""The real connection: one driver connection, who prepared it and where it lives."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from sandbox.connection.blockers import timeout_setting
from sandbox.connection.facts import QUERY, SESSION_SETTINGS, Facts, schema_version
from sandbox.core.clock import SHADOW_SQL

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from sandbox.connection.driver import IO, Driver, Session
    from sandbox.connection.sandbox import Sandbox
    from sandbox.connection.shared import SharedConnection
    from sandbox.core.ownership import PassThrough

__all__ = ("PhysicalConnection", "Source")


class PhysicalConnection:
    """A driver's connection that no application holds.

    ``close`` is how its maker gets rid of it (listeners of the pool included).
    """

    __slots__ = (
        "_close",
        "_discard",
        "_lock_timeout",
        "_patient",
        "_prepared_for",
        "base",
        "driver",
        "facts",
        "home",
        "io",
        "real",
        "schema_changed",
    )

    def __init__(
        self,
        real: Any,
        driver: Driver,
        io: IO,
        close: Callable[[], None],
        discard: Callable[[], None],
        home: Hashable = None,
    ) -> None:
        self.real = real
        self.driver = driver
        self.io = io
        self.home = home
        # It outlives most engines: an application may make one for each of its tests.
        self._prepared_for: weakref.WeakSet[Source] = weakref.WeakSet()
        self.schema_changed = False
        self.facts = Facts()
        self._patient: bool | None = None
        self._lock_timeout: str | None = None
        self.base: dict[str, str] = {}
        """The server's own values of what listeners of some source have SET on it."""
        self._close = close
        self._discard = discard

    def is_prepared_for(self, source: Source) -> bool:
        """Whether the listeners of that engine have run on it."""
        return source in self._prepared_for

    def prepared(self, source: Source) -> None:
        """They have."""
        self._prepared_for.add(source)

    def take_settings(self, io: IO) -> dict[str, str]:
        """What listeners have just SET on it. It is undone: other sources share the connection."""
        if not self.driver.dialect.has_effects:
            return {}
        rows = [
            row
            for row in io.call(self.real, self.driver.ask, self.real, SESSION_SETTINGS)
            if row[:2] != ("lock_timeout", self._lock_timeout)
        ]
        if rows:
            resets = [f"RESET {name}" for name, _, _ in rows]
            io.call(self.real, self.driver.send, self.real, resets)
        self.base.update({name: base for name, _, base in rows})
        if "lock_timeout" in self.base:
            # It is as it was before limit_waits().
            self._lock_timeout = None
        return {name: value for name, value, _ in rows}

    def limit_waits(self, io: IO, seconds: float) -> None:
        """Wait no longer for locks, unless the application, its role or its database has set that.

        Once for each real connection, as long as sandboxes do not choose different times.
        """
        if self._patient is None:
            self._patient = self.facts.patient
        setting = timeout_setting(seconds)
        if not self._patient or self._lock_timeout == setting:
            return
        statement = f"SET lock_timeout = {setting}"
        io.call(self.real, self.driver.send, self.real, [statement])
        self._lock_timeout = setting
        if "lock_timeout" in self.base:
            self.base["lock_timeout"] = setting

    def learn(self, io: IO) -> None:
        """Ask what has to be known of the schema, unless that is known; it is in no transaction.

        At most one round trip for each real connection and each change of the schema.
        """
        version = schema_version()
        if not self.driver.dialect.has_effects or self.facts.version == version:
            return
        facts = Facts.read(io.call(self.real, self.driver.ask, self.real, QUERY), version)
        if not facts.clock and io.call(self.real, self.driver.ask, self.real, SHADOW_SQL):
            facts = replace(facts, clock=True)
        self.facts = facts

    def close(self) -> None:
        """Close it for good; callable from anywhere but its own running event loop."""
        try:
            self.io.run(self.real, self._close)
        except Exception:  # noqa: BLE001 - its loop is gone, or the server: either way it is over
            self.discard()

    def discard(self) -> None:
        """Let go of it where no I/O is possible; the driver or the server cleans up."""
        self._discard()


class Source(Protocol):
    """Where virtual connections of one kind get real ones: an engine, a pool.

    Implemented by adapters. Sources with the same ``key`` may share one real connection.
    """

    driver: Driver
    io: IO
    settings: dict[str, str]
    """What its listeners SET on each of its connections."""

    @property
    def session(self) -> Session:
        """The settings of a connection that the application has prepared."""

    @property
    def key(self) -> Hashable:
        """What makes real connections interchangeable: driver, server, database, user."""

    def find(self) -> Sandbox | PassThrough:
        """Who is calling? Raises OwnershipError."""

    def open(self) -> PhysicalConnection:
        """A new real connection, prepared by the application's listeners."""

    def borrow(self, *, fresh: bool = False) -> PhysicalConnection:
        """One for a sandbox, prepared: an idle one that earlier sandboxes used, or a new one."""

    def give_back(self, physical: PhysicalConnection, *, reusable: bool = True) -> None:
        """The sandbox has ended; if ``reusable``, everything is rolled back and as it was."""

    def prepare_inside(self, shared: SharedConnection) -> None:
        """Run the listeners of a source that comes when the sandbox's transaction has begun."""

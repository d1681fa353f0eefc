"""Where an engine's real connections come from: the pool that the application gave it."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

from sandbox.adapters.sqlalchemy.identity import in_memory
from sandbox.adapters.sqlalchemy.io import hop, running_loop
from sandbox.connection.physical import PhysicalConnection

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from sqlalchemy.engine import Engine
    from sqlalchemy.pool import Pool

    from sandbox.connection.driver import IO, Driver, Session
    from sandbox.connection.sandbox import Sandbox
    from sandbox.connection.virtual import VirtualConnection
    from sandbox.core.ownership import PassThrough

__all__ = ("EngineSource", "Idle")

_HARMLESS = frozenset(
    [
        "application_name",
        "connect_timeout",
        "timeout",
        "command_timeout",
        "keepalives",
        "keepalives_idle",
        "keepalives_interval",
        "keepalives_count",
        "sslmode",
        "gssencmode",
        "context",
        "prepared_statement_cache_size",
        "statement_cache_size",
        "check_same_thread",
    ]
)


class Idle:
    """Real connections that sandboxes have used and rolled back, for the next ones."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: dict[Hashable, list[PhysicalConnection]] = {}

    def take(self, key: Hashable) -> PhysicalConnection | None:
        """One of that kind, or None."""
        with self._lock:
            found = self._idle.get(key)
            return found.pop() if found else None

    def put(self, key: Hashable, physical: PhysicalConnection) -> None:
        """Keep it for the next."""
        with self._lock:
            self._idle.setdefault(key, []).append(physical)

    def drain(self, wanted: Callable[[Hashable], bool]) -> list[PhysicalConnection]:
        """Take all whose key is wanted out."""
        with self._lock:
            keys = [key for key in self._idle if wanted(key)]
            return [physical for key in keys for physical in self._idle.pop(key)]


class EngineSource:
    """Implements :class:`sandbox.connection.physical.Source` for one engine."""

    def __init__(
        self,
        engine: Engine,
        database: Hashable,
        driver: Driver,
        io: IO,
        idle: Idle,
        find: Callable[[Hashable], Sandbox | PassThrough],
    ) -> None:
        self.database = database
        self.driver = driver
        self.io = io
        self.info: dict[Any, Any] = {}
        self._pool: Pool = engine.pool
        self._dialect = engine.dialect
        self._idle = idle
        self._find = find
        self._session: Session | None = None
        self._key: Hashable = None
        self._arguments: Hashable = None
        # A database in memory is its connection: everybody has to use the same one.
        self._single = in_memory(engine.url)
        self._only: PhysicalConnection | None = None
        self._lock = threading.Lock()

    # -- the adapter's side ----------------------------------------------------------------

    def follow(self, pool: Pool) -> None:
        """Listeners of the virtual pool, those yet to come too, are those of the real one."""
        # EventTarget keeps its listeners in this attribute; an instance may have another's.
        self._pool.dispatch = pool.dispatch

    def virtual(self) -> VirtualConnection:
        """A new virtual connection for the application's pool."""
        if self._session is None:
            self._prime()
        return self.driver.virtual_class()(self)

    def note_arguments(self, arguments: dict[str, Any]) -> None:
        """What the driver is being called with, of which some tell connections apart."""
        self._arguments = tuple(
            sorted((k, repr(v)) for k, v in arguments.items() if k not in _HARMLESS)
        )

    def _prime(self) -> None:
        """Make the first real connection: SQLAlchemy initialises its dialect from it.

        The first sandbox, or pass-through, takes it over.
        """
        physical = self.open()
        if self._single:
            self._only = physical
        elif self._find_quietly():
            self.io.call(physical.real, self.driver.take_over, physical.real)
            self._idle.put(self._idle_key(physical.home), physical)
        else:
            self._spare = physical

    _spare: PhysicalConnection | None = None

    def _find_quietly(self) -> bool:
        from sandbox.core.ownership import PASS_THROUGH
        from sandbox.errors import OwnershipError

        try:
            return self._find(self.database) is not PASS_THROUGH
        except OwnershipError:
            return True

    # -- Source --------------------------------------------------------------------------------

    @property
    def session(self) -> Session:
        """The settings that the application's listeners leave on a connection."""
        assert self._session is not None
        return self._session

    @property
    def key(self) -> Hashable:
        """Engines that call the same driver alike share one real connection."""
        return (self.database, self.driver.name, self._arguments)

    def find(self) -> Sandbox | PassThrough:
        """Say who is calling."""
        return self._find(self.database)

    def open(self) -> PhysicalConnection:
        """A new real connection, prepared by the application's listeners."""
        if self._only is not None:
            return self._only
        spare, self._spare = self._spare, None
        if spare is not None:
            return spare
        home = self.io.home()
        if home is None or home is running_loop():
            record = self._create()
        else:
            record = hop(home, self._create)  # type: ignore[arg-type]
        real: Any = record.dbapi_connection
        physical = PhysicalConnection(
            real,
            self.driver,
            (lambda: None) if self._single else record.close,
            lambda: self._discard(real),
            home,
        )
        physical.prepared(self)
        if self._session is None:
            self._session = self.driver.session(real)
            self.info = dict(record.info)
        return physical

    def borrow(self) -> PhysicalConnection:
        """An idle one of this kind that lives where the caller can reach it, or a new one."""
        if self._single:
            only = self._only or self.open()
            self.io.call(only.real, self.driver.take_over, only.real)
            return only
        physical = self._idle.take(self._idle_key(self.io.home()))
        if physical is None or self.driver.lost(physical.real):
            physical = self.open()
            self.io.call(physical.real, self.driver.take_over, physical.real)
        return physical

    def give_back(self, physical: PhysicalConnection) -> None:
        """Rolled back: as it was."""
        if not self._single:
            self._idle.put(self._idle_key(physical.home), physical)

    def prepare(self, physical: PhysicalConnection) -> None:
        """Run this engine's ``connect`` listeners on a connection that a twin engine opened."""
        physical.prepared(self)
        # The first listener of all initialises the dialect; _prime has done that.
        record = _Prepared(self._pool, physical.real)
        self.io.call(physical.real, self._pool.dispatch.connect, physical.real, record)
        self.io.call(physical.real, self.driver.take_over, physical.real)

    def dispose(self) -> None:
        """Close what is kept for this engine; for a caller outside of any event loop."""
        spare, self._spare = self._spare, None
        for physical in ([spare] if spare else []) + self._idle.drain(self._is_mine):
            self.close(physical)

    def close(self, physical: PhysicalConnection) -> None:
        """Close a real connection from anywhere."""
        try:
            self.io.run(physical.real, physical.close)
        except Exception:  # noqa: BLE001 - its loop is gone, or the server: either way it is over
            physical.discard()

    def _is_mine(self, key: Hashable) -> bool:
        return isinstance(key, tuple) and key[0] == self.key

    def _idle_key(self, home: Hashable) -> Hashable:
        return (self.key, id(home) if home is not None else None)

    def _create(self) -> Any:
        if self._single:
            # Not a new one: the database that the application has filled lies in the old.
            self._kept = self._pool.connect()
            return self._kept._connection_record
        return self._pool._create_connection()

    _kept: Any = None

    def _discard(self, real: Any) -> None:
        force = getattr(real, "_terminate_force_close", None)
        with contextlib.suppress(Exception):  # nobody is left to tell
            (force or real.close)()


class _Prepared:
    """What ``connect`` listeners get as the record of a connection that is not this pool's."""

    def __init__(self, pool: Pool, real: Any) -> None:
        self.dbapi_connection = real
        self.driver_connection = pool._dialect.get_driver_connection(real)
        self.info: dict[Any, Any] = {}
        self.record_info: dict[Any, Any] = {}

"""Where an engine's real connections come from: the pool that the application gave it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, Any

from sqlalchemy.pool.base import _ConnectionRecord

from sandbox.adapters.sqlalchemy.drivers import driver_for
from sandbox.adapters.sqlalchemy.identity import describe, in_memory, user_of_connection
from sandbox.adapters.sqlalchemy.io import hop, running_loop
from sandbox.connection.mutex import Mutex
from sandbox.connection.physical import PhysicalConnection
from sandbox.errors import SandboxBusyError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from sqlalchemy.engine import Engine
    from sqlalchemy.pool import Pool

    from sandbox.connection.driver import Session
    from sandbox.connection.sandbox import Sandbox
    from sandbox.connection.shared import SharedConnection
    from sandbox.connection.virtual import VirtualConnection
    from sandbox.core.ownership import PassThrough

__all__ = ("EngineSource", "Idle", "discard")

_SPARE = "not taken over by any sandbox yet"

_HARMLESS = frozenset(
    [
        "application_name",
        "autocommit",
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
        "prepare_threshold",
        "prepared_statement_cache_size",
        "statement_cache_size",
        "check_same_thread",
    ]
)

# Where and who: the connection itself tells, whoever made it.
_KNOWN = frozenset(
    ["database", "db", "dbname", "host", "password", "port", "positional", "unix_socket", "user"]
)


# Whose functions listen by themselves; other modules there may hold an application's.
_SQLALCHEMY = frozenset({"sqlalchemy.engine.create", "sqlalchemy.util.langhelpers"})


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

    def put_first(self, key: Hashable, physical: PhysicalConnection) -> bool:
        """Keep it if there is no other of that kind; whether it was kept."""
        with self._lock:
            some = self._idle.setdefault(key, [])
            if not some:
                some.append(physical)
            return physical in some

    def sweep(self) -> None:
        """Let go of those whose event loop was closed: nobody will take them any more."""
        with self._lock:
            stranded = [
                self._idle.pop(key)
                for key, some in list(self._idle.items())
                if some and _is_closed(some[0].home)
            ]
        for physical in [physical for some in stranded for physical in some]:
            physical.discard()

    def close(self) -> None:
        """Close them all."""
        with self._lock:
            idle, self._idle = self._idle, {}
        for physical in [physical for some in idle.values() for physical in some]:
            physical.close()


class EngineSource:
    """Implements :class:`sandbox.connection.physical.Source` for one engine."""

    def __init__(
        self,
        engine: Engine,
        database: Hashable,
        idle: Idle,
        find: Callable[[Hashable], Sandbox | PassThrough],
        every: Callable[[], list[EngineSource]],
    ) -> None:
        found = driver_for(engine.dialect)
        assert found is not None
        self.driver, self.io = found
        self.database = database
        self.name = describe(engine.url)
        self.info: dict[Any, Any] = {}
        self.settings: dict[str, str] = {}
        self._pool: Pool = engine.pool
        # What SQLAlchemy itself does to a connection depends on these. JSON it leaves to the driver
        # on PostgreSQL only, and where that can be told for each cursor it makes no difference.
        names: tuple[str, ...] = ("_json_serializer", "_json_deserializer")
        functions = tuple(getattr(engine.dialect, name, None) for name in names)
        self._plain_json = getattr(self.driver, "plain_json", None) if any(functions) else None
        self._json = functions if self._plain_json is not None else None
        by_connection = any(functions) and engine.dialect.name == "postgresql"
        self._codecs = (
            functions if by_connection and self._json is None else None,
            getattr(engine.dialect, "_native_inet_types", None),
        )
        self._idle = idle
        self._find = find
        self._every = every
        self._session: Session | None = None
        self._key: Hashable = None
        self._arguments: Hashable = ()
        self._user: str | None = None
        # A database in memory is its connection: everybody has to use the same one.
        self._single = in_memory(engine.url)
        self._only: PhysicalConnection | None = None
        self._lent = False
        self._kept: Any = None
        self._first = Mutex()

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
            sorted((k, repr(v)) for k, v in arguments.items() if k not in _HARMLESS | _KNOWN)
        )

    def _prime(self) -> None:
        """Make the first real connection: SQLAlchemy initialises its dialect from it.

        The first sandbox, or pass-through, takes it over.
        """
        physical = self.open()
        if self._single:
            return
        kind = self._spare
        if self._find_quietly():
            self._take_over(physical)
            self._keep_settings(physical)
            kind = physical.home
        # An application may make an engine for each test: one such connection is enough.
        if not self._idle.put_first((self.key, kind), physical):
            physical.close()

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
        return (self.database, self.driver.name, self._user, self._arguments, self._codecs)

    def find(self) -> Sandbox | PassThrough:
        """Say who is calling."""
        return self._find(self.database)

    def open(self) -> PhysicalConnection:
        """A new real connection, prepared by the application's listeners."""
        if self._only is not None:
            return self._only
        spare = self._idle.take((self.key, self._spare)) if self._session is not None else None
        if spare is not None:
            return spare
        return self._open(self.io.shelter())

    def _open(self, home: Hashable) -> PhysicalConnection:
        if not self._single:
            return self._make(home)
        held = self.io.lock(self._first, None)
        try:
            self._only = self._only or self._make(home)
            return self._only
        finally:
            if held:
                self._first.release()

    def _make(self, home: Hashable) -> PhysicalConnection:
        if home is None or home is running_loop():
            record = self._create()
        else:
            record = hop(home, self._create)  # type: ignore[arg-type]
        real: Any = record.dbapi_connection
        physical = PhysicalConnection(
            real,
            self.driver,
            self.io,
            (lambda: None) if self._single else record.close,
            lambda: discard(real),
            home,
        )
        physical.prepared(self)
        if self._plain_json is not None:
            self._plain_json(real)
        if self._session is None:
            self._session = self.io.call(real, self.driver.session, real)
            if self._json is not None:
                self._session.extra["json"] = self._json
            self._user = user_of_connection(self.driver.name, real)
            self.info = dict(record.info)
        return physical

    def borrow(self, *, fresh: bool = False) -> PhysicalConnection:
        """An idle one of this kind that lives where the caller can reach it, or a new one."""
        physical = self._borrow(fresh=fresh)
        try:
            self._prepare(physical)
        except BaseException:
            self._drop(physical)
            raise
        return physical

    def _drop(self, physical: PhysicalConnection) -> None:
        """A listener failed, or the task was cancelled: nobody has got it."""
        self._lent = False
        if not self._single:
            physical.discard()

    def _borrow(self, *, fresh: bool) -> PhysicalConnection:
        if self._single:
            only = self.open()
            if self._lent:
                raise SandboxBusyError(
                    f"A database in memory is one connection, and another sandbox has that of"
                    f" {self.name}. Check that one in first, or give the tests that run at once a"
                    f" database in a file."
                )
            self._lent = True
            self._take_over(only)
            return only
        home = self.io.home()
        physical = self._idle.take((self.key, home)) if not fresh else None
        if physical is None or self.driver.lost(physical.real):
            self._idle.sweep()
            physical = self._open(home)
            self._take_over(physical)
            self._keep_settings(physical)
        return physical

    def give_back(self, physical: PhysicalConnection, *, reusable: bool = True) -> None:
        """Keep it for the next sandbox, or close it."""
        if self._single:
            # There is no other for the next one.
            if not reusable:
                with contextlib.suppress(Exception):
                    physical.io.run(physical.real, physical.real.rollback)
            self._lent = False
        elif reusable:
            self._idle.put((self.key, physical.home), physical)
        else:
            physical.close()

    def _prepare(self, physical: PhysicalConnection) -> None:
        """Run the ``connect`` listeners of all engines that will share this idle connection."""
        for source in self._twins():
            if not physical.is_prepared_for(source):
                physical.prepared(source)
                record = _Prepared(source._pool, physical.real)
                for listener in source._listeners():
                    self.io.call(physical.real, listener, physical.real, record)
                self._take_over(physical)
                source._keep_settings(physical)

    def prepare_inside(self, shared: SharedConnection) -> None:
        """Run them in the sandbox, on a virtual connection, so that they end no transaction."""
        listeners = self._listeners()
        if not listeners:
            return
        virtual = self.virtual()
        record = _Prepared(self._pool, shared.real)
        for listener in listeners:
            listener(virtual, record)
        virtual.commit()
        if (session := virtual._memory[1]) is not None:
            shared.keep_settings(self, session)
        virtual.close()

    def _listeners(self) -> list[Callable[[Any, Any], None]]:
        """The application's: those of SQLAlchemy do the same for every engine of one kind."""
        return [
            listener
            for listener in self._pool.dispatch.connect
            if getattr(listener, "__module__", None) not in _SQLALCHEMY
        ]

    def _twins(self) -> list[EngineSource]:
        return [s for s in self._every() if s is self or (s._session and s.key == self.key)]

    @property
    def _spare(self) -> Hashable:
        """What is prepared by listeners is only for who has them."""
        return (_SPARE, self) if self._listeners() else _SPARE

    def _keep_settings(self, physical: PhysicalConnection) -> None:
        """What listeners SET is for this engine's connections, and not for others that share."""
        if self._listeners():
            self.settings = physical.take_settings(self.io)

    def _take_over(self, physical: PhysicalConnection) -> None:
        def take_over(real: Any) -> None:
            # A listener that forgot to commit its SET meant it to last.
            if self.driver.in_transaction(real):
                real.commit()
            self.driver.take_over(real)

        try:
            self.io.call(physical.real, take_over, physical.real)
        except BaseException:
            self._drop(physical)
            raise

    def _create(self) -> Any:
        if self._single:
            # Not a new one: the database that the application has filled lies in the old.
            self._kept = self._pool.connect()
            return self._kept._connection_record
        return _ConnectionRecord(self._pool)

    def disposed(self) -> None:
        """The application disposed of its pool: a database in memory goes with it.

        Not while a sandbox has it: applications dispose of their engines at each shutdown.
        """
        if self._kept is not None and not self._lent:
            kept, self._kept, self._only, self._session = self._kept, None, None, None
            kept.close()
            self._pool.dispose()


class _Prepared:
    """What ``connect`` listeners get as the record of a connection that is not this pool's."""

    def __init__(self, pool: Pool, real: Any) -> None:
        self.dbapi_connection = real
        self.driver_connection = pool._dialect.get_driver_connection(real)
        self.info: dict[Any, Any] = {}
        self.record_info: dict[Any, Any] = {}


def _is_closed(home: Hashable) -> bool:
    return isinstance(home, asyncio.AbstractEventLoop) and home.is_closed()


def discard(real: Any) -> None:
    """Let go of a driver's connection from anywhere, without I/O if that is not possible here."""
    force = getattr(real, "_terminate_force_close", None)
    native = getattr(real, "_connection", None)
    # aiomysql has streams, the others a transport.
    stream = getattr(native, "_writer", None) or native
    transport = getattr(stream, "transport", None) or getattr(stream, "_transport", None)
    loop = getattr(native, "_loop", None)
    with contextlib.suppress(Exception):  # nobody is left to tell
        if force is not None:
            force()
        elif native is not None and hasattr(native, "pgconn"):
            native.pgconn.finish()
        elif native is not None and hasattr(native, "ensure_closed"):
            native.close()
        else:
            real.close()
    # The transport of a closed loop waits for a call from it to close its socket.
    if loop is not None and transport is not None and loop.is_closed():
        with contextlib.suppress(Exception):
            transport._call_connection_lost(None)
        if native is not None and stream is not native:
            native._writer = None

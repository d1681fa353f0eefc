"""The public calls: what a test says to get and to share a sandbox.

One registry and one adapter for each process. Everything here may be called from any thread or
task; who calls is decided by :mod:`sandbox.core.owner`.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

from sandbox.connection.options import BUSY_AFTER, LOCK_AFTER, NEST_AFTER, Options
from sandbox.connection.sandbox import Sandbox
from sandbox.core.owner import Caller, Owner, current_owner, set_owner
from sandbox.core.ownership import PASS_THROUGH, Mode, Registry, Shared
from sandbox.errors import (
    ConfigurationError,
    NotFoundError,
    OwnershipError,
    SandboxError,
    SandboxEscapeError,
    UnsupportedTargetError,
)

if TYPE_CHECKING:
    from collections.abc import Hashable
    from types import TracebackType

    from sandbox.adapters.sqlalchemy import SQLAlchemyAdapter

__all__ = (
    "acheckin",
    "allow",
    "checkin",
    "checkout",
    "get_conn",
    "mode",
    "sandboxed",
    "start",
    "stop",
    "unallow",
    "watch",
)

_registry: Registry[Sandbox] = Registry()
_lock = threading.RLock()
_adapter: SQLAlchemyAdapter | None = None


def start() -> None:
    """Install the registry under SQLAlchemy; idempotent, called by the first checkout.

    Called before the application makes its engines or after: engines are taken over when they
    next connect. Without SQLAlchemy installed, ConfigurationError says what to install.
    """
    _installed()


def stop() -> None:
    """Take the registry out again: close idle real connections, forget modes, watch no engine.

    Raises SandboxError while sandboxes are checked out. Not from inside a running event loop.
    """
    held = _registry.held()
    if held:
        raise SandboxError(
            f"Cannot stop: {', '.join(s.label for s in held)} still checked out. Check in first."
        )
    with _lock:
        if _adapter is not None:
            # It stays: engines that were taken over go on asking it for real connections.
            _adapter.close_idle()
            _adapter.uninstall()
        _registry.forget()


def checkout(
    target: object,
    *,
    shared: bool = False,
    isolation: str = "savepoint",
    isolation_level: str | None = None,
    late_isolation: str = "error",
    nest_after: float = NEST_AFTER,
    busy_after: float = BUSY_AFTER,
    lock_timeout: float = LOCK_AFTER,
    owner: Owner | None = None,
) -> Sandbox:
    """Make the caller the owner of a sandbox of the target's database.

    ``target`` is an ``Engine`` or an ``AsyncEngine``; every engine of the same database is
    covered. From here on what the caller, its tasks and its ``to_thread`` calls do in that
    database is rolled back at checkin, commits included. Costs no round trip: the transaction
    begins with the first statement. ``isolation_level`` is that transaction's; left out, it is
    what the first transaction asks for. A later one that asks for a stronger level is refused, or
    with ``late_isolation="warn"`` runs with a warning.

    Times are seconds: a new transaction waits ``nest_after`` for a sibling's that has written
    before it nests in it, any statement at most ``busy_after`` for others of this sandbox, and
    ``lock_timeout`` for the locks of other sandboxes (0: for ever).

    Raises AlreadyOwnerError on a second checkout, AlreadySharedError for ``shared`` while another
    owner shares, UnsupportedTargetError for what is no engine, ConfigurationError for values that
    cannot be. After Ecto's ``Sandbox.checkout``.
    """
    if isolation != "savepoint":
        raise ConfigurationError(
            f"isolation={isolation!r} is not known; this version has 'savepoint'."
        )
    options = Options.checked(
        isolation_level=isolation_level,
        late_isolation=late_isolation,
        nest_after=nest_after,
        busy_after=busy_after,
        lock_timeout=lock_timeout,
    )
    database, name = _claim(target)
    return checkout_database(database, name, shared=shared, options=options, owner=owner)


def checkout_database(
    database: Hashable,
    name: str,
    *,
    shared: bool = False,
    options: Options | None = None,
    owner: Owner | None = None,
) -> Sandbox:
    """Check out a database that is watched already, whatever engines it will have."""
    holder = owner
    if holder is None:
        holder = current_owner()
        if holder is None or holder.ended:
            holder = Owner()
    sandbox = Sandbox(holder, database, name, options)
    _registry.checkout(holder, database, sandbox)
    if shared:
        try:
            _registry.set_mode(database, Shared(holder))
        except SandboxError:
            _registry.checkin(holder, database)
            raise
    if owner is None:
        set_owner(holder)
    return sandbox


def checkin(target: object = None) -> None:
    """Roll back and release the caller's sandbox of the target; no target: all that it owns.

    Only the owner may: NotOwnerError for those who were allowed, NotFoundError where nothing is
    checked out. A ``Sandbox`` as target is checked in whoever calls. Raises SandboxEscapeError,
    after releasing everything, if somebody ended the outer transaction behind our back. Inside
    the event loop of an asyncpg engine use :func:`acheckin`.
    """
    taken: list[tuple[Hashable, Sandbox]]
    if isinstance(target, Sandbox):
        if target.closed:
            raise NotFoundError(f"{target!r} was checked in already.")
        owner, taken = target.owner, [(target.database, target)]
    elif target is None:
        current = current_owner()
        taken = _registry.holdings(current) if current is not None else []
        if current is None or not taken:
            raise NotFoundError(f"{Caller()} has nothing checked out.")
        owner = current
    else:
        database, _ = _claim(target)
        owner = _registry.require_own(database)
        taken = [held for held in _registry.holdings(owner) if held[0] == database]
    for _, sandbox in taken:
        sandbox.check_closable()
    escapes: list[str] = []
    for database, sandbox in taken:
        _registry.checkin(owner, database)
        escapes += sandbox.close()
    if owner.ended and current_owner() is owner:
        set_owner(None)
    if escapes:
        raise SandboxEscapeError(
            f"The transaction that contained {owner.label} was ended by {'; '.join(escapes)}."
            f" What the test wrote may be in the database for good. Let the driver or the ORM"
            f" commit instead (connection.commit()); its commits are contained."
        )


async def acheckin(target: object = None) -> None:
    """As :func:`checkin`, from inside an event loop: waits without blocking it.

    Cancelled, it ends what it has begun before it lets the cancellation through.
    """
    from sqlalchemy.util.concurrency import greenlet_spawn

    from sandbox.adapters.sqlalchemy.io import uninterrupted

    await uninterrupted(greenlet_spawn(checkin, target))


class sandboxed:  # noqa: N801 - used as a function
    """``with sandboxed(engine):`` or ``async with``: checkout, and checkin whatever happens.

    Takes the options of :func:`checkout`. Targets may be several; one sandbox each, the first
    one is returned.
    """

    def __init__(self, *targets: object, **options: Any) -> None:
        if not targets:
            raise UnsupportedTargetError("sandboxed() needs an engine.")
        self._targets = targets
        self._options = options
        self._sandboxes: list[Sandbox] = []

    def __enter__(self) -> Sandbox:
        try:
            for target in self._targets:
                self._sandboxes.append(checkout(target, **self._options))
        except BaseException:
            for sandbox in self._sandboxes:
                checkin(sandbox)
            raise
        return self._sandboxes[0]

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.ExitStack() as stack:
            for sandbox in self._sandboxes:
                stack.callback(checkin, sandbox)

    async def __aenter__(self) -> Sandbox:
        return self.__enter__()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        async with contextlib.AsyncExitStack() as stack:
            for sandbox in self._sandboxes:
                stack.push_async_callback(acheckin, sandbox)


def allow(
    owner: object, child: object, *, target: object = None, unallow_existing: bool = False
) -> None:
    """Let ``child`` use the owner's sandboxes until the owner checks in.

    ``owner``: a Sandbox, an Owner, or a thread or task that owns or was itself allowed (the
    allowance is then tied to the original owner). ``child``: a thread or task, before or after
    it starts; a thread-name pattern (``"celery-*"``); or a predicate without arguments, called
    in the asking thread at each look-up. ``target`` limits it to one database.

    Raises NotFoundError if the owner has nothing, AlreadyOwnerError if another owner allowed the
    child (``unallow_existing=True`` moves it). After Ecto's ``Sandbox.allow``.
    """
    database = _claim(target)[0] if target is not None else None
    _registry.allow(_registry.owner_of(owner), child, database, unallow_existing=unallow_existing)


def unallow(child: object, *, target: object = None) -> None:
    """Take an allowance back; NotFoundError if there is none."""
    database = _claim(target)[0] if target is not None else None
    _registry.unallow(child, database)


def mode(target: object, mode: str | Shared) -> None:
    """Say what happens to callers who neither own nor were allowed the target's database.

    Until it is called they pass through to the real database while nobody has it checked out,
    and are refused with OwnershipError while somebody has. ``"auto"``: they always pass through.
    ``"manual"``: they are always refused. ``Shared(owner)``: they use that owner's sandbox until
    it checks in, then the mode before returns; AlreadySharedError names who shares already.
    """
    database, _ = _claim(target)
    set_mode(database, mode)


def set_mode(database: Hashable, mode: str | Shared) -> None:
    """As :func:`mode`, of a database that is watched already."""
    if isinstance(mode, Shared):
        owner = getattr(mode.owner, "owner", mode.owner)
        _registry.set_mode(database, Shared(owner))
        return
    try:
        _registry.set_mode(database, Mode(mode))
    except ValueError:
        raise ConfigurationError(
            f"mode {mode!r} is not known: use 'auto', 'manual' or sandbox.Shared(owner)."
        ) from None


def get_conn(target: object) -> Any:
    """Return a virtual connection to the caller's sandbox, owned, allowed or shared; else None.

    It is a PEP 249 connection of the engine's driver, the caller's to close; for an asynchronous
    engine it is the synchronous face that SQLAlchemy gives the driver, for ``greenlet_spawn``.
    After kura_sandbox's ``get_conn``.
    """
    database, _ = _claim(target)
    try:
        if _registry.find(database) is PASS_THROUGH:
            return None
    except OwnershipError:
        return None
    adapter = _installed()
    engine = adapter.engine(target)
    assert engine is not None
    return adapter.virtual(engine)


def watch(url: str) -> tuple[Hashable, str]:
    """Cover every engine that connects to the database of this URL, made already or yet to be."""
    return _installed().watch(url)


def disconnect(database: Hashable) -> None:
    """Close the real connections to a watched database that nobody is using at this moment.

    Engines go on: their connections are virtual. Not from inside a running event loop.
    """
    with _lock:
        if _adapter is not None:
            _adapter.disconnect(database)


def _installed() -> SQLAlchemyAdapter:
    global _adapter
    with _lock:
        if _adapter is None:
            try:
                from sandbox.adapters.sqlalchemy import SQLAlchemyAdapter
            except ImportError as error:
                raise ConfigurationError(
                    f"SQLAlchemy cannot be imported ({error})."
                    f' Install it: pip install "sandbox-orm[sqlalchemy]"'
                ) from error
            _adapter = SQLAlchemyAdapter(_registry)
        _adapter.install()
        return _adapter


def _claim(target: object) -> tuple[Hashable, str]:
    adapter = _installed()
    engine = adapter.engine(target)
    if engine is None:
        raise UnsupportedTargetError(
            f"{target!r} ({type(target).__name__}) cannot be sandboxed: an Engine or an"
            f" AsyncEngine of SQLAlchemy is needed. For a Session pass session.get_bind(), for a"
            f" Connection connection.engine, for a URL create_engine(url)."
        )
    return adapter.claim(engine)

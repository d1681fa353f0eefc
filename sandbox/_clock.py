"""``sandbox.clock``: the time of a sandbox's database, for a part of a test."""

from __future__ import annotations

import datetime as dt
import threading
import weakref
from typing import TYPE_CHECKING, Self

from sandbox import _api
from sandbox.connection.sandbox import Sandbox
from sandbox.core.clock import Clock, refuse_unless_follows
from sandbox.core.owner import Caller
from sandbox.core.ownership import PASS_THROUGH
from sandbox.errors import ConfigurationError, NotFoundError, OwnershipError

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ("clock",)

_lock = threading.Lock()
_set: weakref.WeakKeyDictionary[Sandbox, list[Clock]] = weakref.WeakKeyDictionary()
"""The clocks of each sandbox, in the order in which they were set."""

_TITLES = {"sqlite": "SQLite", "mysql": "MySQL", "mariadb": "MariaDB"}


class clock:  # noqa: N801 - used as a function
    """``with sandbox.clock(at):`` or ``async with``: what ``now()`` says in the caller's sandboxes.

    Every application transaction that begins in the block has this time, and those that are open
    have it from their next statement on, until the block ends. ``at`` is an aware datetime: the
    time at which the clock stands or, with ``moving``, from which it goes on as real time does.
    Left out, the database follows Python's clock as the application sees it: that of freezegun or
    time-machine where they are active, asked again when each transaction begins.

    For all sandboxes that the caller owns or uses, or only that of ``target``. Blocks may be
    nested; the innermost counts. May be entered in any thread or task, and costs no round trip.

    Raises ConfigurationError for an ``at`` that cannot be, NotFoundError where the caller has no
    sandbox, UnsupportedInSandboxError where the database's ``now()`` cannot follow; that may be
    known only when the sandbox has a connection, at its first statement.
    """

    def __init__(
        self, at: dt.datetime | None = None, *, moving: bool = False, target: object = None
    ) -> None:
        self._at = _checked(at, moving=moving)
        self._moving = moving
        self._target = target
        self._entered: list[tuple[list[Sandbox], Clock]] = []

    def __enter__(self) -> Self:
        sandboxes = _sandboxes(self._target)
        for sandbox in sandboxes:
            _check_follows(sandbox)
        new = self._clock()
        with _lock:
            for sandbox in sandboxes:
                clocks = _set.setdefault(sandbox, [])
                clocks.append(new)
                sandbox.clock = new
        self._entered.append((sandboxes, new))
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        sandboxes, old = self._entered.pop()
        with _lock:
            for sandbox in sandboxes:
                # Blocks of several threads or tasks may end in another order than they began.
                clocks = _set[sandbox]
                clocks.remove(old)
                sandbox.clock = clocks[-1] if clocks else None

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(exc_type, exc, traceback)

    def _clock(self) -> Clock:
        if self._at is None:
            return Clock.following()
        return Clock.moving(self._at) if self._moving else Clock.fixed(self._at)


def _checked(at: object, *, moving: bool) -> dt.datetime | None:
    if at is None:
        if moving:
            raise ConfigurationError(
                "sandbox.clock(moving=True) needs to be told from when: give `at` too. Without"
                " `at` the database follows Python's clock, which may move by itself."
            )
        return None
    if not isinstance(at, dt.datetime):
        raise ConfigurationError(
            f"sandbox.clock(at={at!r}): a datetime with a time zone is needed, for example"
            f" datetime(2024, 5, 6, tzinfo=UTC)."
        )
    if at.utcoffset() is None:
        raise ConfigurationError(
            f"sandbox.clock(at={at!r}): this datetime has no time zone, so that it is another"
            f" moment on every machine, while now() is one moment for all. Write"
            f" at.replace(tzinfo=UTC), or the zone that is meant."
        )
    try:
        at.astimezone(dt.UTC)
    except OverflowError:
        raise ConfigurationError(
            f"sandbox.clock(at={at!r}): in UTC this lies beyond what a datetime can hold."
        ) from None
    return at


def _sandboxes(target: object) -> list[Sandbox]:
    """Those of the caller, of every database or of the target's."""
    registry = _api._registry
    if isinstance(target, Sandbox):
        if target.closed:
            raise NotFoundError(f"{target!r} was checked in already.")
        return [target]
    if target is not None:
        found = registry.find(_api._claim(target)[0])
        if found is PASS_THROUGH:
            raise NotFoundError(_nothing())
        return [found]
    used: list[Sandbox] = []
    for database in {held.database for held in registry.held()}:
        try:
            found = registry.find(database)
        except OwnershipError:
            continue
        if found is not PASS_THROUGH:
            used.append(found)
    if not used:
        raise NotFoundError(_nothing())
    return used


def _nothing() -> str:
    return (
        f"sandbox.clock() sets the time of a sandbox's database, and {Caller()} has no sandbox."
        f" Check out first: sandbox.checkout(target), or under pytest the fixture `sandboxed`."
    )


def _check_follows(sandbox: Sandbox) -> None:
    """Raise UnsupportedInSandboxError where it is known that the database cannot follow."""
    dialect = sandbox.database[0] if isinstance(sandbox.database, tuple) else None
    title = _TITLES.get(str(dialect), "PostgreSQL")
    known = False if title != "PostgreSQL" else sandbox.follows_clock()
    if known is not None:
        refuse_unless_follows(known, title, sandbox.name)

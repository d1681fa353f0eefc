"""What time it is in a sandbox's database.

In production each transaction has a ``now()`` of its own. In a sandbox all of them lie in one real
transaction, so that the time of each is handed to the server in a setting
(:data:`sandbox.core.settings.NOW`), which the database's ``now()`` reads: see
:mod:`sandbox.databases.clock`, which installs that function.

Pure: a clock reads Python's time and nothing else. Callable from any thread or task.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import sys
import time
import warnings
import weakref
from typing import TYPE_CHECKING, Final, Protocol

from sandbox.core.settings import NOW
from sandbox.errors import ClockWarning, UnsupportedInSandboxError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = (
    "FACT_SQL",
    "REAL",
    "SCHEMA",
    "SHADOW_SQL",
    "Clock",
    "refuse_unless_follows",
    "warn_unfollowed",
)

SCHEMA: Final = "sandbox_clock"
"""Where the functions lie that stand before those of ``pg_catalog``."""

FACT_SQL: Final = (
    f"SELECT coalesce((SELECT pg_catalog.strpos(prosrc, '{NOW}') > 0 FROM pg_catalog.pg_proc"
    " WHERE oid = pg_catalog.to_regprocedure('now()')), false) AS clock"
)
"""Whether ``now()``, as this connection would find it, follows: one row, one boolean.

A question of the catalog that any role may ask; can stand as a subquery of another.
"""

_HAS = r"'(^|,)\s*\"?{}\"?\s*(,|$)'"
SHADOW_SQL: Final = (
    "SELECT pg_catalog.set_config('search_path', CASE"
    f" WHEN path ~ {_HAS.format('pg_catalog')}"
    r""" THEN pg_catalog.regexp_replace(path, '(^|,)(\s*"?pg_catalog"?\s*(,|$))',"""
    rf" '\1 {SCHEMA},\2')"
    f" ELSE path || ', {SCHEMA}, pg_catalog' END, false)"
    " FROM (SELECT pg_catalog.current_setting('search_path') AS path) AS setting"
    f" WHERE pg_catalog.to_regprocedure('{SCHEMA}.now()') IS NOT NULL"
    f" AND pg_catalog.current_schema() <> 'pg_catalog' AND path !~ {_HAS.format(SCHEMA)}"
)
"""Put the schema of the shadow behind the user's own, for the rest of the connection.

Does nothing where the database has none, where it is in the path already, and where CREATE TABLE
would have no schema to go to, since it would then go to this one.
"""

_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


class Clock:
    """Tells an application transaction that begins now what time it begins at.

    Immutable: to change a sandbox's time is to give it another clock. ``description`` is for
    messages.
    """

    __slots__ = ("_tell", "description")

    def __init__(self, description: str, tell: Callable[[], str]) -> None:
        self.description = description
        self._tell = tell

    def reading(self) -> str:
        """The time as the text of a ``timestamptz``: ``2024-05-06 07:08:09.123456+00``.

        It has the same meaning under every ``DateStyle`` and ``TimeZone``.
        """
        return self._tell()

    @classmethod
    def fixed(cls, at: dt.datetime) -> Clock:
        """A clock that stands still at an aware datetime."""
        text = _text(at.astimezone(dt.UTC))
        return cls(f"fixed at {text}", lambda: text)

    @classmethod
    def moving(cls, at: dt.datetime) -> Clock:
        """A clock that goes on from an aware datetime, which is now, as real time does."""
        began, since = _real(), at.astimezone(dt.UTC)
        return cls(f"moving from {_text(since)}", lambda: _text(since + (_real() - began)))

    @classmethod
    def following(cls) -> Clock:
        """Python's clock as the application sees it, whoever has frozen or moved that."""
        return cls("following Python's clock", lambda: _text(dt.datetime.now(dt.UTC)))

    def __repr__(self) -> str:
        return f"<Clock {self.description}>"


def _text(at: dt.datetime) -> str:
    return f"{at.isoformat(' ', 'microseconds')[:26]}+00"


def _real() -> dt.datetime:
    return _EPOCH + dt.timedelta(microseconds=_real_ns() // 1000)


def _real_ns() -> int:
    """Nanoseconds of real time, also while it is frozen: production's server would not stop.

    Asked at each call, and of modules that somebody else has imported: a name that is bound
    here would itself be exchanged by freezegun.
    """
    hatch = getattr(sys.modules.get("time_machine"), "escape_hatch", None)
    if hatch is not None and hatch.is_travelling():
        with contextlib.suppress(ValueError):  # another thread has just come back
            return int(hatch.time.time_ns())
    real = getattr(sys.modules.get("freezegun.api"), "real_time_ns", None)
    return int(real()) if real is not None else time.time_ns()


REAL: Final = Clock("real time", lambda: _text(_real()))
"""The clock of a sandbox that was given no other."""


# -- where a clock cannot be followed --------------------------------------------------------------


class _Labelled(Protocol):
    """A sandbox."""

    @property
    def label(self) -> str:
        """Whose it is."""


_warned: weakref.WeakSet[_Labelled] = weakref.WeakSet()


def refuse_unless_follows(follows: bool, title: str, name: str) -> None:
    """Raise UnsupportedInSandboxError if the database's ``now()`` cannot be given another time.

    ``title`` is the kind of database, ``name`` the database as messages name it.
    """
    if follows:
        return
    if title != "PostgreSQL":
        raise UnsupportedInSandboxError(
            f"sandbox.clock() cannot set the time of {name}: the functions that {title} has for"
            f" the time read the machine's clock, and cannot be replaced. Let the application give"
            f" the time as a parameter, or use a PostgreSQL database for this test."
        )
    raise UnsupportedInSandboxError(
        f"sandbox.clock() cannot set the time of {name}: its now() does not follow, because that"
        f" database was not made by sandbox, or with sandbox_clock = off. Let the run make its own"
        f" (leave sandbox_url out), or set sandbox_clock = replace (needs a superuser) or"
        f" sandbox_clock = shadow for this one."
    )


def warn_unfollowed(sandbox: _Labelled, where: str, text: str) -> None:
    """Say, once for each sandbox, that a statement reads a clock that no setting reaches.

    For statements with CURRENT_TIMESTAMP, CURRENT_DATE, LOCALTIMESTAMP and so on, while the
    sandbox has a clock of its own. Called before the statement is sent: the warning may be an
    error.
    """
    if sandbox in _warned:
        return
    _warned.add(sandbox)
    shown = " ".join(text.split())
    warnings.warn(
        f"{where or sandbox.label} reads the server's own clock while sandbox.clock() sets another"
        f" time: CURRENT_TIMESTAMP, CURRENT_DATE, LOCALTIMESTAMP and the like are no functions and"
        f" cannot follow. Write now() (now()::date, now()::timestamp). The statement:"
        f" {shown if len(shown) <= 200 else f'{shown[:200]}…'}"
        f" See docs/reference/errors.md#clockwarning",
        ClockWarning,
        stacklevel=2,
    )

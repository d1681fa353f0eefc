"""Cases that pass plain and do not pass sandboxed, each with its reason.

Strict: a case that is listed and passes, or fails in other words than listed, is an error too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ("EXCEPTIONS", "Excuse")


@dataclass(frozen=True, slots=True)
class Excuse:
    """One case of some drivers."""

    case: str
    """``Class::test[parameters]``, in full."""
    drivers: frozenset[str]
    error: str
    """What its failure says."""
    reason: str


_POSTGRESQL: Final = frozenset({"psycopg", "psycopg2", "psycopg_async", "asyncpg"})
_LATE: Final = (
    "asks for a stronger isolation level than the transaction has that contains the sandbox:"
    " refused, with the remedy"
)

EXCEPTIONS: Final = (
    Excuse("IsolationLevelTest::test_all_levels", _POSTGRESQL, "UnsupportedInSandboxError", _LATE),
    Excuse(
        "IsolationLevelTest::test_non_default_isolation_level",
        _POSTGRESQL,
        "UnsupportedInSandboxError",
        _LATE,
    ),
    Excuse(
        "JSONTest::test_round_trip_custom_json",
        frozenset({"asyncpg"}),
        "canceling statement due to lock timeout",
        "asyncpg keeps JSON functions on its connection: an engine that has others has a real"
        " connection of its own, and waits for the first one's table",
    ),
)

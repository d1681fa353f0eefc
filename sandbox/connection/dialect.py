"""What differs between databases, as far as a sandbox has to know."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sandbox.core.statements import Kind

if TYPE_CHECKING:
    from sandbox.core.statements import Statement

__all__ = ("LEVELS", "POSTGRESQL", "SQLITE", "Dialect", "weaker")

LEVELS: Final = ("READ UNCOMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")

_SQLITE_BEGINS = re.compile(r"\s*(insert|update|delete|replace)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Dialect:
    """One family of databases."""

    name: str
    title: str
    aborts_on_error: bool
    """A failing statement makes the server refuse all others until a rollback."""
    has_isolation_levels: bool

    def begins_transaction(self, statement: Statement) -> bool:
        """Whether the driver would begin a transaction for this statement by itself.

        PEP 249 drivers do so for any. The sqlite3 module does it for INSERT, UPDATE, DELETE and
        REPLACE only ("Transaction control via the isolation_level attribute").
        """
        if self is SQLITE:
            return _SQLITE_BEGINS.match(statement.text) is not None
        return statement.kind is not Kind.EMPTY


POSTGRESQL: Final = Dialect("postgresql", "PostgreSQL", True, True)
SQLITE: Final = Dialect("sqlite", "SQLite", False, False)


def weaker(level: str | None, than: str | None) -> bool:
    """Whether transactions that expect level ``than`` get less from ``level``.

    None is the server's default, taken as READ COMMITTED.
    """
    return LEVELS.index(level or "READ COMMITTED") < LEVELS.index(than or "READ COMMITTED")

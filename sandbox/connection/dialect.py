"""What differs between databases, as far as a sandbox has to know."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sandbox.core import mysql, statements
from sandbox.core.statements import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.core.statements import Statement

__all__ = ("LEVELS", "MYSQL", "POSTGRESQL", "SQLITE", "Dialect", "weaker")

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
    has_effects: bool = False
    """Its COMMIT ends more than the transaction's work: see :mod:`sandbox.core.effects`."""
    default_isolation: str = "READ COMMITTED"
    """Of a transaction that asks for none."""
    classify: Callable[[str], Statement] = statements.classify
    split: Callable[[str], tuple[Statement, ...]] = statements.split

    def begins_transaction(self, statement: Statement) -> bool:
        """Whether the driver would begin a transaction for this statement by itself.

        PEP 249 drivers do so for any. The sqlite3 module does it for INSERT, UPDATE, DELETE and
        REPLACE only ("Transaction control via the isolation_level attribute").
        """
        if self is SQLITE:
            return _SQLITE_BEGINS.match(statement.text) is not None
        if self is MYSQL and statement.kind is Kind.SETTING:
            return False
        return statement.kind is not Kind.EMPTY


POSTGRESQL: Final = Dialect("postgresql", "PostgreSQL", True, True, has_effects=True)
SQLITE: Final = Dialect("sqlite", "SQLite", False, False)
MYSQL: Final = Dialect(
    "mysql",
    "MySQL or MariaDB",
    False,
    True,
    default_isolation="REPEATABLE READ",
    classify=mysql.classify,
    split=mysql.split,
)


def weaker(level: str | None, than: str | None, default: str = "READ COMMITTED") -> bool:
    """Whether transactions that expect level ``than`` get less from ``level``.

    None is the server's default.
    """
    given, asked = level or default, than or default
    if {given, asked} == {"READ UNCOMMITTED", "READ COMMITTED"}:
        # PostgreSQL has no difference between them (manual, 13.2 "Transaction Isolation").
        return given == "READ UNCOMMITTED" and default != "READ COMMITTED"
    return LEVELS.index(given) < LEVELS.index(asked)

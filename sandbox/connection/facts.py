"""What a sandbox has to know of a database's schema, asked once for each real connection."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sandbox.core.clock import FACT_SQL

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ("QUERY", "SESSION_SETTINGS", "Facts", "qualified", "schema_changed", "schema_version")

QUERY: Final = f"""
SELECT 'constraint', n.nspname::text, c.conname::text, c.condeferred::text
FROM pg_catalog.pg_constraint c JOIN pg_catalog.pg_namespace n ON n.oid = c.connamespace
WHERE c.condeferrable
UNION ALL
SELECT 'clock', '', '', ''
WHERE ({FACT_SQL})
UNION ALL
SELECT 'patient', '', '', '' WHERE pg_catalog.current_setting('lock_timeout') = '0'
""".strip()

SESSION_SETTINGS: Final = """
SELECT name, setting, coalesce(reset_val, '') FROM pg_catalog.pg_settings
WHERE source = 'session' AND name <> 'client_encoding' AND name NOT LIKE 'transaction%'
""".strip()
"""What was SET on a connection, and what would be there without. Not those that an extension or
the application has invented: the server lists them nowhere."""

_versions = itertools.count(1)
_version = next(_versions)


def schema_version() -> int:
    """A number that is another one after each change of a schema that this process has seen."""
    return _version


def schema_changed() -> None:
    """Somebody has changed a schema for real; any thread may call it."""
    global _version
    _version = next(_versions)


@dataclass(frozen=True, slots=True)
class Facts:
    """About one database."""

    version: int = 0
    waiting: tuple[str, ...] = ()
    """Constraints and triggers that wait for the commit by themselves, as SQL names them."""
    immediate: tuple[str, ...] = ()
    """Those that do so only when they are told to."""
    clock: bool = False
    """Its now() can be set."""
    patient: bool = False
    """Statements wait for ever for a lock, unless they are told otherwise."""

    @classmethod
    def read(cls, rows: Sequence[Sequence[str]], version: int) -> Facts:
        """From the answer to QUERY."""
        waiting: list[str] = []
        immediate: list[str] = []
        for what, schema, name, deferred in rows:
            if what == "constraint":
                some = waiting if deferred == "true" else immediate
                some.append(qualified(schema, name))
        also = {what for what, *_ in rows}
        return cls(version, tuple(waiting), tuple(immediate), "clock" in also, "patient" in also)

    def check(self, postponed: frozenset[str] = frozenset()) -> list[str]:
        """What checks those that wait, but for some, and makes all wait again that did at first."""
        if not postponed:
            return ["SET CONSTRAINTS ALL IMMEDIATE", *self._as_at_first(postponed)]
        names = [name for name in self.waiting + self.immediate if name not in postponed]
        return [*_immediate(names), *self._as_at_first(postponed)]

    def check_only(self, names: frozenset[str]) -> list[str]:
        """What checks just these."""
        others = frozenset(self.waiting + self.immediate) - names
        return [*_immediate(sorted(names)), *self._as_at_first(others)]

    def _as_at_first(self, postponed: frozenset[str]) -> list[str]:
        if not self.waiting:
            return []
        # By name only the immediate ones: a name may be that of another table's constraint as
        # well, which cannot be deferred, and only IMMEDIATE does not mind.
        names = [name for name in self.immediate if name not in postponed]
        return ["SET CONSTRAINTS ALL DEFERRED", *_immediate(names)]


def _immediate(names: Sequence[str]) -> list[str]:
    return [f"SET CONSTRAINTS {', '.join(names)} IMMEDIATE"] if names else []


def qualified(schema: str, name: str) -> str:
    """As SQL names it."""
    return f"{_quoted(schema)}.{_quoted(name)}"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'

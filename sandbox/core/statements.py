"""What a piece of SQL does to the transaction it runs in.

The text is judged as its server would read it, without asking the server. In doubt the
answer is the one that costs only speed: an unknown statement or function writes.
Pure functions of their argument, callable from any thread or task.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING

from sandbox.core._functions import NOT_FUNCTIONS, PURE_FUNCTIONS, words
from sandbox.core._lexer import SPACE, WORD, condensed, identifier, skeleton, statements
from sandbox.core.effects import Setting, effects_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.core.effects import Effect

__all__ = ("Kind", "Statement", "classify", "split", "together")


class Kind(Enum):
    """What a statement is, as far as a transaction is concerned."""

    READ = "read"
    WRITE = "write"
    BEGIN = "begin"
    COMMIT = "commit"
    ROLLBACK = "rollback"
    SAVEPOINT = "savepoint"
    ROLLBACK_TO = "rollback to"
    RELEASE = "release"
    PREPARE_TRANSACTION = "prepare transaction"
    SET_TRANSACTION = "set transaction"
    SETTING = "setting"
    """SET, SET LOCAL, RESET: changes how the session works, and no data."""
    OUTSIDE = "outside"
    """Refused by its server inside a transaction block: VACUUM, CREATE DATABASE…"""
    EMPTY = "empty"
    """Nothing but white space, comments and semicolons."""

    # Members are singletons; Enum's own hash is a Python function, and this one is asked often.
    __hash__ = object.__hash__


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement, or several of one text (``many``), and what it asks for."""

    kind: Kind
    text: str
    """The piece itself, with its comments, without outer white space and semicolon."""
    name: str | None = None
    """Of a savepoint as PostgreSQL stores it, or the gid of PREPARE TRANSACTION."""
    ddl: bool = False
    """Changes the schema or its privileges (TRUNCATE counts: it locks as such)."""
    chain: bool = False
    """COMMIT AND CHAIN, ROLLBACK AND CHAIN."""
    isolation: str | None = None
    """The level it asks for, in upper case with single spaces."""
    read_only: bool | None = None
    """READ ONLY (true) or READ WRITE (false), where it says so."""
    many: bool = False
    """The text holds several statements; ``kind`` is the most dangerous one's."""
    effects: tuple[Effect, ...] = ()
    """What it starts that only a COMMIT ends, in the order of the text."""
    timed: bool = True
    """It may ask what time it is: in its text, or in a default or a trigger."""


# Most dangerous first. A text that sets locally and writes counts as a write.
_STRENGTH = {
    kind: rank
    for rank, kind in enumerate(
        (
            Kind.PREPARE_TRANSACTION,
            Kind.COMMIT,
            Kind.ROLLBACK,
            Kind.BEGIN,
            Kind.ROLLBACK_TO,
            Kind.RELEASE,
            Kind.SAVEPOINT,
            Kind.SET_TRANSACTION,
            Kind.OUTSIDE,
            Kind.WRITE,
            Kind.SETTING,
            Kind.READ,
            Kind.EMPTY,
        )
    )
}

_CACHED_TEXTS = 4096
# Longer texts are mostly data (bulk inserts) and would fill the memory.
_CACHED_LENGTH = 16_384


def classify(sql: str) -> Statement:
    """Judge one text. Of several statements the most dangerous one decides (``many``).

    Never raises: what cannot be understood is a write. Remembers what it has judged.
    """
    return _remembered(sql) if len(sql) <= _CACHED_LENGTH else _classify(sql)


def split(sql: str) -> tuple[Statement, ...]:
    """Judge each statement of a text; pieces of only blanks and comments are left out."""
    return tuple(_one(piece, shape) for piece, shape in statements(sql))


def _classify(sql: str) -> Statement:
    if ";" not in sql:
        return _one(sql)
    return together(sql, split(sql))


def together(sql: str, pieces: tuple[Statement, ...]) -> Statement:
    """A text of these statements, judged as one."""
    if len(pieces) == 1:
        return pieces[0]
    if not pieces:
        return Statement(Kind.EMPTY, sql.strip(SPACE))
    return Statement(
        min((piece.kind for piece in pieces), key=_STRENGTH.__getitem__),
        sql.strip(SPACE),
        ddl=any(piece.ddl for piece in pieces),
        chain=any(piece.chain for piece in pieces),
        many=True,
        effects=tuple(effect for piece in pieces for effect in piece.effects),
        timed=any(piece.timed for piece in pieces),
    )


_remembered = lru_cache(maxsize=_CACHED_TEXTS)(_classify)


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text, re.ASCII)


_head = _pattern(rf"[\s(]*({WORD}*)")


def _one(sql: str, shape: str | None = None) -> Statement:
    statement = _judge(sql, shape)
    # In a text that is mostly data nobody looks for them.
    effects = effects_of(sql, shape) if len(sql) <= _CACHED_LENGTH else ()
    return replace(statement, effects=effects) if effects else statement


def _judge(sql: str, shape: str | None) -> Statement:
    text = sql.strip(SPACE)
    if shape is None and ("--" in sql or "/*" in sql):
        shape = skeleton(sql)
    found = _head.match(shape if shape is not None else sql)
    head = found[1].upper() if found else ""
    if head in _WRITES:
        return Statement(Kind.WRITE, text, ddl=head in _DDL)
    if head in _QUERIES:
        known = shape if shape is not None else condensed(sql)
        if _only_reads(known):
            return Statement(Kind.READ, text, timed=_clock.search(known) is not None)
        return Statement(Kind.WRITE, text)
    if judge := _JUDGES.get(head):
        return judge(_Piece(sql, shape if shape is not None else skeleton(sql), text))
    if not head and not (shape if shape is not None else sql).strip(SPACE):
        return Statement(Kind.EMPTY, text)
    return Statement(_SIMPLE.get(head, Kind.WRITE), text, ddl=head in _DDL)


@dataclass(slots=True)
class _Piece:
    sql: str
    shape: str
    text: str

    def starts(self, pattern: re.Pattern[str]) -> bool:
        return pattern.match(self.shape) is not None

    def has(self, pattern: re.Pattern[str]) -> bool:
        return pattern.search(self.shape) is not None

    def name(self, pattern: re.Pattern[str]) -> str | None:
        """The name that the pattern's first group stands on."""
        found = pattern.match(self.shape)
        return identifier(self.sql[slice(*found.span(1))]) if found else None


# --- queries ---------------------------------------------------------------------------

# ``t.update``, ``:update``, ``%(update)s`` are names; the word alone is not.
_MODIFYING = tuple(
    (word, _pattern(rf"{word}(?<!{WORD}{word})(?<![.:@]{word})(?<!%\({word})(?!{WORD})"))
    for word in ("INSERT", "UPDATE", "DELETE", "MERGE")
)
# A digit may touch the key word before it: ``SELECT 1INTO t`` was legal up to PostgreSQL 14.
_into = _pattern(rf"INTO(?<![A-Za-z_$\x80-\U0010ffff]INTO)(?!{WORD})")
_share = _pattern(rf"(?:FOR|KEY|IN)\s+SHARE(?!{WORD})")

# Read backwards, from the parenthesis to the name before it: forwards every word of the
# text would have to be tried.
_called = _pattern(rf'\(\s*((?:{WORD}|")+(?:\s*\.\s*(?:{WORD}|")+)*)')
# Looks like a call and cannot be one: ``AS alias(…)``, ``WITH cte(…)``, ``, cte(…) AS (SELECT``.
_list_of_columns = _pattern(
    rf"\bAS\s+{WORD}++\s*\("
    rf"|\bWITH\s+(?:RECURSIVE\s+)?(?:{WORD}++|\"_*\")\s*\("
    rf"|(?<!{WORD})(?:{WORD}++|\"_*\")\s*+(?=\([^()]*\)\s*AS\s*(?:(?:NOT\s+)?MATERIALIZED\s*)?"
    r"\(\s*(?:SELECT|WITH)\b)"
)
_PURE = frozenset(
    name[::-1]
    for name in NOT_FUNCTIONS
    | PURE_FUNCTIONS
    | {f"PG_CATALOG.{function}" for function in PURE_FUNCTIONS}
)


_clock = _pattern(r"\bNOW\b|TRANSACTION_TIMESTAMP|CURRENT_SETTING")


def _only_reads(shape: str) -> bool:
    if "INTO" in shape and _into.search(shape):
        return False
    for word, pattern in _MODIFYING:
        if word in shape and pattern.search(shape):
            return False
    if "SHARE" in shape and _share.search(shape):
        return False
    if "(" not in shape or _PURE.issuperset(_called.findall(shape[::-1])):
        return True
    known = _list_of_columns.sub("(", shape)
    return _PURE.issuperset(_called.findall(known[::-1]))


_copies_out = _pattern(
    rf'COPY\s+(?:BINARY\s+)?(?:{WORD}|["._])+\s*(?:\([^()]*\)\s*)?TO\s+(?!PROGRAM\b)'
)
_copies_query = _pattern(r"COPY\s*\(")
_to_program = _pattern(r"\)\s*TO\s+PROGRAM\b")
_analyzes = _pattern(r"\bANALY[ZS]E\b")
_harmless_pragma = _pattern(
    r"PRAGMA\s+(?:(?:\w+|\"_*\")\s*\.\s*)?(?:"
    r"(?:TABLE_X?INFO|TABLE_LIST|INDEX_LIST|INDEX_X?INFO|FOREIGN_KEY_(?:LIST|CHECK)"
    r"|(?:INTEGRITY|QUICK)_CHECK|FUNCTION_LIST|COLLATION_LIST|DATABASE_LIST|MODULE_LIST"
    r"|PRAGMA_LIST|COMPILE_OPTIONS|STATS)\s*\([^=]*"
    r"|(?!OPTIMIZE|INCREMENTAL_VACUUM|WAL_CHECKPOINT|SHRINK_MEMORY)\w+\s*)\Z"
)


def _copy(piece: _Piece) -> Statement:
    shape = piece.shape.lstrip(SPACE)
    if _copies_query.match(shape):
        reads = _only_reads(shape[len("COPY") :]) and not _to_program.search(shape)
    else:
        reads = _copies_out.match(shape) is not None
    return Statement(Kind.READ if reads else Kind.WRITE, piece.text)


def _explain(piece: _Piece) -> Statement:
    return Statement(Kind.WRITE if piece.has(_analyzes) else Kind.READ, piece.text)


def _pragma(piece: _Piece) -> Statement:
    harmless = _harmless_pragma.match(piece.shape.strip(SPACE))
    # It belongs to the connection and no rollback undoes it.
    return Statement(Kind.READ if harmless else Kind.WRITE, piece.text, ddl=not harmless)


# --- transaction control ---------------------------------------------------------------

_NAME = rf"(?:U&)?(\"_*\"|{WORD}+)"
_savepoint = _pattern(rf"\s*SAVEPOINT\s*{_NAME}")
_rollback_to = _pattern(
    rf"\s*ROLLBACK(?:\s+(?:WORK|TRANSACTION))?\s+TO\b\s*(?:SAVEPOINT\b\s*(?=[^\s]))?{_NAME}"
)
_release = _pattern(rf"\s*RELEASE\b\s*(?:SAVEPOINT\b\s*(?=[^\s]))?{_NAME}")
_to = _pattern(r"\s*ROLLBACK(?:\s+(?:WORK|TRANSACTION))?\s+TO\b")
_prepared = _pattern(r"\s*(?:COMMIT|ROLLBACK)\s+PREPARED\b")
_chain = _pattern(r"\bAND\s+CHAIN\b")
_prepare = _pattern(r"\s*PREPARE\s+TRANSACTION\b\s*E?(\"_*\")?")
_isolation = _pattern(
    r"\bISOLATION\s+LEVEL\s+(SERIALIZABLE|REPEATABLE\s+READ|READ\s+(?:UN)?COMMITTED)\b"
)
_access = _pattern(r"\bREAD\s+(ONLY|WRITE)\b")
_starts = _pattern(r"\s*START\s+TRANSACTION\b")
_sets_transaction = _pattern(r"\s*SET\s+(?:(?:SESSION|LOCAL)\s+)?TRANSACTION\b")


def _asked(kind: Kind, piece: _Piece) -> Statement:
    level = _isolation.search(piece.shape)
    access = _access.search(piece.shape)
    return Statement(
        kind,
        piece.text,
        isolation=" ".join(level[1].split()) if level else None,
        read_only=access[1] == "ONLY" if access else None,
    )


def _begin(piece: _Piece) -> Statement:
    return _asked(Kind.BEGIN, piece)


def _start(piece: _Piece) -> Statement:
    return _begin(piece) if piece.starts(_starts) else Statement(Kind.WRITE, piece.text)


def _commit(piece: _Piece) -> Statement:
    if piece.starts(_prepared):
        return Statement(Kind.OUTSIDE, piece.text)
    return Statement(Kind.COMMIT, piece.text, chain=piece.has(_chain))


def _rollback(piece: _Piece) -> Statement:
    if piece.starts(_prepared):
        return Statement(Kind.OUTSIDE, piece.text)
    if piece.starts(_to):
        return Statement(Kind.ROLLBACK_TO, piece.text, name=piece.name(_rollback_to))
    return Statement(Kind.ROLLBACK, piece.text, chain=piece.has(_chain))


def _set_savepoint(piece: _Piece) -> Statement:
    return Statement(Kind.SAVEPOINT, piece.text, name=piece.name(_savepoint))


def _release_savepoint(piece: _Piece) -> Statement:
    return Statement(Kind.RELEASE, piece.text, name=piece.name(_release))


def _prepare_something(piece: _Piece) -> Statement:
    if not (found := _prepare.match(piece.shape)):
        return Statement(Kind.READ, piece.text)
    gid = piece.sql[found.start(1) + 1 : found.end(1) - 1] if found[1] else ""
    return Statement(Kind.PREPARE_TRANSACTION, piece.text, name=gid.replace("''", "'") or None)


def _set(piece: _Piece) -> Statement:
    if piece.starts(_sets_transaction):
        return _asked(Kind.SET_TRANSACTION, piece)
    if any(isinstance(effect, Setting) for effect in effects_of(piece.sql, piece.shape)):
        return Statement(Kind.SETTING, piece.text)
    return _asked(Kind.WRITE, piece)


# --- what no transaction can hold --------------------------------------------------------

_OUTSIDE = {
    "CREATE": r"DATABASE|TABLESPACE|SUBSCRIPTION|(?:UNIQUE\s+)?INDEX\s+CONCURRENTLY",
    "DROP": r"DATABASE|TABLESPACE|SUBSCRIPTION|INDEX\s+CONCURRENTLY",
    "ALTER": (
        r"SYSTEM|DATABASE\s+.*\bSET\s+TABLESPACE|SUBSCRIPTION\s.*\b(?:REFRESH|PUBLICATION)"
        r"|TABLE\b.*\bDETACH\s+PARTITION\b.*\bCONCURRENTLY"
    ),
    "REINDEX": r"(?:\(.*?\)\s*)?(?:DATABASE|SYSTEM|SCHEMA)|.*?\bCONCURRENTLY",
    "CLUSTER": r"(?:VERBOSE|\([^)]*\))?\s*\Z|\Z",
    "DISCARD": r"ALL",
}
_outside = {
    head: re.compile(rf"\s*{head}\b\s*(?:{rest})(?!{WORD})", re.ASCII | re.DOTALL)
    for head, rest in _OUTSIDE.items()
}
_without_slot = _pattern(
    r"\s*CREATE\s+SUBSCRIPTION\b.*\b(?:CONNECT|CREATE_SLOT)\s*=\s*(?:FALSE|OFF|0)\b"
)


def _definition(piece: _Piece) -> Statement:
    shape = piece.shape.strip(SPACE)
    found = _head.match(shape)
    head = found[1] if found else ""
    outside = _outside[head].match(shape) and not _without_slot.match(shape)
    return Statement(Kind.OUTSIDE if outside else Kind.WRITE, piece.text, ddl=head in _DDL)


_DDL = words(
    """
    ALTER CLUSTER COMMENT CREATE DROP GRANT IMPORT REASSIGN REFRESH REINDEX RENAME REVOKE SECURITY
    TRUNCATE
    """
)
# Decided by their first word alone.
_WRITES = words(
    """
    INSERT UPDATE DELETE MERGE REPLACE TRUNCATE GRANT REVOKE COMMENT LOCK CALL DO EXECUTE DECLARE
    LISTEN NOTIFY UNLISTEN REFRESH ANALYZE
    """
)
_QUERIES = words("SELECT WITH VALUES TABLE")
_SIMPLE = {
    "SHOW": Kind.READ,
    "FETCH": Kind.READ,
    "MOVE": Kind.READ,
    "CLOSE": Kind.READ,
    "DEALLOCATE": Kind.READ,
    "DESCRIBE": Kind.READ,
    "DESC": Kind.READ,
    "VACUUM": Kind.OUTSIDE,
    "ATTACH": Kind.OUTSIDE,
    "DETACH": Kind.OUTSIDE,
    "XA": Kind.OUTSIDE,
}
_JUDGES: dict[str, Callable[[_Piece], Statement]] = {
    "BEGIN": _begin,
    "START": _start,
    "COMMIT": _commit,
    "END": _commit,
    "ROLLBACK": _rollback,
    "ABORT": _rollback,
    "SAVEPOINT": _set_savepoint,
    "RELEASE": _release_savepoint,
    "PREPARE": _prepare_something,
    "SET": _set,
    "RESET": _set,
    "COPY": _copy,
    "EXPLAIN": _explain,
    "PRAGMA": _pragma,
    **dict.fromkeys(_OUTSIDE, _definition),
}

"""What a piece of SQL does to the transaction it runs in, on MySQL and MariaDB.

The lexical rules are MySQL's: backslash escapes in both kinds of strings, ``#`` comments, ``--``
comments that need a blank, comments that do not nest, and ``/*! … */``, whose content is executed.
Statements that commit by themselves are :attr:`~sandbox.core.statements.Kind.OUTSIDE`. A server
that runs with ``NO_BACKSLASH_ESCAPES`` or ``ANSI_QUOTES`` reads some texts otherwise; what slips
through here is found by the server's status flag.

Sources: MySQL 8.4 manual, "Comments", "String Literals", "Statements That Cause an Implicit
Commit"; MariaDB documentation, "SQL statements causing an implicit commit". Pure functions of
their argument, callable from any thread or task.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache
from typing import Final

from sandbox.core._functions import words
from sandbox.core._lexer import SPACE, WORD, identifier
from sandbox.core.statements import Kind, Statement, _judge, together

__all__ = ("classify", "skeleton", "split", "why_refused")

_CACHED_TEXTS: Final = 4096
_CACHED_LENGTH: Final = 16_384

# The part that may be closed: a string, a quoted name. Then comments, then quotes left open.
_token = re.compile(
    r"(?P<quoted>'(?:[^'\\]++|\\.|'')*+'|\"(?:[^\"\\]++|\\.|\"\")*+\"|`(?:[^`]++|``)*+`)"
    r"|(?P<line>\#[^\n]*+|--(?=[\x00-\x20\x7f]|\Z)[^\n]*+)"
    r"|(?P<executed>/\*M?!(?:\d{5,6})?)"
    r"|(?P<block>/\*)"
    r"|(?P<close>\*/)"
    r"|(?P<open>['\"`])",
    re.ASCII | re.DOTALL,
)


def skeleton(sql: str) -> str:
    """The text at its own length, upper-cased: comments are blanks, quoted parts ``"___"``.

    Positions in it are positions in ``sql``. Of a comment that is executed only the marks at its
    ends are blanked, whatever version it asks for.
    """
    parts: list[str] = []
    position, executed = 0, 0
    while found := _token.search(sql, position):
        start, end = found.span()
        parts.append(sql[position:start])
        kind = found.lastgroup
        if kind == "quoted":
            parts.append(f'"{"_" * (end - start - 2)}"')
        elif kind == "close" and not executed:
            parts.append("*/")
        else:
            if kind == "executed":
                executed += 1
            elif kind == "close":
                executed -= 1
            elif kind == "open":
                end = len(sql)
            elif kind == "block":
                closed = sql.find("*/", end)
                end = closed + 2 if closed >= 0 else len(sql)
            parts.append(" " * (end - start))
        position = end
    parts.append(sql[position:])
    text = "".join(parts)
    return text.upper() if text.isascii() else _upper(text)


def _upper(text: str) -> str:
    """Key words are ASCII; other letters stay, so that no character changes its width."""
    return re.sub("[a-z]+", lambda found: found[0].upper(), text)


def classify(sql: str) -> Statement:
    """As :func:`sandbox.core.statements.classify`, by MySQL's rules."""
    if len(sql) <= _CACHED_LENGTH:
        return _remembered(sql)
    if _bulk.match(sql) and ";" not in sql and "/*" not in sql and ":=" not in sql:
        # Mostly data, and one statement: its strings need not be read.
        return Statement(Kind.WRITE, sql.strip(SPACE))
    return _classify(sql)


def split(sql: str) -> tuple[Statement, ...]:
    """Judge each statement of a text; pieces of only blanks and comments are left out."""
    return tuple(_one(piece, shape) for piece, shape in _pieces(sql))


def _classify(sql: str) -> Statement:
    return together(sql, split(sql))


_bulk = re.compile(r"\s*(?:INSERT|REPLACE|UPDATE|DELETE)\b", re.IGNORECASE)
_remembered = lru_cache(maxsize=_CACHED_TEXTS)(_classify)


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text, re.ASCII | re.DOTALL)


# Their bodies hold semicolons and reach to the end of the text.
_has_body = _pattern(
    r"\s*(?:CREATE\b(?:(?!\bTABLE\b)[^;])*?\b(?:PROCEDURE|FUNCTION|TRIGGER|EVENT|PACKAGE)\b"
    r"|BEGIN\s+NOT\s+ATOMIC\b|(?:IF|CASE|LOOP|REPEAT|WHILE|FOR)\b)"
)


def _pieces(sql: str) -> list[tuple[str, str]]:
    shape = skeleton(sql)
    pieces: list[tuple[str, str]] = []
    start = 0
    while start < len(shape):
        end = shape.find(";", start)
        if end < 0 or _has_body.match(shape, start):
            end = len(shape)
        if shape[start:end].strip(SPACE):
            pieces.append((sql[start:end], shape[start:end]))
        start = end + 1
    return pieces


_head = _pattern(rf"[\s(]*({WORD}*)")

# --- what commits by itself --------------------------------------------------------------

_COMMITS: Final = words(
    """
    ALTER CREATE DROP GRANT INSTALL RENAME REVOKE TRUNCATE UNINSTALL CACHE CHANGE CHECK FLUSH
    IMPORT OPTIMIZE REPAIR RESET STOP LOCK BACKUP CLONE RESTART SHUTDOWN PURGE
    """
)
_temporary = _pattern(
    r"\s*(?:CREATE\s+(?:OR\s+REPLACE\s+)?TEMPORARY\s+TABLE|DROP\s+TEMPORARY\s+TABLES?)\b"
)
_drops_prepared = _pattern(r"\s*DROP\s+PREPARE\b")
_analyzes_table = _pattern(r"\s*ANALYZE\s+(?:(?:NO_WRITE_TO_BINLOG|LOCAL)\s+)?TABLES?\b")
_loads_index = _pattern(r"\s*LOAD\s+INDEX\b")
_starts_other = _pattern(r"\s*START\s+(?!TRANSACTION\b)")
_hidden = _pattern(
    r"\b(?:COMMIT|ROLLBACK|START\s+TRANSACTION|SAVEPOINT|XA|ALTER|GRANT|REVOKE|RENAME|TRUNCATE"
    r"|LOCK\s+TABLES?|ANALYZE|OPTIMIZE|REPAIR|FLUSH|RESET|AUTOCOMMIT"
    r"|CREATE(?!\s+(?:OR\s+REPLACE\s+)?TEMPORARY\s+TABLE\b)"
    r"|DROP(?!\s+(?:TEMPORARY\s+TABLE|PREPARE)\b))\b"
)
_REASONS: Final = {
    "USE": "changes the database of every connection of the test, which share a real one",
    "XA": "is a transaction of its own, which cannot lie inside another",
    "SET": "changes more than this transaction, and no rollback would change it back",
    "LOCK": "commits the transaction it runs in, and locks others out until the test ends",
}
_WAYS_OUT: Final = (
    (
        _pattern(r"\s*SET\b.*\bAUTOCOMMIT\b"),
        "switches the real connection, which all of the test share",
        "Use the driver's connection.autocommit(…), or the engine's isolation_level='AUTOCOMMIT'.",
    ),
    (
        _pattern(r"\s*SET\b.*\b(?:TX|TRANSACTION)_(?:ISOLATION|READ_ONLY)\b"),
        "sets the isolation level together with something else",
        "Set it alone.",
    ),
)


def why_refused(statement: Statement) -> tuple[str, str]:
    """Why an OUTSIDE statement cannot run in a sandbox, and the way out, as parts of a message."""
    shape = skeleton(statement.text)
    for pattern, why, way_out in _WAYS_OUT:
        if pattern.match(shape):
            return why, way_out
    found = _head.match(shape)
    why = _REASONS.get(found[1] if found else "", "commits the transaction it runs in")
    return why, 'A test that needs it needs a database of its own: isolation="database".'


def _one(sql: str, shape: str) -> Statement:
    found = _head.match(shape)
    head = found[1] if found else ""
    text = sql.strip(SPACE)
    if head == "SET":
        return _set(sql, shape, text)
    if _commits_by_itself(head, shape):
        return Statement(Kind.OUTSIDE, text, ddl=True)
    if _has_body.match(shape):
        kind = Kind.OUTSIDE if _hidden.search(shape) else Kind.WRITE
        return Statement(kind, text, ddl=True)
    if head in _CONTROL:
        return _named(_judge(sql, shape))
    if head in _SESSION or _keeps.search(shape):
        # What it leaves in the session no rollback takes away.
        return Statement(Kind.WRITE, text, ddl=True)
    if head in _OTHERS_CONTROL:
        return Statement(Kind.WRITE, text)
    return replace(_judge(sql, shape), effects=())


def _commits_by_itself(head: str, shape: str) -> bool:
    if head in _COMMITS:
        return not (_temporary.match(shape) or _drops_prepared.match(shape))
    if head in {"USE", "XA", "BINLOG"}:
        return True
    return any(p.match(shape) for p in (_analyzes_table, _loads_index, _starts_other))


# --- transaction control -------------------------------------------------------------------

_CONTROL: Final = words("BEGIN START COMMIT ROLLBACK SAVEPOINT RELEASE")
# PostgreSQL's and SQLite's; here they are syntax errors, or mean something else.
_OTHERS_CONTROL: Final = words("END ABORT VACUUM ATTACH DETACH PRAGMA COPY")


def _named(statement: Statement) -> Statement:
    """Names of savepoints are compared without regard to case, also quoted ones."""
    statement = replace(statement, effects=())
    return replace(statement, name=statement.name.lower()) if statement.name else statement


# --- the session ---------------------------------------------------------------------------

# CREATE and DROP are those of temporary tables. A procedure may do any of it.
_SESSION: Final = words("CREATE DROP PREPARE DEALLOCATE EXECUTE CALL HANDLER")
_keeps = _pattern(r":=|\bINTO\s+@|\b(?:GET_LOCK|RELEASE_LOCK|RELEASE_ALL_LOCKS)\s*\(")

_NAME: Final = rf"(?:\"_*\"|{WORD}+)"
_SCOPE: Final = r"(?:(?:SESSION|LOCAL)\s+|@@(?:(?:SESSION|LOCAL)\s*\.\s*))?"
_set_statement = _pattern(r"\s*SET\s+STATEMENT\b.*?\bFOR\b")
_set_transaction = _pattern(r"\s*SET\s+(?:(SESSION|LOCAL)\s+)?TRANSACTION\b")
_set_level = _pattern(
    rf"\s*SET\s+({_SCOPE}|@@)(?:TX|TRANSACTION)_ISOLATION\s*:?=\s*({_NAME}(?:-{_NAME})?)\s*\Z"
)
_set_further = _pattern(
    r"\s*SET\s.*(?:\b(?:GLOBAL|PERSIST|PERSIST_ONLY)\b|\bAUTOCOMMIT\b"
    r"|\b(?:TX|TRANSACTION)_(?:ISOLATION|READ_ONLY)\b)"
    r"|\s*SET\s+(?:PASSWORD|DEFAULT\s+ROLE)\b"
)
_isolation = _pattern(
    r"\bISOLATION\s+LEVEL\s+(SERIALIZABLE|REPEATABLE\s+READ|READ\s+(?:UN)?COMMITTED)\b"
)
_access = _pattern(r"\bREAD\s+(ONLY|WRITE)\b")


def _set(sql: str, shape: str, text: str) -> Statement:
    if found := _set_statement.match(shape):
        inner = _one(sql[found.end() :], shape[found.end() :])
        known = inner.kind in {Kind.READ, Kind.OUTSIDE}
        return Statement(inner.kind if known else Kind.WRITE, text, ddl=inner.ddl)
    if found := _set_transaction.match(shape):
        level, access = _isolation.search(shape), _access.search(shape)
        return Statement(
            Kind.SET_TRANSACTION,
            text,
            name="session" if found[1] else None,
            isolation=" ".join(level[1].split()) if level else None,
            read_only=access[1] == "ONLY" if access else None,
        )
    if found := _set_level.match(shape):
        value = sql[slice(*found.span(2))]
        level_name = (identifier(value) if value[0] in "'\"" else value).upper().replace("-", " ")
        scope = None if found[1] == "@@" else "session"
        return Statement(Kind.SET_TRANSACTION, text, name=scope, isolation=level_name)
    if _set_further.match(shape):
        return Statement(Kind.OUTSIDE, text, ddl=True)
    return Statement(Kind.SETTING, text, ddl=True)

"""What a statement starts that only a COMMIT ends.

A commit inside a sandbox is no COMMIT, so that what a real one would have done at that moment has
to be known: settings that revert, cursors that close, tables that are dropped, notifications that
go out. Found in the text of the statement, once for each text; values that the application binds
are filled in when it runs. Pure functions of their arguments, callable from anywhere.

Source: PostgreSQL's manual, the pages of SET, SET CONSTRAINTS, DECLARE, CREATE TABLE, NOTIFY,
LISTEN and "System Administration Functions".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from sandbox.core._lexer import SPACE, WORD, identifier, skeleton

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = (
    "AdvisoryLock",
    "Close",
    "Constraints",
    "Cursor",
    "Effect",
    "Listen",
    "Notify",
    "Parameter",
    "ReadsClock",
    "Setting",
    "ShowsIsolation",
    "TemporaryTable",
    "Unlisten",
    "Value",
    "effects_of",
    "resolved",
)


@dataclass(frozen=True, slots=True)
class Parameter:
    """A value that the application binds: its position from 0, or its name."""

    key: int | str


Value: TypeAlias = str | Parameter | None
"""A literal, a parameter, or None: an expression that only the server can evaluate."""


@dataclass(frozen=True, slots=True)
class Setting:
    """SET, RESET or set_config(): ``local`` to the transaction, or of the session."""

    name: Value
    local: Value | bool
    value: Value = None
    """What it is set to, where the text or a parameter says so plainly."""
    everything: bool = False
    """RESET ALL."""


@dataclass(frozen=True, slots=True)
class Constraints:
    """SET CONSTRAINTS: lasts until the transaction ends."""

    text: str


@dataclass(frozen=True, slots=True)
class TemporaryTable:
    """CREATE TEMPORARY TABLE … ON COMMIT DROP, or DELETE ROWS."""

    name: str
    """Quoted as the application has it."""
    drop: bool


@dataclass(frozen=True, slots=True)
class Cursor:
    """DECLARE without HOLD: closed at commit."""

    name: str


@dataclass(frozen=True, slots=True)
class Close:
    """CLOSE of one cursor, or of all."""

    name: str | None


@dataclass(frozen=True, slots=True)
class AdvisoryLock:
    """An advisory lock of the session, or of the transaction."""

    session: bool


@dataclass(frozen=True, slots=True)
class Notify:
    """NOTIFY or pg_notify(): sent at commit."""

    channel: Value
    payload: Value = ""


@dataclass(frozen=True, slots=True)
class Listen:
    """LISTEN: effective at commit."""

    channel: str


@dataclass(frozen=True, slots=True)
class Unlisten:
    """UNLISTEN of one channel, or of all: effective at commit."""

    channel: str | None


@dataclass(frozen=True, slots=True)
class ReadsClock:
    """CURRENT_TIMESTAMP and its kin, which are no functions."""


@dataclass(frozen=True, slots=True)
class ShowsIsolation:
    """SHOW transaction_isolation: what the application asked for."""


Effect: TypeAlias = (
    Setting
    | Constraints
    | TemporaryTable
    | Cursor
    | Close
    | AdvisoryLock
    | Notify
    | Listen
    | Unlisten
    | ReadsClock
    | ShowsIsolation
)


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text, re.ASCII)


# Any of these in the text, in whatever case, is reason to look closer.
_hint = re.compile(
    r"^\s*(?:SET|RESET|DECLARE|CLOSE|NOTIFY|LISTEN|UNLISTEN|SHOW)\b|\bON\s+COMMIT\s+D"
    r"|set_config|pg_notify|_advisory_|\bCURRENT_(?:TIME|DATE)|\bLOCALTIME",
    re.ASCII | re.IGNORECASE,
)

_NAME: Final = rf"((?:\"_*\"|{WORD}+))"
_DOTTED: Final = rf"((?:\"_*\"|{WORD}+)(?:\s*\.\s*(?:\"_*\"|{WORD}+))*)"
_set = _pattern(rf"\s*SET\s+(?:(SESSION|LOCAL)\s+)?(?!CONSTRAINTS\b|TRANSACTION\b){_DOTTED}")
_assigned = _pattern(r"\s*(?:=|\bTO\b)\s*(.*?)\s*\Z")
_reset = _pattern(rf"\s*RESET\s+{_DOTTED}")
_constraints = _pattern(r"\s*SET\s+CONSTRAINTS\b")
_shows = _pattern(r"\s*SHOW\s+(?:TRANSACTION\s+ISOLATION\s+LEVEL|TRANSACTION_ISOLATION)\s*\Z")
_temporary = _pattern(
    r"\s*CREATE\s+(?:(?:GLOBAL|LOCAL)\s+)?TEMP(?:ORARY)?\s+TABLE\s+(?:IF\s+NOT\s+EXISTS\s+)?"
    rf"{_DOTTED}.*\bON\s+COMMIT\s+(DROP|DELETE)\b(?s:.)*"
)
_temporary_lines = re.compile(_temporary.pattern, re.ASCII | re.DOTALL)
_declare = re.compile(rf"\s*DECLARE\s+{_NAME}\s(.*?)\bCURSOR\b(.*?)\bFOR\b", re.ASCII | re.DOTALL)
_with_hold = _pattern(r"\bWITH\s+HOLD\b")
_close = _pattern(rf"\s*CLOSE\s+{_NAME}")
_notify = _pattern(rf"\s*NOTIFY\s+{_NAME}(?:\s*,\s*(E?\"_*\"))?")
_listen = _pattern(rf"\s*LISTEN\s+{_NAME}")
_unlisten = _pattern(rf"\s*UNLISTEN\s+({_NAME}|\*)")
_call = _pattern(r"\b(SET_CONFIG|PG_NOTIFY)\s*\(")
_advisory = _pattern(r"\bPG_(?:TRY_)?ADVISORY_(XACT_)?LOCK(?:_SHARED)?\s*\(")
_clock = _pattern(r"(?<![\w.:@])(?:CURRENT_(?:TIMESTAMP|TIME|DATE)|LOCALTIME(?:STAMP)?)(?!\w)")

# Settings with a syntax of their own, by the first word after SET.
_SPECIAL: Final = {
    "time": "timezone",
    "session": "session_authorization",
    "schema": "search_path",
    "names": "client_encoding",
    "xml": "xmloption",
}
# Of the transaction, and the sandbox's own affair.
_NOT_SETTINGS: Final = frozenset(
    ["transaction_isolation", "transaction_read_only", "transaction_deferrable", "characteristics"]
)


def effects_of(sql: str, shape: str | None = None) -> tuple[Effect, ...]:
    """The effects of one statement; ``shape`` is its skeleton, made here if it is needed."""
    if shape is None and ("--" in sql or "/*" in sql):
        shape = skeleton(sql)
    if not _hint.search(sql if shape is None else shape):
        return ()
    if shape is None:
        shape = skeleton(sql)
    return tuple(_found(sql, shape))


def _found(sql: str, shape: str) -> Iterator[Effect]:
    for pattern, make in _HEADS:
        if found := pattern.match(shape):
            yield from make(sql, found)
            break
    for call in _call.finditer(shape):
        arguments = list(_arguments(sql, shape, call.end()))
        first, second, *_ = *arguments, None, None
        if call[1] == "PG_NOTIFY":
            yield Notify(first, second)
        else:
            yield Setting(_lower(first), arguments[2] if len(arguments) > 2 else "", second)
    for lock in _advisory.finditer(shape):
        yield AdvisoryLock(session=lock[1] is None)
    if _clock.search(shape):
        yield ReadsClock()


def _setting(sql: str, found: re.Match[str]) -> Iterator[Effect]:
    words = "".join(sql[slice(*found.span(2))].split()).replace('"', "").lower()
    name = _SPECIAL.get(words, words)
    if name not in _NOT_SETTINGS:
        rest = _assigned.match(found.string, found.end())
        value = _plain(sql[slice(*rest.span(1))]) if rest and name == words else None
        yield Setting(name, found[1] == "LOCAL", value)


def _plain(text: str) -> str | None:
    """The value as set_config() would take it; None where that needs the server."""
    if (literal := _literal(text)) is not None:
        return literal
    if "'" in text or "$" in text.replace('"$user"', "") or text.upper() == "DEFAULT":
        return None
    return text or None


def _resetting(sql: str, found: re.Match[str]) -> Iterator[Effect]:
    name = "".join(sql[slice(*found.span(1))].split()).replace('"', "").lower()
    if name == "all":
        yield Setting(None, False, everything=True)
    else:
        yield Setting(_SPECIAL.get(name, name), False)


def _temporary_table(sql: str, found: re.Match[str]) -> Iterator[Effect]:
    name = sql[slice(*found.span(1))].rpartition(".")[2].strip()
    yield TemporaryTable(name, found[2] == "DROP")


def _cursor(sql: str, found: re.Match[str]) -> Iterator[Effect]:
    if not _with_hold.search(found[3]):
        yield Cursor(identifier(sql[slice(*found.span(1))]))


def _closing(sql: str, found: re.Match[str]) -> Iterator[Effect]:
    name = sql[slice(*found.span(1))]
    yield Close(None if name.upper() == "ALL" else identifier(name))


def _notifying(sql: str, found: re.Match[str]) -> Iterator[Effect]:
    payload = _literal(sql[slice(*found.span(2))]) if found[2] else ""
    yield Notify(identifier(sql[slice(*found.span(1))]), payload)


def _listening(sql: str, found: re.Match[str]) -> Iterator[Effect]:
    yield Listen(identifier(sql[slice(*found.span(1))]))


def _unlistening(sql: str, found: re.Match[str]) -> Iterator[Effect]:
    name = sql[slice(*found.span(1))]
    yield Unlisten(None if name == "*" else identifier(name))


_HEADS: Final = (
    (_constraints, lambda sql, _found: iter((Constraints(sql.strip(SPACE)),))),
    (_set, _setting),
    (_reset, _resetting),
    (_shows, lambda _sql, _found: iter((ShowsIsolation(),))),
    (_temporary_lines, _temporary_table),
    (_declare, _cursor),
    (_close, _closing),
    (_notify, _notifying),
    (_listen, _listening),
    (_unlisten, _unlistening),
)


# --- arguments of calls -------------------------------------------------------------------

_cast = re.compile(r"\s*::\s*[\w\s\".]+(?:\(\d+\))?\s*\Z")
_escapes: Final = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}


def _arguments(sql: str, shape: str, start: int) -> Iterator[Value]:
    """The arguments of a call whose opening parenthesis ends at ``start``."""
    depth, begin = 0, start
    for position in range(start, len(shape)):
        character = shape[position]
        if character in "([":
            depth += 1
        elif character in ")]" and depth:
            depth -= 1
        elif character == ")" or (character == "," and not depth):
            yield _value(sql, begin, position)
            begin = position + 1
            if character == ")":
                return


def _value(sql: str, start: int, end: int) -> Value:
    text = _cast.sub("", sql[start:end]).strip()
    if (literal := _literal(text)) is not None:
        return literal
    if text.upper() in {"TRUE", "FALSE"}:
        return text.lower()
    if text == "%s":
        return Parameter(len(re.findall(r"%s", sql[:start].replace("%%", ""))))
    if text == "?":
        return Parameter(sql[:start].count("?"))
    if found := re.fullmatch(r"%\((.*)\)s|\$(\d+)|:(\w+)", text):
        return Parameter(int(found[2]) - 1 if found[2] else found[1] or found[3])
    return None


def _literal(text: str) -> str | None:
    if len(text) > 1 and text[0] in "eE" and text[1] == "'" and text[-1] == "'":
        plain = re.sub(r"\\(.)", lambda m: _escapes.get(m[1], m[1]), text[2:-1])
        return plain.replace("''", "'")
    if re.fullmatch(r"'(?:[^']|'')*'", text):
        return text[1:-1].replace("''", "'")
    return None


def _lower(value: Value) -> Value:
    return value.lower() if isinstance(value, str) else value


# --- when it runs ---------------------------------------------------------------------------


def resolved(effect: Effect, parameters: Any) -> Effect:
    """The effect with the values that the application has bound to this execution."""
    if isinstance(effect, Setting):
        local = effect.local
        if not isinstance(local, bool):
            local = _truth(_bound(local, parameters))
        value = _bound(effect.value, parameters)
        name = _lower(_bound(effect.name, parameters))
        return replace(effect, name=name, local=local, value=value)
    if isinstance(effect, Notify):
        payload = effect.payload
        if isinstance(payload, Parameter):
            # The server takes NULL for an empty one.
            payload = _bound(payload, parameters) or ""
        return Notify(_bound(effect.channel, parameters), payload)
    return effect


def _bound(value: Value, parameters: Any) -> str | None:
    if not isinstance(value, Parameter):
        return value
    key = value.key
    if isinstance(parameters, Mapping):
        found = parameters.get(key)
    elif isinstance(parameters, Sequence) and isinstance(key, int) and key < len(parameters):
        found = parameters[key]
    else:
        return None
    return found if found is None else str(found)


def _truth(text: str | None) -> bool:
    """Whether set_config's third argument says local; what cannot be told counts as local."""
    return text is None or text.lower() in {"true", "t", "yes", "on", "1"}

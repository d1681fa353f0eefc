"""Cut an SQL script into statements, as psql and sqlite3 do, keeping line numbers."""

from __future__ import annotations

import re
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ("ScriptError", "Statement", "postgresql_statements", "sqlite_statements")

_TOKEN = re.compile(
    r"""
      (?P<comment> --[^\n]* | /\* )
    | (?P<string>  [eE]'(?:[^'\\]|\\.|'')*' | '(?:[^']|'')*' | "(?:[^"]|"")*" )
    | (?P<dollar>  \$(?:[^\W\d]\w*)?\$ )
    | (?P<meta>    \\[^\n]* )
    | (?P<word>    [^\W\d][\w$]* )
    | (?P<number>  \d[\w$]* )
    | (?P<space>   \s+ )
    | (?P<other>   . )
    """,
    re.VERBOSE | re.DOTALL,
)
_COPY_FROM_STDIN = re.compile(r"copy\b.*\bfrom\s+stdin\b", re.IGNORECASE | re.DOTALL)
_COPY_END = re.compile(r"^\\\.[ \t\r]*$\n?", re.MULTILINE)
# pg_dump writes these two round every dump; they protect psql and do nothing to the database.
_HARMLESS = ("\\restrict", "\\unrestrict")


class ScriptError(Exception):
    """What cannot be run without the client program the script was written for."""

    def __init__(self, line: int, message: str) -> None:
        self.line = line
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement, the line it begins at, and the rows of a ``COPY … FROM stdin``."""

    text: str
    line: int
    rows: str | None = None


def postgresql_statements(script: str) -> Iterator[Statement]:
    """The statements of a script for psql; ScriptError at a meta-command.

    Quotes, dollar quotes, nested comments, and the bodies of ``BEGIN ATOMIC`` functions (by
    psql's own rule) hold semicolons that end nothing.
    """
    cutter = _Cutter(script)
    position = 0
    while position < len(script):
        match = _TOKEN.match(script, position)
        assert match is not None  # `other` matches anything
        kind, end = match.lastgroup, match.end()
        if kind == "comment" and match.group() == "/*":
            end = _comment_end(script, position)
        elif kind == "dollar":
            close = script.find(match.group(), end)
            end = len(script) if close < 0 else close + len(match.group())
        if kind == "meta":
            if not match.group().startswith(_HARMLESS) or cutter.start is not None:
                raise _meta_command(script, position)
        elif kind not in ("comment", "space"):
            cutter.token(match.group(), position, is_word=kind == "word")
        position = end
        if cutter.finished:
            statement, position = cutter.cut(end)
            yield statement
    if cutter.start is not None:
        yield cutter.cut(len(script))[0]


class _Cutter:
    """Knows, token by token, whether the statement that is being read has ended."""

    def __init__(self, script: str) -> None:
        self._script = script
        self._reset()

    def _reset(self) -> None:
        self.start: int | None = None
        self.finished = False
        self._words: list[str] = []
        self._parentheses = 0
        self._begins = 0

    def token(self, text: str, position: int, *, is_word: bool) -> None:
        if text == ";" and self.start is None:
            return
        if self.start is None:
            self.start = position
        if is_word:
            self._word(text.lower())
        elif text in ("(", ")"):
            self._parentheses = max(0, self._parentheses + (1 if text == "(" else -1))
        elif text == ";":
            self.finished = not self._parentheses and not self._begins

    def _word(self, word: str) -> None:
        if len(self._words) < 4:
            self._words.append(word)
        defines = [each for each in self._words if each not in ("or", "replace")][:2]
        if defines not in (["create", "function"], ["create", "procedure"]) or self._parentheses:
            return
        if word == "begin" or (word == "case" and self._begins):
            self._begins += 1
        elif word == "end" and self._begins:
            self._begins -= 1

    def cut(self, end: int) -> tuple[Statement, int]:
        """The statement that ends here, and where the next may begin."""
        assert self.start is not None
        text = self._script[self.start : end]
        line = self._script.count("\n", 0, self.start) + 1
        self._reset()
        if not _COPY_FROM_STDIN.match(text):
            return Statement(text, line), end
        begin = self._script.find("\n", end) + 1 or len(self._script)
        close = _COPY_END.search(self._script, begin)
        if close is None:
            raise ScriptError(line, "the rows of this COPY … FROM stdin do not end with \\.")
        return Statement(text, line, self._script[begin : close.start()]), close.end()


def sqlite_statements(script: str) -> Iterator[Statement]:
    """The statements of a script for sqlite3; ScriptError at a dot-command."""
    start = 0
    for semicolon in [*(match.end() for match in re.finditer(";", script)), len(script)]:
        text = script[start:semicolon]
        if semicolon < len(script) and not sqlite3.complete_statement(text):
            continue
        stripped = text.lstrip()
        line = script.count("\n", 0, start + len(text) - len(stripped)) + 1
        if stripped.startswith("."):
            raise ScriptError(
                line, f"{stripped.split(None, 1)[0]} is a command of the sqlite3 program, not SQL"
            )
        start = semicolon
        if stripped:
            yield Statement(stripped.rstrip(), line)


def _comment_end(script: str, position: int) -> int:
    depth = 0
    for match in re.compile(r"/\*|\*/").finditer(script, position):
        depth += 1 if match.group() == "/*" else -1
        if depth == 0:
            return match.end()
    return len(script)


def _meta_command(script: str, position: int) -> ScriptError:
    command = script[position:].split(None, 1)[0]
    line = script.count("\n", 0, position) + 1
    advice = (
        "list the files in a directory instead"
        if command in ("\\i", "\\ir", "\\include", "\\include_relative")
        else "take it out, or make the dump with pg_dump without --create"
    )
    return ScriptError(line, f"{command} is a command of psql, not SQL: {advice}")

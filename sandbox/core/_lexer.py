"""SQL text reduced to what its server reads as code.

The lexical rules are PostgreSQL's (manual, section 4.1), with what SQLite and MySQL add
where the two cannot be confused: back-quoted names, comments that end at the first ``*/``.
Strings, quoted names and comments are blanked, so that plain searches on the rest cannot be
fooled by their contents. Pure functions of their argument, callable from anywhere.
"""

from __future__ import annotations

import re

__all__ = ("SPACE", "WORD", "condensed", "identifier", "skeleton", "statements")

SPACE = " \t\n\r\f\v"
"""What PostgreSQL takes for white space. A no-break space is a letter to it."""

# Letters, digits, _, $ and all that is not ASCII: written as what it is not, which compiles 50
# times faster than the range would.
WORD = r"[^\x00-#%-/:-@\[-^`{-\x7f]"
"""One character of an unquoted name."""

# E'' continues over a line break, and its escapes with it.
_ESCAPED = r"'(?:[^'\\]++|\\.|'')*+'"

# Every alternative starts with a literal character: the engine then skips to the next one
# that can start a match. The look-behinds stand after it for the same reason.
_QUOTED = (
    rf"'(?<=(?<!{WORD})[eE]'){_ESCAPED[1:]}(?:[ \t\f\v]*[\r\n]\s*{_ESCAPED})*+"
    r"|'[^']*+(?:''[^']*+)*+'"
    r'|"[^"]*+(?:""[^"]*+)*+"'
    r"|`[^`]*+`"
    rf"|\$(?<!{WORD}\$)(?P<tag>(?:[A-Za-z_\x80-\U0010ffff][0-9A-Za-z_\x80-\U0010ffff]*+)?)\$"
    r".*?\$(?P=tag)\$"
)
_quoted = re.compile(_QUOTED, re.ASCII | re.DOTALL)
_blanked = re.compile(
    rf"(?P<quoted>{_QUOTED})|(?P<line>--[^\n\r]*+)|(?P<block>/\*)|(?P<open>['\"])",
    re.ASCII | re.DOTALL,
)
_comment_edge = re.compile(r"/\*|\*/")

# Bodies whose semicolons end no statement: SQL functions of PostgreSQL, triggers of SQLite.
_with_body = re.compile(r"\s*CREATE\s+(?:OR\s+REPLACE\s+)?(?:FUNCTION|PROCEDURE)\b", re.ASCII)
_with_actions = re.compile(r"\s*CREATE\s+(?:TEMP(?:ORARY)?\s+)?TRIGGER\b", re.ASCII)
_body = re.compile(r"\bBEGIN\s+ATOMIC\b", re.ASCII)
_actions = re.compile(r"\bBEGIN\s+(?:INSERT|REPLACE|UPDATE|DELETE|SELECT|WITH|VALUES)\b", re.ASCII)
_block_word = re.compile(rf"(?<![.:@])(?<!{WORD})(?:(CASE|BEGIN)|END)(?!{WORD})", re.ASCII)

_NAME_BYTES = 63


def _upper(text: str) -> str:
    """Fold as a server folds key words: ASCII letters only, so no character changes width."""
    if text.isascii():
        return text.upper()
    return text.encode("utf-8", "surrogatepass").upper().decode("utf-8", "surrogatepass")


def _comment_end(sql: str, start: int) -> int:
    """Where the block comment that opens at ``start`` ends; comments nest on PostgreSQL.

    One that never closes by that rule closes at the first ``*/``, as on SQLite and MySQL:
    PostgreSQL refuses such a text anyway, the others run what follows.
    """
    depth = 0
    first = -1
    for edge in _comment_edge.finditer(sql, start):
        if edge.group() == "/*":
            depth += 1
            continue
        depth -= 1
        if first < 0:
            first = edge.end()
        if not depth:
            return edge.end()
    return first if first >= 0 else len(sql)


def skeleton(sql: str) -> str:
    """The text at its own length, upper-cased: comments are blanks, quoted parts ``"___"``.

    Positions in it are positions in ``sql``. A quote that never closes reaches to the end.
    """
    parts: list[str] = []
    position = 0
    while found := _blanked.search(sql, position):
        start, end = found.span()
        parts.append(sql[position:start])
        if found["quoted"] is not None:
            parts.append(f'"{"_" * (end - start - 2)}"')
        else:
            if found["block"] is not None:
                end = _comment_end(sql, start)
            elif found["open"] is not None:
                end = len(sql)
            parts.append(" " * (end - start))
        position = end
    if not parts:
        return _upper(sql)
    parts.append(sql[position:])
    return _upper("".join(parts))


def condensed(sql: str) -> str:
    """As :func:`skeleton`, but faster, with quoted parts shortened to ``""``: no positions."""
    if "--" in sql or "/*" in sql:
        return skeleton(sql)
    if "'" in sql or '"' in sql or "$" in sql or "`" in sql:
        return _upper(_quoted.sub('""', sql))
    return _upper(sql)


def statements(sql: str) -> list[tuple[str, str]]:
    """Cut at the semicolons that end statements: (piece, its skeleton), blank ones left out."""
    shape = skeleton(sql)
    pieces: list[tuple[str, str]] = []
    start = 0
    while start < len(shape):
        end = _statement_end(shape, start)
        if shape[start:end].strip(SPACE):
            pieces.append((sql[start:end], shape[start:end]))
        start = end + 1
    return pieces


def _statement_end(shape: str, start: int) -> int:
    end = shape.find(";", start)
    if end < 0:
        return len(shape)
    for head, opening in ((_with_body, _body), (_with_actions, _actions)):
        if head.match(shape, start, end) and (opened := opening.search(shape, start, end)):
            return _after_body(shape, opened.start(), end)
    return end


def _after_body(shape: str, opened: int, otherwise: int) -> int:
    depth = 0
    for word in _block_word.finditer(shape, opened):
        depth += 1 if word[1] else -1
        if not depth:
            end = shape.find(";", word.end())
            return len(shape) if end < 0 else end
    # Never closed: no such body after all, and nothing may hide in it.
    return otherwise


def identifier(quoted: str) -> str:
    """A name as PostgreSQL stores it: unquoted folded to lower case, cut to 63 bytes."""
    if quoted[0] in "\"'`":
        name = quoted[1:-1].replace(quoted[0] * 2, quoted[0])
    else:
        name = quoted.encode("utf-8", "surrogatepass").lower().decode("utf-8", "surrogatepass")
    if len(name) * 4 <= _NAME_BYTES:
        return name
    stored = name.encode("utf-8", "surrogatepass")
    if len(stored) <= _NAME_BYTES:
        return name
    return stored[:_NAME_BYTES].decode("utf-8", "ignore")

"""Who stands in the way: waits for the locks of other sandboxes, ended in time and explained.

PostgreSQL. Tests that run at once in one database wait for each other's rows and tables. The outer
transaction of each says in ``pg_stat_activity`` whose it is, and does not wait for ever; when a
statement gives up, the server is asked who has the lock.
"""

from __future__ import annotations

import re
import threading
import weakref
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sandbox.core.places import began

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sandbox.connection.shared import SharedConnection

__all__ = (
    "application_name",
    "explain",
    "is_about_locks",
    "opening_statement",
    "register",
    "timeout_setting",
)

NAME_BYTES: Final = 63
"""The server cuts longer names off (NAMEDATALEN - 1)."""

LOCK_TIMEOUT: Final = "55P03"
DEADLOCK: Final = "40P01"

_live: weakref.WeakSet[SharedConnection] = weakref.WeakSet()
_live_lock = threading.Lock()

# Source: PostgreSQL's manual, 13.3.1 "Table-Level Locks".
_WEAK = frozenset({"AccessShareLock", "RowShareLock"})
_STOPS_READING = frozenset({"AccessExclusiveLock"})
_STOPS_ROW_LOCKS = _STOPS_READING | {"ExclusiveLock"}
_STOPS_WRITING = _STOPS_ROW_LOCKS | {"ShareLock", "ShareRowExclusiveLock"}

_CONTEXT = re.compile(
    r"^while (?P<what>.+?) tuple (?P<tuple>\(\d+,\d+\)) in relation \"(?P<in>.+)\"", re.MULTILINE
)
_DEADLOCK_LINE = re.compile(
    r"Process (?P<pid>\d+) waits for (?P<mode>\w+) on (?P<on>[^;]+); blocked by process (?P<by>\d+)"
)
_RELATION = re.compile(r"relation (\d+) of database")

_HELD: Final = """
SELECT l.pid, a.application_name, l.locktype, l.mode, coalesce(t.relname, c.relname),
       l.objid::bigint, l.transactionid::text
FROM pg_catalog.pg_locks l
JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
LEFT JOIN pg_catalog.pg_class c ON c.oid = l.relation
LEFT JOIN pg_catalog.pg_index i ON i.indexrelid = l.relation
LEFT JOIN pg_catalog.pg_class t ON t.oid = i.indrelid
WHERE l.granted AND l.pid <> pg_catalog.pg_backend_pid()
  AND a.datname = pg_catalog.current_database()
  AND l.locktype IN ('relation', 'transactionid', 'advisory')
"""


def register(shared: SharedConnection) -> None:
    """Remember whose connection it is, for those who are told its process. Kept weakly."""
    with _live_lock:
        _live.add(shared)


def application_name(label: str) -> str:
    """A test's id as the server shows it: ASCII, at most 63 bytes, its end rather than its start.

    The server writes other characters in a form that depends on its version.
    """
    text = label
    if not (label.isascii() and label.isprintable()):
        text = "".join(c if " " <= c <= "~" else "?" for c in label)
    return text if len(text) <= NAME_BYTES else f"...{text[3 - NAME_BYTES :]}"


def opening_statement(name: str) -> str:
    """What a sandbox sends with the BEGIN of its outer transaction, and for it alone.

    On the server this takes some 2 microseconds.
    """
    return f"SET LOCAL application_name = {_literal(name)}"


def timeout_setting(seconds: float) -> str:
    """Seconds as ``lock_timeout`` has them: whole milliseconds, at least one unless it is none."""
    if not seconds:
        return "0"
    return str(max(round(min(seconds * 1000, 2**31 - 1)), 1))


def is_about_locks(error: BaseException, statement: str) -> bool:
    """Whether this error of a driver says that a lock was not to be had in time.

    Who says NOWAIT reckons with it.
    """
    state = _told(error).state
    return state == DEADLOCK or (state == LOCK_TIMEOUT and "nowait" not in statement.lower())


def explain(
    error: BaseException, ask: Callable[[str], Sequence[Sequence[Any]]], statement: str = ""
) -> str | None:
    """Who had the lock that the statement did not get; None if the error is about something else.

    ``ask`` runs a query in the connection that has failed, after the failure was rolled back and in
    a savepoint of its own. Of a wait for a unique key the server does not tell afterwards who has
    it: all who have written to the table are named then.
    """
    told = _told(error)
    if told.state == DEADLOCK:
        return _Case(told, ask, statement).deadlock()
    if told.state == LOCK_TIMEOUT:
        return _Case(told, ask, statement).timeout()
    return None


class _Told(NamedTuple):
    """What the drivers' errors say in different places."""

    state: str | None
    context: str
    detail: str


class _Lock(NamedTuple):
    """One that another session has; a row of :data:`_HELD`."""

    pid: int
    name: str
    kind: str
    mode: str
    relation: str | None
    key: int | None
    xid: str | None


@dataclass(slots=True)
class _Case:
    """One statement that did not get its lock."""

    told: _Told
    ask: Callable[[str], Sequence[Sequence[Any]]]
    statement: str

    # -- lock_timeout ------------------------------------------------------------------------

    def timeout(self) -> str:
        # What is asked below must not wait for the same locks again.
        self.ask("SELECT pg_catalog.set_config('lock_timeout', '100', true)")
        held = [_Lock(int(row[0]), *row[1:]) for row in self.ask(_HELD)]
        found = _CONTEXT.search(self.told.context)
        if found is not None:
            what, locks = self._row(held, found)
        elif "advisory" in self.statement.lower():
            what = "an advisory lock"
            locks = [lock for lock in held if lock.kind == "advisory"]
        else:
            what, locks = self._table(held)
        if not locks:
            return (
                f"sandbox: the statement waited too long for {what}. Whoever had it"
                f" has let go of it since, or is not in this database."
            )
        return self._said(f"the statement waited too long for {what}", locks)

    def _row(self, held: list[_Lock], found: re.Match[str]) -> tuple[str, list[_Lock]]:
        named = found["in"]
        table, index = self._table_of(named)
        if found["what"] == "inserting index":
            what = f"a key of {table}" + (f" (unique index {index})" if index else "")
            wrote = {lock.pid for lock in held if lock.xid is not None}
            return what, [
                lock
                for lock in held
                if lock.relation == table and lock.pid in wrote and lock.mode not in _WEAK
            ]
        what = f"a row of {table} ({found['what']})"
        on_table = [lock for lock in held if lock.relation == table and lock.kind == "relation"]
        lockers = self._lockers(table, found["tuple"])
        exact = _of(on_table, held, lockers) or _of(on_table, held, self._members(lockers))
        return what, exact or [lock for lock in on_table if lock.mode != "AccessShareLock"]

    def _table_of(self, name: str) -> tuple[str, str | None]:
        """The table that a relation is or is an index of, and the index."""
        rows = self.ask(
            "SELECT t.relname FROM pg_catalog.pg_index i"
            " JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid"
            " JOIN pg_catalog.pg_class t ON t.oid = i.indrelid"
            f" WHERE c.relname = {_literal(name)}"
        )
        return (str(rows[0][0]), name) if rows else (name, None)

    def _lockers(self, table: str, position: str) -> set[str]:
        """The transactions that have locked or changed the row at this place."""
        places = self.ask(
            "SELECT pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname)"
            " FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
            f" WHERE c.relname = {_literal(table)} AND c.relkind IN ('r', 'p', 'm')"
        )
        return {
            str(xmax)
            for (qualified,) in places
            for (xmax,) in self.ask(f"SELECT xmax::text FROM {qualified} WHERE ctid = '{position}'")
            if xmax != "0"
        }

    def _members(self, lockers: set[str]) -> set[str]:
        """Who they are, if the row is locked by several at once. To be asked last: it may fail."""
        members: set[str] = set()
        with suppress(Exception):  # it is a transaction that has ended
            for each in lockers:
                rows = self.ask(
                    f"SELECT xid::text FROM pg_catalog.pg_get_multixact_members('{each}')"
                )
                members |= {str(xid) for (xid,) in rows}
        return members

    def _table(self, held: list[_Lock]) -> tuple[str, list[_Lock]]:
        """A table that the statement names, locked by others in a way that stops it."""
        words = {word.lower() for word in re.findall(r"\w+", self.statement)}
        locks = [
            lock
            for lock in held
            if lock.relation is not None
            and lock.relation.lower() in words
            and _stops(lock.mode, self.statement)
        ]
        tables = sorted({str(lock.relation) for lock in locks})
        return f"a lock on {', '.join(tables)}" if tables else "a lock", locks

    # -- deadlock ----------------------------------------------------------------------------

    def deadlock(self) -> str:
        names = {
            int(pid): str(name)
            for pid, name in self.ask(
                "SELECT pid, application_name FROM pg_catalog.pg_stat_activity"
                " WHERE datname = pg_catalog.current_database()"
            )
        }
        own = int(self.ask("SELECT pg_catalog.pg_backend_pid()")[0][0])
        names[own] = _SELF
        waits = ""
        others: dict[int, None] = {}
        for found in _DEADLOCK_LINE.finditer(self.told.detail):
            pid, by = int(found["pid"]), int(found["by"])
            others.update(dict.fromkeys(each for each in (pid, by) if each != own))
            waiter, holder = (_called(each, names.get(each)) for each in (pid, by))
            waits += f"\n  {waiter} waits for {found['mode']} on {self._on(found['on'])}"
            waits += f", which {holder} has"
        context = _CONTEXT.search(self.told.context)
        if context is not None:
            table, index = self._table_of(context["in"])
            waits += f"\n  this test was {context['what']} tuple of {index or table}"
            waits += f", table {table}" if index else ""
        who = " and ".join(_called(each, names.get(each)) for each in others)
        places = "".join(f"\n  {_called(each, names.get(each))}{_places(each)}" for each in others)
        return f"sandbox: a deadlock with {who or 'another session'}.{waits}{places}\n{_REMEDY}"

    def _on(self, what: str) -> str:
        found = _RELATION.search(what)
        if found is None:
            return what
        rows = self.ask(f"SELECT relname FROM pg_catalog.pg_class WHERE oid = {found[1]}")
        return f"table {rows[0][0]}" if rows else what

    # -- words -------------------------------------------------------------------------------

    def _said(self, what: str, locks: list[_Lock]) -> str:
        by_holder: dict[tuple[int, str], dict[str, None]] = {}
        for lock in locks:
            on = f" on {lock.relation}" if lock.relation else f" {lock.key}"
            entry = by_holder.setdefault((lock.pid, lock.name), {})
            entry[f"{lock.mode}{on}"] = None
        text = f"sandbox: {what}, which "
        text += "another test has" if len(by_holder) == 1 else "one of these has"
        for (pid, name), modes in by_holder.items():
            text += f"\n  {_called(pid, name)}: {', '.join(modes)}{_places(pid)}"
        return f"{text}\n{_REMEDY}"


_SELF: Final = "this test"
_REMEDY: Final = (
    "Tests that run at once must not write the same rows or keys: let each make its own, or give"
    " each worker a database of its own (the default under pytest-xdist)."
)


def _of(locks: list[_Lock], held: list[_Lock], xids: set[str]) -> list[_Lock]:
    """Those of the sessions that run one of these transactions."""
    owners = {lock.pid for lock in held if lock.xid is not None and lock.xid in xids}
    return [lock for lock in locks if lock.pid in owners]


def _of_process(pid: int) -> list[SharedConnection]:
    with _live_lock:
        connections = list(_live)
    found = []
    for each in connections:
        with suppress(Exception):  # one that was lost has no process
            if not each.ended and each.pid == pid:
                found.append(each)
    return found


def _called(pid: int, name: str | None) -> str:
    """The test's id: in full if it is of this process, else as the server shows it."""
    found = _of_process(pid)
    return found[0].sandbox.label if found and name != _SELF else name or f"process {pid}"


def _places(pid: int) -> str:
    """Where the transactions of that connection began, if it is of this process."""
    text = ""
    for shared in _of_process(pid):
        frames = list(shared.stack.frames)
        found = [frame.transaction for frame in frames if frame.transaction is not None]
        found += [other for frame in frames for other in frame.foreign]
        for transaction in dict.fromkeys(found):
            state = "committed; its locks last until check-in" if transaction.over else "open"
            place = began(transaction).replace("\n", "\n  ")
            text += f"\n    its transaction ({state}) {place}"
    return text


def _stops(mode: str, statement: str) -> bool:
    """Whether a lock of this mode is in the way of such a statement."""
    words = statement.lower().split()
    if not words:
        return True
    if words[0] in {"select", "with", "values", "table"}:
        return mode in (_STOPS_ROW_LOCKS if "for" in words else _STOPS_READING)
    if words[0] in {"insert", "update", "delete", "merge", "copy"}:
        return mode in _STOPS_WRITING
    if words[:2] in (["create", "index"], ["create", "unique"]):
        return mode not in _WEAK
    return True


def _told(error: BaseException) -> _Told:
    state, context, detail = None, "", ""
    seen: BaseException | None = error
    while seen is not None:
        diag = getattr(seen, "diag", None)
        state = state or getattr(seen, "sqlstate", None) or getattr(seen, "pgcode", None)
        context = context or getattr(diag, "context", None) or getattr(seen, "context", None) or ""
        detail = (
            detail or getattr(diag, "message_detail", None) or getattr(seen, "detail", None) or ""
        )
        seen = seen.__cause__ if context == "" or detail == "" else None
    return _Told(state, context, detail)


def _literal(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "''")
    return f"E'{escaped}'" if "\\" in text else f"'{escaped}'"

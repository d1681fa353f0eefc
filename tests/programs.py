"""Random programs on the application's side: connections of every kind, and a model of their rows.

A program is a list of steps for up to four *clients*: connections of one engine as applications
hold them. The model knows what each of them wrote, committed and undid. They all run in one sandbox
and one thread, so that the model can say after each step which rows must be there.

The law: a committed row is seen by everybody, one that was rolled back by nobody, one's own row by
oneself, or the sandbox raises one of its own errors. Rows of others' open transactions may be seen:
there is only one real connection.
"""

from __future__ import annotations

import contextlib
import gc
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

import sandbox
from sandbox.errors import InterleavedTransactionError, SandboxBusyError, SandboxError
from tests.fix_db import items

if TYPE_CHECKING:
    from collections.abc import Callable

Step = tuple[int, str, int]
"""Which client, which action, a number that tells more."""
Program = tuple[tuple[str, ...], list[Step]]
"""What each client is, and the steps."""

KINDS = ("raw", "own", "core", "session")
ACTIONS = (
    *("insert",) * 6,
    *("select",) * 4,
    *("commit",) * 4,
    *("rollback",) * 3,
    *("savepoint",) * 3,
    *("release",) * 2,
    *("rollback to",) * 3,
    *("fail", "fail reading", "close", "text commit", "text rollback", "text begin"),
    *("autocommit", "dispose", "drop"),
)
LABELS = ("a", "b")
_INSERT = "INSERT INTO items (name) VALUES ('{}')"
_FAIL = {
    "fail": "INSERT INTO items (name) VALUES (NULL)",
    "fail reading": "SELECT name FROM nowhere",
}


def random_program(chance: random.Random, length: int) -> Program:
    """A program from a seeded source of chance."""
    kinds = tuple(chance.choice(KINDS) for _ in range(chance.randint(1, 5)))
    steps = [
        (chance.randrange(len(kinds)), chance.choice(ACTIONS), chance.randrange(10))
        for _ in range(length)
    ]
    return kinds, steps


class Handle:
    """A connection of one kind, with the few things that all kinds can do."""

    def __init__(self, engine: sa.Engine, kind: str) -> None:
        self.engine = engine
        self.kind = kind
        self.nested: list[Any] = []
        self.connection: Any
        if kind == "raw":
            self.connection = engine.raw_connection()
        elif kind == "own":
            self.connection = sandbox.get_conn(engine)
        else:
            self.connection = engine.connect() if kind == "core" else Session(engine)

    @property
    def plain(self) -> bool:
        """A driver's connection, without SQLAlchemy's own idea of transactions."""
        return self.kind in {"raw", "own"}

    def execute(self, sql: str) -> list[str]:
        if not self.plain:
            result = self.connection.execute(sa.text(sql))
            return list(result.scalars()) if result.returns_rows else []
        cursor = self.connection.cursor()
        try:
            cursor.execute(sql)
            return [row[0] for row in cursor.fetchall()] if cursor.description else []
        finally:
            cursor.close()

    def insert(self, name: str) -> None:
        if self.plain:
            self.execute(_INSERT.format(name))
        else:
            self.connection.execute(sa.insert(items).values(name=name))

    def savepoint(self, label: str) -> None:
        if self.plain:
            self.execute(f"SAVEPOINT {label}")
        else:
            self.nested.append(self.connection.begin_nested())

    def release(self, position: int, label: str) -> None:
        if self.plain:
            self.execute(f"RELEASE SAVEPOINT {label}")
        else:
            self.nested[position].commit()
            del self.nested[position:]

    def rollback_to(self, position: int, label: str) -> None:
        if self.plain:
            self.execute(f"ROLLBACK TO SAVEPOINT {label}")
        else:
            self.nested[position].rollback()
            del self.nested[position:]

    def end(self, how: str) -> None:
        self.nested.clear()
        getattr(self.connection, how)()

    def autocommit(self, on: bool) -> None:
        dialect = self.engine.dialect
        real = self.connection.dbapi_connection if self.kind == "raw" else self.connection
        if on:
            dialect.set_isolation_level(real, "AUTOCOMMIT")
        else:
            dialect.reset_isolation_level(real)


@dataclass(eq=False)
class Client:
    """What the application knows about one of its connections."""

    kind: str
    handle: Handle | None = None
    pending: list[str] = field(default_factory=list)
    marks: list[tuple[str, int]] = field(default_factory=list)
    failed: bool = False
    autocommit: bool = False
    begun: bool = False
    """It has begun, or may have begun, a transaction."""
    by_savepoint: bool = False
    """With its outermost savepoint, the release of which commits; so it is on SQLite."""

    @property
    def alone(self) -> bool:
        """Whether the next statement is a transaction of its own."""
        return self.autocommit and not self.begun

    def innermost(self, label: str) -> int | None:
        for position in range(len(self.marks) - 1, -1, -1):
            if self.marks[position][0] == label:
                return position
        return None

    def over(self) -> list[str]:
        """End the transaction; returns what it had written."""
        rows, self.pending = self.pending, []
        self.marks.clear()
        self.failed = self.begun = self.by_savepoint = False
        return rows


class Ended(Exception):
    """The sandbox has said that it cannot go on as production would."""


class Run:
    """One program in one sandbox of the caller, step by step beside the model."""

    def __init__(self, engine: sa.Engine, kinds: tuple[str, ...], *, aborts: bool) -> None:
        self.engine = engine
        self.aborts = aborts
        self.clients = [Client(kind) for kind in kinds]
        self.committed: set[str] = set()
        self.doomed: set[str] = set()
        """It will be undone, and nobody says when."""
        self.number = 0
        self.outcomes: Counter[str] = Counter()
        errors: Any = engine.dialect.dbapi
        self.driver_errors = (errors.Error, sa.exc.DBAPIError)

    def play(self, steps: list[Step]) -> None:
        """Run the steps, leave, and look once more."""
        try:
            for who, action, more in steps:
                self.step(self.clients[who % len(self.clients)], action, more)
            # The inner ones first: who stands below them would have to wait.
            for client in sorted(self.clients, key=lambda c: c.pending[:1], reverse=True):
                self.step(client, "close", 0)
            self.end()
        except Ended:
            self.outcomes["ended"] += 1
        finally:
            for client in self.clients:
                if client.handle is not None:
                    with contextlib.suppress(SandboxError, *self.driver_errors):
                        self.close(client, client.handle, 0)

    def end(self) -> None:
        """When everybody has left, what was committed is there and nothing else."""
        if self.doomed:
            gc.collect()  # tracebacks of their errors may still hold the connections
        last = Handle(self.engine, "raw")
        try:
            seen = last.execute("SELECT name FROM items")
        except (SandboxBusyError, InterleavedTransactionError) as error:
            raise Ended from error
        finally:
            last.connection.close()
        assert set(seen) == self.committed, "what remains is not what was committed"
        self.outcomes["completed"] += 1

    def step(self, client: Client, action: str, more: int) -> None:
        if client.handle is None:
            if action == "close":
                return
            client.handle = Handle(self.engine, client.kind)
        name = action.replace(" ", "_")
        try:
            done = getattr(self, name if not action.startswith("fail") else "fail")(
                client, client.handle, action if action.startswith("fail") else more
            )
            self.outcomes[action if done is not False else "skipped"] += 1
        except InterleavedTransactionError as error:
            raise Ended from error
        except SandboxBusyError as error:
            self.outcomes["busy"] += 1
            # A statement that was refused has done nothing. After a refused end SQLAlchemy and
            # the application no longer agree about what is open.
            if action not in {"insert", "select"}:
                raise Ended from error
            client.begun = True

    # -- steps ------------------------------------------------------------------------------

    def insert(self, client: Client, handle: Handle, _: int) -> None:
        self.number += 1
        name = f"row {self.number:03}"
        if self.refused(client, lambda: handle.insert(name)):
            return
        if client.alone:
            self.committed.add(name)
        else:
            client.begun = True
            client.pending.append(name)

    def select(self, client: Client, handle: Handle, _: int) -> None:
        seen: list[str] = []
        if self.refused(
            client, lambda: seen.extend(handle.execute("SELECT name FROM items ORDER BY id"))
        ):
            return
        if self.aborts and not client.alone:
            client.begun = True
        shown = set(seen)
        others = {name for c in self.clients for name in c.pending}
        missing = (self.committed | set(client.pending)) - shown
        assert not missing, f"lost: {missing}"
        surplus = shown - self.committed - others - self.doomed
        assert not surplus, f"undone, and still there: {surplus}"

    def fail(self, client: Client, handle: Handle, action: str) -> None:
        try:
            handle.execute(_FAIL[action])
        except self.driver_errors:
            pass
        else:
            raise AssertionError("a statement that must fail did not")
        if not client.alone:
            client.begun = client.begun or self.aborts or action == "fail"
            self.has_failed(client)

    def savepoint(self, client: Client, handle: Handle, more: int) -> bool | None:
        if client.alone or (client.failed and not handle.plain):
            return False
        label = LABELS[more % len(LABELS)] if handle.plain else f"{len(client.marks)}"
        if not self.refused(client, lambda: handle.savepoint(label)):
            client.by_savepoint |= self.engine.dialect.name == "sqlite" and not client.begun
            client.begun = True
            client.marks.append((label, len(client.pending)))
        return None

    def release(self, client: Client, handle: Handle, more: int) -> bool | None:
        found = self.mark(client, more)
        if found is None or (client.failed and not handle.plain):
            return False
        label = client.marks[found][0]
        if not self.refused(client, lambda: handle.release(found, label)):
            del client.marks[found:]
            if client.by_savepoint and not client.marks:
                self.has_committed(client)
        return None

    def rollback_to(self, client: Client, handle: Handle, more: int) -> bool | None:
        found = self.mark(client, more)
        if found is None:
            return False
        label, start = client.marks[found]
        handle.rollback_to(found, label)
        self.doomed -= set(client.pending[start:])
        del client.pending[start:]
        del client.marks[found + 1 if handle.plain else found :]
        # SQLAlchemy forgets it without a RELEASE: it stays the outermost.
        client.by_savepoint &= bool(client.marks)
        client.failed = False
        return None

    def commit(self, client: Client, handle: Handle, _: int) -> bool | None:
        if client.failed and client.kind == "session":
            return False
        handle.end("commit")
        self.has_committed(client)
        return None

    def rollback(self, client: Client, handle: Handle, _: int) -> None:
        handle.end("rollback")
        self.doomed -= set(client.over())

    def text_commit(self, client: Client, handle: Handle, _: int) -> bool | None:
        if not handle.plain or (client.alone and not client.begun):
            return False
        handle.execute("COMMIT")
        self.has_committed(client)
        return None

    def text_rollback(self, client: Client, handle: Handle, _: int) -> bool | None:
        if not handle.plain:
            return False
        handle.execute("ROLLBACK")
        self.doomed -= set(client.over())
        return None

    def text_begin(self, client: Client, handle: Handle, _: int) -> bool | None:
        if not handle.plain or client.begun:
            return False
        handle.execute("BEGIN")
        client.begun = True
        return None

    def autocommit(self, client: Client, handle: Handle, _: int) -> bool | None:
        if not handle.plain or client.begun:
            return False
        handle.end("rollback")
        client.autocommit = not client.autocommit
        handle.autocommit(client.autocommit)
        return None

    def dispose(self, client: Client, handle: Handle, more: int) -> bool | None:
        del client, handle
        if more > 3:
            return False
        self.engine.dispose()
        return None

    def drop(self, client: Client, handle: Handle, _: int) -> bool | None:
        """Lose it: what is left is for the garbage collector, which counts references first."""
        if client.kind != "own" and (client.kind != "raw" or self.engine.dialect.is_async):
            return False
        self.reset(client, handle)
        self.doomed |= set(client.over())
        client.handle = None
        del handle
        return None

    def close(self, client: Client, handle: Handle, _: int) -> None:
        client.handle = None
        self.reset(client, handle)
        # Where others' work lies on it, it is undone later.
        self.doomed |= set(client.over())
        handle.connection.close()

    def reset(self, client: Client, handle: Handle) -> None:
        """Pools do not undo what was set on a driver's connection."""
        if client.autocommit:
            client.autocommit = False
            handle.end("rollback")
            handle.autocommit(on=False)

    # -- what happened ------------------------------------------------------------------------

    def refused(self, client: Client, call: Any) -> bool:
        """Whether the server refused it, which it does in failed transactions and only there."""
        try:
            call()
        except self.driver_errors:
            assert client.failed, "a statement that must not fail did"
            return True
        assert not client.failed, "a failed transaction went on"
        return False

    def has_failed(self, client: Client) -> None:
        if self.aborts and not client.failed:
            client.failed = True
            start = client.marks[-1][1] if client.marks else 0
            self.doomed |= set(client.pending[start:])
            del client.pending[start:]

    def has_committed(self, client: Client) -> None:
        failed = client.failed
        rows = set(client.over())
        if failed:
            self.doomed -= rows
        else:
            self.committed |= rows

    def mark(self, client: Client, more: int) -> int | None:
        """A savepoint to go back to: with SQLAlchemy any, in SQL the innermost of a name."""
        if not client.marks:
            return None
        assert client.handle is not None
        if not client.handle.plain:
            return len(client.marks) - 1
        return client.innermost(client.marks[more % len(client.marks)][0])


class Worker:
    """One of several that write at once, each rows of its own, and what it was told about them."""

    def __init__(
        self,
        engine: sa.Engine,
        name: str,
        chance: random.Random,
        pause: Callable[[], object],
        may_undo: bool,
    ) -> None:
        self.engine = engine
        self.name = name
        self.chance = chance
        self.pause = pause
        self.may_undo = may_undo
        self.kept: set[str] = set()
        self.undone: set[str] = set()
        self.error: Exception | None = None

    def run(self, transactions: int) -> None:
        """Run that many transactions; stops where the sandbox says that work was lost."""
        ways = ("commit",) * 4 + (("rollback", "fail") if self.may_undo else ())
        try:
            for number in range(transactions):
                self._transaction(f"{self.name}-{number}", self.chance.choice(ways))
        except InterleavedTransactionError:
            pass
        except Exception as error:
            self.error = error

    def _transaction(self, name: str, how: str) -> None:
        rows = [f"{name}-{row}" for row in range(self.chance.randint(1, 3))]
        committing = False
        try:
            with self._connect() as connection:
                for row in rows:
                    connection.execute(sa.insert(items).values(name=row))
                    self.pause()
                if how == "fail":
                    connection.execute(sa.insert(items).values(name=None))
                committing = how == "commit"
                getattr(connection, how)()
                self.pause()
            (self.kept if committing else self.undone).update(rows)
        except (sa.exc.IntegrityError, SandboxBusyError):
            assert not committing, "a commit that was refused"
            self.undone.update(rows)
        except BaseException:
            # Cancelled in the middle of a commit, nobody can tell; before it, it is a rollback.
            if not committing:
                self.undone.update(rows)
            raise

    def _connect(self) -> Any:
        kind = self.chance.choice(("core", "session"))
        return self.engine.connect() if kind == "core" else Session(self.engine)

"""The stack of savepoints against a model of what the application did, a step at a time.

Three parts meet here. A *server* runs the SQL that the stack asks for and refuses what is illegal:
one simulated in memory, SQLite, and, in the integration tests, PostgreSQL. The *shell* calls the
stack as a sandbox's connection does, without waiting: who would have to wait is passed over. The
*model* knows only what the application did.

The law: what the server shows is what the model holds, or the stack names whose work was lost.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from enum import Enum

import pytest

from sandbox.core.frames import Frame, Transaction
from sandbox.core.statements import Kind
from sandbox.core.transaction import Stack
from tests.stack_servers import RefusedError, Server, Simulated

# --- the shell -------------------------------------------------------------------------------


class Outcome(Enum):
    DONE = "done"
    REFUSED = "refused by the server"
    WAITS = "would wait"
    POISONED = "refused by the sandbox: work was lost"


class Shell:
    """What ``SharedConnection`` does around the stack, a statement at a time, without waiting."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.stack = Stack()
        self.seen: list[int] = []

    def run(
        self,
        transaction: Transaction,
        kind: Kind,
        action: str,
        row: int,
        *,
        finish: bool,
        nest: bool,
    ) -> Outcome:
        stack = self.stack
        if refused := self._admit(transaction, kind, nest=nest):
            return refused
        if transaction.failed and stack.aborted_by is not transaction:
            return self._run_failed(transaction)
        if kind is Kind.READ and stack.below_top(transaction):
            return self._run_guarded(transaction, action)
        self._send(stack.enter(transaction, kind))
        if stack.poison:
            return Outcome.POISONED
        try:
            self._call(action, row)
        except RefusedError:
            if self.server.aborts:
                stack.fail(transaction)
            if finish:
                stack.abandon(transaction)
            return Outcome.REFUSED
        if finish:
            self._send(stack.commit(transaction))
        return Outcome.DONE

    def move(self, transaction: Transaction, kind: Kind, label: str, *, nest: bool) -> Outcome:
        stack = self.stack
        if refused := self._admit(transaction, kind, nest=nest):
            return refused
        if transaction.failed and kind is not Kind.ROLLBACK_TO:
            if stack.aborted_by is not transaction:
                return self._run_failed(transaction)
            return Outcome.REFUSED
        self._send(stack.enter(transaction, kind))
        if stack.poison:
            return Outcome.POISONED
        frame = transaction.frame(label)
        if kind is Kind.SAVEPOINT:
            self.server.control(stack.savepoint(transaction, label))
        elif frame is None:
            # No such savepoint: the server says so, and aborts.
            if self.server.aborts:
                stack.fail(transaction)
            with pytest.raises(RefusedError):
                self.server.fail()
            return Outcome.REFUSED
        elif kind is Kind.RELEASE:
            self.server.control(stack.release(transaction, frame))
        else:
            self.server.control(stack.rollback_to(transaction, frame))
        return Outcome.DONE

    def commit(self, transaction: Transaction) -> Outcome:
        if self.stack.blocker(transaction, Kind.COMMIT):
            return Outcome.WAITS
        self._send(self.stack.commit(transaction))
        return Outcome.DONE

    def rollback(self, transaction: Transaction) -> Outcome:
        if self.stack.blocker(transaction, Kind.ROLLBACK):
            return Outcome.WAITS
        self._send(self.stack.rollback(transaction))
        return Outcome.DONE

    def finish(self) -> None:
        self._send(self.stack.finish())

    def _admit(self, transaction: Transaction, kind: Kind, *, nest: bool) -> Outcome | None:
        if self.stack.poison:
            return Outcome.POISONED
        if self.stack.blocker(transaction, kind) and (transaction.frames or not nest):
            return Outcome.WAITS
        return None

    def _run_failed(self, transaction: Transaction) -> Outcome:
        guard = self._guard(transaction)
        if self.server.aborts:
            with pytest.raises(RefusedError):
                self.server.fail()
        self._send(self.stack.undo_guard(guard))
        return Outcome.REFUSED

    def _run_guarded(self, transaction: Transaction, action: str) -> Outcome:
        guard = self._guard(transaction)
        if self.stack.poison:
            return Outcome.POISONED
        try:
            self._call(action, 0)
        except RefusedError:
            transaction.failed = self.server.aborts
            self._send(self.stack.undo_guard(guard))
            return Outcome.REFUSED
        return Outcome.DONE

    def _guard(self, transaction: Transaction) -> Frame:
        self._send(self.stack.settle(transaction))
        sql, guard = self.stack.guard()
        self._send(sql)
        return guard

    def _call(self, action: str, row: int) -> None:
        if action == "read":
            self.seen = self.server.read()
        elif action == "write":
            self.server.write(row)
        else:
            self.server.fail()

    def _send(self, statements: list[str]) -> None:
        for sql in statements:
            self.server.control(sql)


# --- the model -------------------------------------------------------------------------------


@dataclass(eq=False)
class Row:
    number: int
    writer: Client
    gone: bool = False
    doomed: bool = False
    """It will be undone, and nobody says when: its transaction has failed or was left behind."""


@dataclass(eq=False)
class Client:
    """One application transaction, as the application knows it."""

    transaction: Transaction
    rows: list[Row] = field(default_factory=list)
    savepoints: list[tuple[str, int]] = field(default_factory=list)
    failed: bool = False

    def innermost(self, label: str) -> int | None:
        for position in range(len(self.savepoints) - 1, -1, -1):
            if self.savepoints[position][0] == label:
                return position
        return None

    def undo_from(self, start: int) -> None:
        for row in self.rows[start:]:
            row.gone = True
        del self.rows[start:]

    def fail(self, *, at_once: bool) -> None:
        """What was done since the last savepoint is lost."""
        self.failed = True
        start = self.savepoints[-1][1] if self.savepoints else 0
        if at_once:
            self.undo_from(start)
        else:
            self.doom(start)

    def doom(self, start: int = 0) -> None:
        for row in self.rows[start:]:
            row.doomed = True


Step = tuple[int, str, int, bool]
"""Which client, which action, a number that tells more, whether a new transaction nests."""

ACTIONS = (
    *("write",) * 5,
    *("read",) * 3,
    "call",
    *("commit",) * 4,
    *("rollback",) * 3,
    *("savepoint",) * 3,
    *("rollback to",) * 3,
    *("release",) * 2,
    *("fail", "fail reading", "abandon", "autocommit", "autocommit fails"),
)
LABELS = ("a", "b")
# "call": what READ ONLY allows and nobody can tell from a write, as a function of one's own.
_STATEMENTS = {
    "write": (Kind.WRITE, "write"),
    "autocommit": (Kind.WRITE, "write"),
    "autocommit fails": (Kind.WRITE, "fail"),
    "read": (Kind.READ, "read"),
    "call": (Kind.WRITE, "read"),
    "fail": (Kind.WRITE, "fail"),
    "fail reading": (Kind.READ, "fail"),
}
_MOVES = {
    "savepoint": Kind.SAVEPOINT,
    "rollback to": Kind.ROLLBACK_TO,
    "release": Kind.RELEASE,
}


class Run:
    """One schedule, applied step by step to a server and to the model, and compared."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.shell = Shell(server)
        self.rows: list[Row] = []
        self.open: dict[int, Client] = {}
        self.left: list[Client] = []
        self.tried: set[Transaction] = set()
        """Where a failure undoes the statement alone, nobody can tell what is left of it."""
        self.number = 0
        self.poisoned = False
        self.outcomes: Counter[str] = Counter()

    def step(self, step: Step) -> None:
        who, name, more, nest = step
        client = self.open.get(who)
        if name.startswith("autocommit"):
            if client is None:
                self._statement(Client(Transaction()), name, nest=nest, finish=True)
        elif name in {"commit", "rollback", "abandon"}:
            if client is not None:
                self._end(who, client, name)
        else:
            if client is None:
                client = Client(Transaction(read_only=self.server.aborts and more % 7 == 0))
            if name == "call" and not client.transaction.read_only:
                return
            if name in _MOVES:
                label = self._label(client, name, more)
                if label is None:
                    return
                outcome = self._move(client, name, label, nest=nest)
            else:
                outcome = self._statement(client, name, nest=nest)
            if outcome in {Outcome.DONE, Outcome.REFUSED}:
                self.open[who] = client
        self.compare()

    def end(self) -> None:
        """Everybody leaves; a newcomer must see what was committed, and nothing else."""
        for client in self.open.values():
            self.shell.stack.abandon(client.transaction)
        for client in (*self.open.values(), *self.left):
            client.undo_from(0)
        self.left.clear()
        self.open.clear()
        last = Client(Transaction())
        outcome = self._statement(last, "read", nest=True)
        if self.poisoned or self.shell.stack.poison:
            assert outcome is Outcome.POISONED
        else:
            assert outcome is Outcome.DONE
            self.compare()
            named = [frame for frame in self.shell.stack.frames if frame.name]
            assert len(named) <= 1, "savepoints of those who left are still there"
            if isinstance(self.server, Simulated):
                assert self.server.depth == len(named) + 1  # and the marker
        self.shell.finish()
        assert not self.server.aborted
        assert self.server.rows() == [], "something was committed for good"

    # -- steps --------------------------------------------------------------------------------

    def _statement(self, client: Client, name: str, *, nest: bool, finish: bool = False) -> Outcome:
        kind, action = _STATEMENTS[name]
        transaction = client.transaction
        below = self.shell.stack.below_top(transaction)
        self.number += 1
        outcome = self.shell.run(transaction, kind, action, self.number, finish=finish, nest=nest)
        self._count(name, outcome)
        if outcome is Outcome.DONE:
            assert not client.failed, "a failed transaction went on"
            if action == "write":
                assert not transaction.read_only
                row = Row(self.number, client)
                client.rows.append(row)
                self.rows.append(row)
            else:
                self._check_read(self.shell.seen)
        elif outcome is Outcome.REFUSED:
            assert client.failed or action == "fail" or transaction.read_only
            if kind is Kind.WRITE and not self.server.aborts:
                self.tried.add(transaction)
            if finish:
                client.undo_from(0)
            elif self.server.aborts and not client.failed:
                client.fail(at_once=kind is not Kind.READ or not below)
        assert transaction.failed == client.failed or finish
        return outcome

    def _move(self, client: Client, name: str, label: str, *, nest: bool) -> Outcome:
        kind = _MOVES[name]
        found = client.innermost(label)
        outcome = self.shell.move(client.transaction, kind, label, nest=nest)
        self._count(name, outcome)
        if outcome is Outcome.REFUSED:
            assert client.failed or (found is None and kind is not Kind.SAVEPOINT)
            if self.server.aborts and not client.failed:
                client.fail(at_once=True)
        elif outcome is Outcome.DONE:
            if kind is Kind.SAVEPOINT:
                client.savepoints.append((label, len(client.rows)))
            else:
                assert found is not None
                if kind is Kind.ROLLBACK_TO:
                    client.undo_from(client.savepoints[found][1])
                    client.failed = False
                    found += 1
                del client.savepoints[found:]
        return outcome

    def _label(self, client: Client, name: str, more: int) -> str | None:
        """Mostly a savepoint that there is; now and then one that there is not."""
        if name == "savepoint" or more == 0:
            return LABELS[more % len(LABELS)]
        if not client.savepoints:
            return None
        return client.savepoints[more % len(client.savepoints)][0]

    def _end(self, who: int, client: Client, name: str) -> None:
        if name == "abandon":
            self.shell.stack.abandon(client.transaction)
            self.left.append(client)
            client.doom()
            outcome = Outcome.DONE
        elif name == "commit":
            outcome = self.shell.commit(client.transaction)
        else:
            outcome = self.shell.rollback(client.transaction)
        self._count(name, outcome)
        if outcome is Outcome.DONE:
            del self.open[who]
            if name == "rollback" or (name == "commit" and client.failed):
                client.undo_from(0)

    def _count(self, name: str, outcome: Outcome) -> None:
        self.outcomes[name if outcome is Outcome.DONE else outcome.value] += 1

    # -- the law ------------------------------------------------------------------------------

    def compare(self) -> None:
        shown = self.server.rows()
        if shown is not None:
            self._check_read(shown)

    def _check_read(self, shown: list[int]) -> None:
        held = [row for row in self.rows if not row.gone]
        alive = {row.number for row in held}
        assert shown == [number for number in shown if number in alive], "undone work survives"
        missing = [row for row in held if row.number not in set(shown)]
        lost = {row.writer.transaction for row in missing if not row.doomed}
        poison = self.shell.stack.poison
        if not self.poisoned:
            named = set(poison.victims) if poison else set()
            assert lost <= named <= lost | self.tried
            self.poisoned = poison is not None
        for row in missing:
            row.gone = True


def play(server: Server, schedule: list[Step]) -> Run:
    run = Run(server)
    for step in schedule:
        run.step(step)
    run.end()
    return run


def random_schedule(chance: random.Random, length: int) -> list[Step]:
    clients = chance.randint(1, 5)
    return [
        (
            chance.randrange(clients),
            chance.choice(ACTIONS),
            chance.randrange(14),
            chance.random() < 0.7,
        )
        for _ in range(length)
    ]

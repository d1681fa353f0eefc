"""What a COMMIT does beyond the RELEASE of a savepoint.

At the application's outermost commit, and each thing only where the schema or the transaction asks
for it: deferred constraints are checked and deferred triggers fire, cursors without HOLD close,
tables made ON COMMIT DROP are dropped, locks are released, notifications are delivered. Settings
revert without being asked (:mod:`sandbox.core.settings`).

Source: PostgreSQL's manual, COMMIT, SET CONSTRAINTS, DECLARE, CREATE TABLE, NOTIFY.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandbox.connection.context import read_own
from sandbox.connection.facts import QUERY, Facts, schema_version
from sandbox.core.effects import (
    AdvisoryLock,
    Close,
    Constraints,
    Cursor,
    Listen,
    Notify,
    TemporaryTable,
    Unlisten,
)
from sandbox.core.frames import Transaction
from sandbox.core.statements import Kind

if TYPE_CHECKING:
    from sandbox.connection.driver import IO
    from sandbox.connection.line import Line

__all__ = ("commit", "note_violations")


def commit(line: Line, io: IO, transaction: Transaction) -> None:
    """End the transaction as COMMIT would; whoever calls has the turn.

    Raises what the server says of a deferred constraint; the transaction is then rolled back.
    """
    stack = line.stack
    if transaction.failed or not line.driver.dialect.has_effects:
        line.send(io, stack.commit(transaction))
        return
    if names := stack.settings.uncommitted(transaction):
        read_own(line, io, transaction, names)
    if stack.wrote(transaction):
        _check_deferred(line, io, transaction)
        line.send(io, stack.commit(transaction))
        _clean_up(line, io, transaction)
    elif any(isinstance(effect, AdvisoryLock) for effect in transaction.effects):
        line.send(io, stack.let_go(transaction))
    else:
        line.send(io, stack.commit(transaction))
    if any(isinstance(effect, (Notify, Listen, Unlisten)) for effect in transaction.effects):
        line.sandbox.channels.commit(
            transaction.session, transaction.effects, line.pid, transaction.where
        )


# -- deferred constraints --------------------------------------------------------------------


def note_violations(line: Line, io: IO, transaction: Transaction) -> None:
    """Learn, before a transaction first writes, which deferred constraints others have violated.

    A check does not say whose row it is, and others that have written lie below on the same
    connection. They cannot write until this one has ended, so that what fails now is theirs and
    what fails at its commit is its own.
    """
    stack, facts = line.stack, line.physical.facts
    transaction.postponed = frozenset()
    if not facts.waiting and not facts.immediate:
        return
    if stack.others_at_work(transaction) is None:
        return
    line.send(io, stack.settle(transaction))
    violated: set[str] = set()
    while True:
        try:
            check = facts.check(frozenset(violated))
            line.try_out(io, stack.scratch(), check, undo=True)
        except Exception as error:
            if line.ended:
                raise
            name = line.driver.constraint(error)
            known = facts.waiting + facts.immediate
            # A trigger's own exception does not say which trigger it was.
            found = {name} if name in known and name not in violated else set(known)
            if not found - violated:
                raise
            violated |= found
        else:
            break
    transaction.postponed = frozenset(violated)
    if stack.constrained_by is not None:
        # Another has SET CONSTRAINTS, which is its own affair.
        stack.constrained_by = None
        line.try_out(io, stack.scratch(), facts.check(transaction.postponed))


def _check_deferred(line: Line, io: IO, transaction: Transaction) -> None:
    """Raise what the server says of the transaction's deferred constraints; it is then over."""
    stack = line.stack
    facts = _facts(line, io, transaction)
    if not facts.waiting and not any(isinstance(e, Constraints) for e in transaction.effects):
        return
    line.send(io, stack.settle(transaction))
    postponed = transaction.postponed or frozenset()
    check = facts.check(postponed)
    above = stack.writer_above(transaction)
    if above is not None and above.postponed is not None:
        # It could not write since, so that what that one found is all that it has violated.
        if not above.postponed - postponed:
            return
        check = facts.check_only(above.postponed - postponed)
    try:
        # In a savepoint, since others' work may lie above the transaction's own.
        line.try_out(io, stack.scratch(), check)
    except BaseException:
        if not line.ended:
            _undo(line, io, transaction)
        raise


def _facts(line: Line, io: IO, transaction: Transaction) -> Facts:
    physical = line.physical
    if line.schema_changed:
        line.send(io, line.stack.settle(transaction))
        rows = line.ask(io, QUERY)
        physical.facts = Facts.read(rows, schema_version())
        line.schema_changed = False
    return physical.facts


def _undo(line: Line, io: IO, transaction: Transaction) -> None:
    """What fails to commit is rolled back, at once or as soon as those above it have ended."""
    stack = line.stack
    if stack.below_top(transaction):
        stack.abandon(transaction)
        transaction.over = True
    else:
        line.send(io, stack.rollback(transaction))


# -- what ends with the transaction ----------------------------------------------------------------


def _clean_up(line: Line, io: IO, transaction: Transaction) -> None:
    cursors: dict[str, None] = {}
    tables: list[str] = []
    session = transaction.session
    for effect in transaction.effects:
        match effect:
            case Cursor(name):
                cursors[name] = None
            case Close(None):
                cursors.clear()
            case Close(str(name)):
                cursors.pop(name, None)
            case TemporaryTable(name, drop=True):
                tables.append(f"DROP TABLE IF EXISTS pg_temp.{name} CASCADE")
            case TemporaryTable(name):
                session.emptied.append(f"DELETE FROM pg_temp.{name}")
    for name in cursors:
        quoted = '"' + name.replace('"', '""') + '"'
        line.attempt(io, f"CLOSE {quoted}")
    if not tables and not session.emptied:
        return
    # As the server itself, whatever role or access mode the transaction had.
    alone = Transaction(place=f"the end of {transaction.where}", thread=transaction.thread)
    line.send(io, line.stack.enter(alone, Kind.WRITE) + tables)
    for statement in list(session.emptied):
        # The table may have been dropped, or rolled back by whoever this one nested in.
        if not line.attempt(io, statement):
            session.emptied.remove(statement)
    line.send(io, line.stack.commit(alone))

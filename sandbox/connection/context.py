"""What each transaction finds as its own although others share the connection: settings and time.

The decisions are those of :mod:`sandbox.core.settings`; here is what has to be asked of the server
for them, before and after the application's statements. Whoever calls has the connection's turn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandbox.core.clock import REAL, refuse_unless_follows, warn_unfollowed
from sandbox.core.effects import AdvisoryLock, Constraints, Effect, ReadsClock, Setting
from sandbox.errors import UnsupportedInSandboxError

if TYPE_CHECKING:
    from sandbox.connection.driver import IO
    from sandbox.connection.line import Line
    from sandbox.connection.sandbox import Sandbox
    from sandbox.core.frames import Transaction
    from sandbox.core.statements import Statement

__all__ = ("after", "before", "check_clock", "read_others", "read_own", "reading")


def reading(sandbox: Sandbox, first: bool) -> str:
    """What time it is for a transaction that begins now; empty: the outer one's own."""
    clock = sandbox.clock
    if clock is None:
        return "" if first else REAL.reading()
    return clock.reading()


def check_clock(line: Line, transaction: Transaction, statement: Statement) -> None:
    """Notice that the sandbox has another clock; raise, or warn, where it cannot be followed."""
    clock = line.sandbox.clock
    if line.stack.clock is not clock:
        if clock is not None:
            facts, title = line.physical.facts, line.driver.dialect.title
            refuse_unless_follows(facts.clock, title, line.sandbox.name)
        line.stack.clock = clock
    if clock is not None and any(isinstance(e, ReadsClock) for e in statement.effects):
        warn_unfollowed(line.sandbox, transaction.where, statement.text)


def read_others(line: Line, io: IO, transaction: Transaction) -> None:
    """Learn what another has SET before its values are replaced."""
    settings = line.stack.settings
    if settings.unread(transaction):
        line.send(io, line.stack.settle(transaction))
        if names := settings.unread(transaction):
            settings.read(names, _values(line, io, names))


def read_own(line: Line, io: IO, transaction: Transaction, names: list[str]) -> None:
    """Learn what the transaction itself has SET."""
    read_others(line, io, transaction)
    line.send(io, line.stack.settle(transaction) + line.stack.own_settings(transaction))
    line.stack.settings.read(names, _values(line, io, names))


def _values(line: Line, io: IO, names: list[str]) -> list[str | None]:
    calls = ", ".join(f"pg_catalog.current_setting({_quoted(name)}, true)" for name in names)
    return list(line.ask(io, f"SELECT {calls}")[0])


def before(line: Line, io: IO, transaction: Transaction, effects: tuple[Effect, ...]) -> None:
    """Learn what this statement is going to overwrite; it has not been sent yet."""
    if not line.driver.dialect.has_effects:
        return
    for effect in effects:
        if not isinstance(effect, Setting) or effect.everything:
            continue
        if effect.name is None:
            raise UnsupportedInSandboxError(
                f"{transaction.where} calls set_config() with a name that only the server can"
                f" evaluate, so that {line.sandbox.label} cannot end the setting with its"
                f" transaction. The statement was not sent. Give the name as a literal or as a"
                f" parameter, or run the test in a database of its own"
                f' (isolation="database").'
            )
        name = str(effect.name)
        if line.stack.settings.unknown(transaction, name):
            (value,) = _values(line, io, [name])
            line.stack.settings.learn(transaction, name, value or "")


def after(line: Line, transaction: Transaction, effects: tuple[Effect, ...]) -> None:
    """Note what has begun now and ends with the transaction."""
    if not effects or not line.driver.dialect.has_effects:
        return
    for effect in effects:
        if isinstance(effect, Setting):
            if effect.everything:
                line.stack.settings.all_changed(transaction)
                line.marker = None  # it is reset with everything else, and proves nothing any more
            else:
                line.stack.settings.changed(
                    transaction,
                    str(effect.name),
                    local=bool(effect.local),
                    value=str(effect.value) if effect.value is not None else None,
                )
        elif isinstance(effect, AdvisoryLock) and effect.session:
            line.session_locks = True
        elif isinstance(effect, Constraints):
            line.stack.constrained_by = transaction
            transaction.effects.append(effect)
        else:
            transaction.effects.append(effect)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"

"""Settings of many sessions on one real connection.

Each application transaction sees what it would see on a connection of its own: what it has SET
LOCAL, what its connection has SET, and otherwise what the server began with. On the one connection
there is one value for each setting at a time; it is exchanged when another transaction goes on.

The server undoes settings with savepoints, so that each frame remembers what there was below it.
A value that the server computed is read only if somebody else needs the connection meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sandbox.core.frames import Frame, Transaction

__all__ = ("NOW", "Own", "Settings")

NOW: Final = "sandbox.now"
"""The setting that the clock of a sandbox's database reads."""


@dataclass(slots=True)
class Own:
    """What a transaction has set by itself."""

    value: str | None
    """None: on the server, and not yet read from there."""
    local: bool
    before: str | None = None
    """What it had SET for its session before it SET LOCAL over it."""


class Settings:
    """The settings that anybody has changed on one real connection.

    Not thread-safe: the owner of the connection's mutex calls it.
    """

    __slots__ = ("_base", "_current", "_user")

    def __init__(self) -> None:
        self._base: dict[str, str] = {NOW: ""}
        self._current: dict[str, str | None] = {NOW: ""}
        self._user: Transaction | None = None
        """Whose values the current ones are."""

    # -- before and after a statement that sets -----------------------------------------------

    def unknown(self, transaction: Transaction, name: str) -> bool:
        """Whether the present value must be read before a statement overwrites it."""
        if name not in self._base:
            return True
        own = transaction.settings.get(name)
        return own is not None and own.value is None and not own.local

    def learn(self, transaction: Transaction, name: str, value: str) -> None:
        """The value that was read: the server's own, or what the application has set."""
        self._current[name] = value
        if name not in self._base:
            self._base[name] = value
        else:
            transaction.settings[name].value = value

    def suppose(self, base: dict[str, str]) -> None:
        """What is known of the server's own values before anything has begun."""
        self._base.update(base)
        self._current.update(base)

    def changed(
        self, transaction: Transaction, name: str, *, local: bool, value: str | None = None
    ) -> None:
        """The transaction, which is on top, has set it; to what, if its text says so."""
        own = transaction.settings.get(name)
        before = None
        if local and own is not None:
            before = own.before if own.local else own.value
        transaction.settings[name] = Own(value, local, before)
        self._current[name] = value
        self._user = transaction

    def all_changed(self, transaction: Transaction) -> None:
        """RESET ALL, which leaves out who one is."""
        for name in self._base:
            if name not in {NOW, "role", "session_authorization"}:
                self.changed(transaction, name, local=False)

    # -- when another transaction goes on --------------------------------------------------------

    def unread(self, transaction: Transaction) -> list[str]:
        """What must be read before this transaction's values replace another's."""
        user = self._user
        if user is None or user is transaction or user.over or not user.settings:
            return []
        return [name for name, own in user.settings.items() if own.value is None]

    def uncommitted(self, transaction: Transaction) -> list[str]:
        """What must be read before the transaction commits: its session is to keep it."""
        return [
            name
            for name, own in transaction.settings.items()
            if own.value is None and not own.local
        ]

    def unread_by_anybody(self) -> bool:
        """Whether some value is only on the server."""
        return None in self._current.values()

    def read(self, names: Iterable[str], values: Iterable[str | None]) -> None:
        """The values of those names, as read from the server."""
        user = self._user
        assert user is not None
        for name, value in zip(names, values, strict=True):
            self._current[name] = user.settings[name].value = value or ""

    def switch(self, transaction: Transaction, *, timed: bool = True) -> list[str]:
        """What to send so that the transaction, now on top, finds its own values.

        Without ``timed`` its time is left as it is if that is all there would be to send.
        """
        if len(self._base) == 1:
            # Nobody has set anything but the clock, if that.
            self._user = transaction
            if (transaction.now or "") == self._current[NOW]:
                return []
        changes = []
        for name, value in self._current.items():
            wanted = self._wanted(transaction, name)
            if wanted is not None and wanted != value:
                changes.append((name, wanted))
        if not timed and [name for name, _ in changes] == [NOW]:
            changes.clear()
        for name, wanted in changes:
            self._current[name] = wanted
        self._user = transaction
        if not changes:
            return []
        calls = ", ".join(
            f"pg_catalog.set_config({_quoted(name)}, {_quoted(value)}, true)"
            for name, value in changes
        )
        return [f"SELECT {calls}"]

    # -- savepoints ---------------------------------------------------------------------------

    def snapshot(self) -> dict[str, str | None]:
        """What a rollback to a savepoint made now brings back."""
        return dict(self._current)

    def back_to(self, frame: Frame) -> None:
        """The server has gone back to that savepoint, or to before the outer transaction."""
        for name, base in self._base.items():
            self._current[name] = frame.settings.get(name, base)

    def restart(self) -> None:
        """The outer transaction was rolled back."""
        self._current = dict(self._base)

    def commit(self, transaction: Transaction) -> None:
        """What it has SET is now its session's; what it has SET LOCAL is over."""
        for name, own in transaction.settings.items():
            if not own.local:
                transaction.session.settings[name] = own.value or ""
            elif own.before is not None:
                transaction.session.settings[name] = own.before

    # -- values ----------------------------------------------------------------------------------

    def _wanted(self, transaction: Transaction, name: str) -> str | None:
        """None: what is there, since it is the transaction's own."""
        if name == NOW:
            return transaction.now or ""
        own = transaction.settings.get(name)
        if own is not None:
            return own.value
        session = transaction.session.settings
        return session[name] if name in session else self._base[name]


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'" if "\\" not in text else _escaped(text)


def _escaped(text: str) -> str:
    return " E'" + text.replace("\\", "\\\\").replace("'", "''") + "'"

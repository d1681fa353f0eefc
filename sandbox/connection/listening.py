"""Virtual connections that can be notified: what their drivers' faces have in common."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any

from sandbox.connection.shared import SharedConnection
from sandbox.connection.virtual import VirtualConnection
from sandbox.core.ownership import PASS_THROUGH

if TYPE_CHECKING:
    from collections.abc import Generator

    from sandbox.connection.channels import Inbox, Notification

__all__ = ("ListeningConnection", "Reading")


class ListeningConnection(VirtualConnection):
    """To be told of notifications by the sandbox, or by the real connection outside of one."""

    _attentive: bool = False
    """Somebody is to be told without asking: a handler, a list, a waiting thread."""

    def _listens(self, *, anew: bool = False) -> Inbox | None:
        """Its inbox in the caller's sandbox; None where it passes through. May do I/O.

        OwnerExitedError where that in which it listened has ended, rather than to hear nothing
        for ever; with ``anew`` it begins again.
        """
        self._check_open()
        before, session = self._memory
        if self._attentive and not anew and before is not None and session is not None:
            sandbox = before.sandbox
            if sandbox.closed:
                sandbox.channels.inbox(session).check_open()
        target = self._target
        if target is None:
            found = self._source.find()
            if found is PASS_THROUGH:
                return None
            target = found.connection(self._source)
        elif not isinstance(target, SharedConnection):
            return None
        self._attentive = True
        return target.sandbox.channels.inbox(self._server_session(target))

    def _passes_through(self) -> bool:
        """The same question, for what needs no inbox yet: no I/O."""
        if self._target is not None:
            return not isinstance(self._target, SharedConnection)
        return self._source.find() is PASS_THROUGH

    def _unread(self, inbox: Inbox) -> list[Notification]:
        """What has come: nothing in a transaction, as the server would have it."""
        self._check_open()
        inbox.check_open()
        return [] if self._transaction is not None else inbox.take()

    def fileno(self) -> int:
        """What select() waits for, readable when a notification has come."""
        inbox = self._listens()
        return inbox.fileno() if inbox is not None else int(self._any_real().fileno())

    def _tell(self, inbox: Inbox) -> None:
        """Between two transactions: pass on what has come to whom the application has named."""

    def _between(self) -> Inbox | None:
        """The inbox, if this is a moment at which the server would send what has come."""
        target, session = self._memory
        if session is None or target is None or self._closed or self._transaction is not None:
            return None
        inbox: Inbox = target.sandbox.channels.inbox(session)
        return None if inbox.closed else inbox

    # -- the life of a connection --------------------------------------------------------------

    def _unbind(self) -> None:
        super()._unbind()
        session = self._memory[1]
        if self._attentive or (session is not None and session.channels):
            inbox = self._between()
            if inbox is not None:
                inbox.stir()
                self._tell(inbox)

    def _lent_again(self) -> None:
        super()._lent_again()
        if self._attentive and self._memory[0] is not None and self._memory[0].closed:
            self._memory = (None, None)

    def _leave(self, *, wait: bool) -> None:
        super()._leave(wait=wait)
        target, session = self._memory
        if session is not None and target is not None and (session.channels or self._attentive):
            target.sandbox.channels.forget(session)


class Reading:
    """Notifications as psycopg's ``notifies()`` yields them: in batches, until it is enough.

    Use: ``for`` each batch of :meth:`batches`; one that is empty says to wait for ``bell``.
    """

    def __init__(
        self,
        connection: ListeningConnection,
        inbox: Inbox,
        timeout: float | None,
        enough: int | None,
    ) -> None:
        self._connection = connection
        self._inbox = inbox
        self._deadline = time.monotonic() + timeout if timeout is not None else None
        self._enough = enough
        self._seen = 0

    def batches(self) -> Generator[deque[Notification], None, None]:
        """What has come at each look, perhaps nothing; what is not taken out is kept."""
        received = 0
        while True:
            self._seen = self._inbox.stirred
            batch = deque(self._connection._unread(self._inbox))
            received += len(batch)
            try:
                yield batch
            finally:
                self._inbox.put_back(batch)
            # Only now, so that no time at all is enough for one look.
            if self._enough is not None and received >= self._enough:
                return
            if self._deadline is not None and time.monotonic() > self._deadline:
                return

    @property
    def remaining(self) -> float | None:
        """Seconds left to wait."""
        return max(0.0, self._deadline - time.monotonic()) if self._deadline is not None else None

    def bell(self) -> Any:
        """A context manager: the lock to wait for, at most for what remains."""
        return self._inbox.bell(self._seen)

"""NOTIFY and LISTEN among the connections of one sandbox.

The server sends notifications when a transaction commits, and a sandbox never does. So what an
application commits is delivered here: at its outermost commit, to every connection of the same
sandbox that listens. Nothing leaves the sandbox.

Source: PostgreSQL's manual, the pages of NOTIFY, LISTEN and UNLISTEN.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import warnings
import weakref
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sandbox.connection.mutex import Mutex
from sandbox.core.effects import Listen, Notify, Unlisten
from sandbox.errors import OwnerExitedError, UndeliveredNotificationWarning

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sandbox.core.effects import Effect
    from sandbox.core.session import ServerSession

__all__ = ("Channels", "Inbox", "Notification")


@dataclass(frozen=True, slots=True)
class Notification:
    """What a listener gets."""

    channel: str
    payload: str
    pid: int
    """Of the sender's server process: within a sandbox everybody's is the same."""


class Inbox:
    """What one connection has been sent and has not read yet.

    Any thread or task may put, take and wait at once. Who puts is never held up.
    """

    def __init__(self, label: str) -> None:
        self.extra: dict[str, Any] = {}
        """What the driver's face keeps with it: handlers, callbacks, a list."""
        self._label = label
        # Of one thread more than once: garbage that is collected here may close this very inbox.
        self._lock = threading.RLock()
        self._unread: deque[Notification] = deque()
        self._bells: list[Mutex] = []
        self._stirred = 0
        self._on_change: weakref.WeakMethod[Callable[[], object]] | None = None
        self._sockets: tuple[socket.socket, socket.socket] | None = None
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether the sandbox or the connection has ended: nothing will come any more."""
        return self._closed

    def check_open(self) -> None:
        """Raise OwnerExitedError after the check-in."""
        if self._closed:
            raise OwnerExitedError(
                f"{self._label} has ended, and with it the notifications of its sandbox. Let"
                f" listeners end before the test does."
            )

    def put(self, notifications: Sequence[Notification]) -> None:
        """Add to what is unread and wake everybody who waits."""
        with self._lock:
            if self._closed:
                return
            self._unread.extend(notifications)
        self.stir()

    def take(self) -> list[Notification]:
        """Everything that is unread, in the order it was committed."""
        with self._lock:
            taken = list(self._unread)
            self._unread.clear()
            self._drain_socket()
            return taken

    def put_back(self, notifications: Sequence[Notification]) -> None:
        """Those that were taken and not used come first again."""
        with self._lock:
            self._unread.extendleft(reversed(notifications))
            if self._unread:
                self._ring_socket()

    def hand_out(self, give: Callable[[Notification], object]) -> None:
        """Take all and give each away, one caller at a time; ``give`` must not come back here."""
        with self._lock:
            while self._unread:
                give(self._unread.popleft())

    # -- waiting -----------------------------------------------------------------------------

    @property
    def stirred(self) -> int:
        """Another number after each change that a waiter should look at."""
        return self._stirred

    @contextmanager
    def bell(self, seen: int) -> Iterator[Mutex]:
        """A lock that comes free when there has been a change since ``stirred`` was ``seen``.

        The caller waits for it in its own way, as a thread or as a task.
        """
        bell = Mutex()
        bell.acquire(0)
        with self._lock:
            if self._stirred != seen or self._closed:
                bell.release()
            else:
                self._bells.append(bell)
        try:
            yield bell
        finally:
            with self._lock, contextlib.suppress(ValueError):  # it was rung
                self._bells.remove(bell)

    def on_change(self, call: Callable[[], object]) -> None:
        """Call this after each change, in the thread that made it; it must neither wait nor raise.

        A bound method, and its object is not kept alive.
        """
        self._on_change = weakref.WeakMethod(call)

    def fileno(self) -> int:
        """A socket for select() that can be read from while there is something unread."""
        with self._lock:
            if self._sockets is None:
                self._sockets = ours, theirs = socket.socketpair()
                for end in self._sockets:
                    end.setblocking(False)
                # Whoever selects may outlive us; sockets complain when nobody closes them.
                weakref.finalize(self, _close, ours, theirs)
                if self._unread or self._closed:
                    self._ring_socket()
            return self._sockets[0].fileno()

    def hush(self) -> None:
        """Make the socket quiet until the next change, although something is unread."""
        with self._lock:
            self._drain_socket()

    def stir(self) -> None:
        """Let everybody who waits look again."""
        with self._lock:
            self._stirred += 1
            bells, self._bells = self._bells, []
            if self._unread:
                self._ring_socket()
        for bell in bells:
            bell.release()
        call = self._on_change() if self._on_change is not None else None
        if call is not None:
            call()

    def close(self) -> None:
        """Drop what is unread; who waits wakes up and finds it closed."""
        with self._lock:
            self._closed = True
            self._unread.clear()
            if self._sockets is not None:
                self._ring_socket()
        self.stir()

    def _ring_socket(self) -> None:
        if self._sockets is not None:
            with contextlib.suppress(OSError):  # full: it can be read from
                self._sockets[1].send(b"!")

    def _drain_socket(self) -> None:
        if self._sockets is not None and not self._closed:
            with contextlib.suppress(OSError):  # empty
                while self._sockets[0].recv(4096):
                    pass


def _close(*sockets: socket.socket) -> None:
    for each in sockets:
        each.close()


_told: set[str] = set()
"""Channels of which this process has said that nobody heard them."""


class Channels:
    """Who listens to what in one sandbox. Callable from any thread or task; never waits."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._lock = threading.Lock()
        self._inboxes: dict[ServerSession, Inbox] = {}
        self._left: deque[ServerSession] = deque()
        self._closed = False

    def inbox(self, session: ServerSession) -> Inbox:
        """The inbox of a connection; a closed one after the check-in."""
        self._sweep()
        with self._lock:
            return self._inbox(session)

    def commit(
        self, session: ServerSession, effects: Sequence[Effect], pid: int, where: str = ""
    ) -> None:
        """Do what a transaction's LISTEN, UNLISTEN and NOTIFY do when it has committed.

        What nobody in the sandbox hears is warned about, once for each channel and process.
        """
        sent: dict[Notification, None] = {}
        unknown = False
        self._sweep()
        with self._lock:
            for effect in effects:
                match effect:
                    case Listen(channel):
                        session.channels.add(channel)
                        self._inbox(session)
                    case Unlisten(None):
                        session.channels.clear()
                    case Unlisten(str(channel)):
                        session.channels.discard(channel)
                    case Notify(str(channel), str(payload)):
                        sent[Notification(channel, payload, pid)] = None
                    case Notify():
                        unknown = True
            heard = [
                (inbox, [each for each in sent if each.channel in listener.channels])
                for listener, inbox in self._inboxes.items()
            ]
        for inbox, notifications in heard:
            if notifications:
                inbox.put(notifications)
        channels = dict.fromkeys(each.channel for each in sent)
        for channel in channels:
            if not any(each.channel == channel for _, some in heard for each in some):
                self._warn_unheard(channel, where)
        if unknown:
            self._warn_unknown(where)

    def forget(self, session: ServerSession) -> None:
        """Its connection was closed, perhaps by the garbage collector: no waiting."""
        self._left.append(session)
        self._sweep()

    def close(self) -> None:
        """The sandbox is checked in: nobody hears anything any more, and who waits wakes up."""
        with self._lock:
            self._closed = True
            inboxes, self._inboxes = self._inboxes, {}
        for session, inbox in inboxes.items():
            session.channels.clear()
            inbox.close()

    def _inbox(self, session: ServerSession) -> Inbox:
        inbox = self._inboxes.get(session)
        if inbox is None:
            inbox = Inbox(self._label)
            if self._closed:
                inbox.close()
            else:
                self._inboxes[session] = inbox
        return inbox

    def _sweep(self) -> None:
        """Close the inboxes of those who left, now or, if somebody is at work here, later."""
        closing: list[Inbox] = []
        if self._left and self._lock.acquire(blocking=False):
            try:
                while self._left:
                    session = self._left.popleft()
                    session.channels.clear()
                    if (inbox := self._inboxes.pop(session, None)) is not None:
                        closing.append(inbox)
            finally:
                self._lock.release()
        for inbox in closing:
            inbox.close()

    def _warn_unheard(self, channel: str, where: str) -> None:
        if channel in _told:
            return
        self._warn(
            f"NOTIFY {channel} was not heard: {where or 'a transaction'} of {self._label} committed"
            f" it, and nobody in its sandbox listens. Listeners outside, such as another process"
            f" or a connection that does not come from a sandboxed engine, are never told, since"
            f" nothing is committed. Listen through the application's own engine, or give the test"
            f' a database of its own (isolation="database").'
        )
        # Only now: where warnings are errors, each test is to fail, not just the first.
        _told.add(channel)

    def _warn_unknown(self, where: str) -> None:
        self._warn(
            f"NOTIFY was not delivered: {where or 'a transaction'} of {self._label} called"
            f" pg_notify() with a channel or a payload that only the server can evaluate. Give both"
            f" as literals or as parameters, or give the test a database of its own"
            f' (isolation="database").'
        )

    @staticmethod
    def _warn(message: str) -> None:
        warnings.warn(
            f"{message} See docs/reference/errors.md#undeliverednotificationwarning",
            UndeliveredNotificationWarning,
            stacklevel=3,
        )

"""One lock for the threads and the tasks that share a real connection.

A real connection serves one statement at a time, and those who want it may be plain threads
and tasks of several event loops at once. Neither ``threading.Lock`` (blocks the loop, unfair)
nor ``asyncio.Lock`` (one loop only) serves both.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from enum import Enum

__all__ = ("Mutex",)


class _State(Enum):
    WAITING = 1
    """In the queue."""
    GRANTED = 2
    """Out of the queue, and the lock is its own."""
    GONE = 3
    """Out of the queue without the lock."""


def _runs_here(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


class _ThreadWaiter:
    __slots__ = ("parked", "state")

    def __init__(self) -> None:
        self.state = _State.WAITING
        self.parked = threading.Lock()
        self.parked.acquire()


class _TaskWaiter:
    __slots__ = ("called", "future", "loop", "state")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.state = _State.WAITING
        self.loop = loop
        self.future: asyncio.Future[bool] = loop.create_future()
        self.called = False


class Mutex:
    """Mutual exclusion, first come first served, among threads and tasks of any event loop.

    Not re-entrant. Anyone may release, also another thread or loop than acquired. The lock is
    handed over: it never comes free while somebody can take it, so nobody overtakes. A waiter
    whose loop does not run keeps its place but holds nobody up; one whose loop was closed is
    forgotten. Interrupting or cancelling a waiter never loses the lock: if it had just been
    handed over, it goes to the next.

    ``acquire`` in the thread of a running loop blocks that loop, and with it any task of the
    loop that holds the mutex. No method may be called from a finalizer (``__del__``): it could
    run in the middle of another call.
    """

    __slots__ = ("__weakref__", "_guard", "_heir", "_lock", "_waiters")

    def __init__(self) -> None:
        # Taken without the guard, given back only under it: it is free only while nobody who
        # could take it waits, and then the first who comes needs no queue.
        self._lock = threading.Lock()
        # Over everything below. Held for a few instructions, never across a wait.
        self._guard = threading.Lock()
        self._waiters: deque[_ThreadWaiter | _TaskWaiter] = deque()
        # The task that was handed the lock and has not run since.
        self._heir: _TaskWaiter | None = None

    @property
    def locked(self) -> bool:
        """Whether somebody holds it at this moment."""
        return self._lock.locked()

    @property
    def waiting(self) -> int:
        """How many stand in the queue at this moment."""
        return len(self._waiters)

    def __repr__(self) -> str:
        state = "locked" if self.locked else "free"
        return f"<{type(self).__name__} {state}, {self.waiting} waiting>"

    def acquire(self, timeout: float | None = None) -> bool:
        """Take it, blocking the thread for at most ``timeout`` seconds; whether it was taken.

        Zero or less asks without waiting.
        """
        if self._lock.acquire(False):
            return True
        if timeout is not None and timeout <= 0:
            return False
        patience = -1 if timeout is None else min(timeout, threading.TIMEOUT_MAX)
        waiter = _ThreadWaiter()
        try:
            if self._enters_at_once(waiter) or waiter.parked.acquire(timeout=patience):
                return True
            return not self._gives_up(waiter)
        except BaseException:  # KeyboardInterrupt can strike anywhere in here
            self._abandon(waiter)
            raise

    async def acquire_async(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109
        """Take it, suspending the task for at most ``timeout`` seconds; whether it was taken.

        Zero or less asks without waiting. Cancellation leaves the lock to others.
        """
        if self._lock.acquire(False):
            return True
        if timeout is not None and timeout <= 0:
            return False
        loop = asyncio.get_running_loop()
        waiter = _TaskWaiter(loop)
        timer: asyncio.TimerHandle | None = None
        try:
            if self._enters_at_once(waiter):
                return True
            if timeout is not None:
                patience = min(timeout, threading.TIMEOUT_MAX)
                timer = loop.call_later(patience, self._expire, waiter)
            taken = await waiter.future
            if taken:
                self._claim(waiter)
            return taken
        except BaseException:
            self._abandon(waiter)
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def release(self) -> None:
        """Hand it to the first who still waits, or free it. Callable by anyone, never blocks.

        Raises RuntimeError if nobody holds it.
        """
        with self._guard:
            if self._waiters and self._lock.locked():
                self._pass_on()
            else:
                self._lock.release()

    # --- leaving the queue --------------------------------------------------------------

    def _enters_at_once(self, waiter: _ThreadWaiter | _TaskWaiter) -> bool:
        """Queue up, unless it came free meanwhile."""
        with self._guard:
            heir = self._heir
            if heir is not None and heir.loop.is_closed():
                # Its loop was closed between the hand-over and its next step.
                heir.state = _State.GONE
                self._pass_on()
            if self._lock.acquire(False):
                waiter.state = _State.GRANTED
                return True
            self._waiters.append(waiter)
            return False

    def _gives_up(self, waiter: _ThreadWaiter | _TaskWaiter) -> bool:
        """Leave the queue; false if the lock had just been handed over."""
        with self._guard:
            if waiter.state is not _State.WAITING:
                return waiter.state is _State.GONE
            waiter.state = _State.GONE
            self._waiters.remove(waiter)
            return True

    def _abandon(self, waiter: _ThreadWaiter | _TaskWaiter) -> None:
        """Leave the queue, and leave the lock too if it had just been handed over."""
        if waiter.state is _State.GONE:
            # Perhaps the garbage collector ends a task of a closed loop, in a thread that has
            # the guard. All other waiters are referenced from here, so it cannot end theirs.
            return
        with self._guard:
            if waiter.state is _State.GRANTED:
                waiter.state = _State.GONE
                self._pass_on()
            elif waiter.state is _State.WAITING:
                waiter.state = _State.GONE
                if waiter in self._waiters:  # interrupted before it stood there
                    self._waiters.remove(waiter)

    def _expire(self, waiter: _TaskWaiter) -> None:
        if self._gives_up(waiter) and not waiter.future.done():
            waiter.future.set_result(False)

    def _claim(self, waiter: _TaskWaiter) -> None:
        with self._guard:
            if self._heir is waiter:
                self._heir = None

    # --- handing over: the guard is held ------------------------------------------------

    def _pass_on(self) -> None:
        self._heir = None
        asleep: list[_ThreadWaiter | _TaskWaiter] = []
        taken = False
        while self._waiters and not taken:
            waiter = self._waiters.popleft()
            if isinstance(waiter, _ThreadWaiter):
                waiter.state = _State.GRANTED
                waiter.parked.release()
                taken = True
            elif waiter.future.done():  # cancelled, about to leave
                waiter.state = _State.GONE
            elif _runs_here(waiter.loop):
                self._give(waiter)
                waiter.future.set_result(True)
                taken = True
            elif not self._call(waiter):
                waiter.state = _State.GONE
            elif waiter.loop.is_running():
                self._give(waiter)
                taken = True
            else:
                asleep.append(waiter)
        self._waiters.extendleft(reversed(asleep))
        if not taken:
            self._lock.release()

    def _give(self, waiter: _TaskWaiter) -> None:
        waiter.state = _State.GRANTED
        self._heir = waiter

    def _call(self, waiter: _TaskWaiter) -> bool:
        """Have the waiter's loop look after it; false if the loop was closed."""
        if waiter.called:
            return not waiter.loop.is_closed()
        try:
            waiter.loop.call_soon_threadsafe(self._arrive, waiter)
        except RuntimeError:
            return False
        waiter.called = True
        return True

    def _arrive(self, waiter: _TaskWaiter) -> None:
        """In the waiter's loop: tell it that it has the lock, or take it now if it is free."""
        with self._guard:
            waiter.called = False
            if waiter.future.done() or waiter.state is _State.GONE:
                return
            if waiter.state is _State.WAITING:
                # Its loop did not run when it was its turn.
                if not self._lock.acquire(False):
                    return
                self._waiters.remove(waiter)
                self._give(waiter)
            waiter.future.set_result(True)

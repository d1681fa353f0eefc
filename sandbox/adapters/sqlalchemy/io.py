"""Waiting and calling inside SQLAlchemy's greenlets, and across event loops.

SQLAlchemy runs its synchronous core in a greenlet; ``await_only`` hands an awaitable to the
coroutine that drives it. So the same virtual connection serves both worlds, and what differs is
how to wait (:class:`GreenletIO`) and, for asyncpg, on which loop to run (:class:`HomeIO`).
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import threading
import weakref
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sqlalchemy.util.concurrency import await_only, greenlet_spawn, in_greenlet

from sandbox.connection.driver import IO
from sandbox.errors import SandboxError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator, Hashable
    from types import FrameType

    from sandbox.connection.mutex import Mutex

__all__ = (
    "GreenletIO",
    "HomeIO",
    "background_loop",
    "hop",
    "run_on",
    "running_loop",
    "uninterrupted",
)

T = TypeVar("T")


class _Background:
    """One event loop in a daemon thread, for connections that must outlive their callers' loops."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None or self._loop.is_closed():
                loop = self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=loop.run_forever, name="sandbox-loop", daemon=True
                )
                # Until then is_running() would say no, and a caller would run it himself.
                running = threading.Event()
                loop.call_soon(running.set)
                self._thread.start()
                running.wait()
                atexit.register(self.stop)
            return self._loop

    def stop(self) -> None:
        with self._lock:
            loop, thread, self._loop = self._loop, self._thread, None
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(5)
            loop.close()


_background = _Background()
background_loop = _background.loop


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that runs here, or None."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class GreenletIO(IO):
    """Asynchronous drivers whose connections may be used from any loop, one call at a time."""

    def lock(self, mutex: Mutex, timeout: float | None) -> bool:
        if not in_greenlet():
            return mutex.acquire(0)
        return bool(await_only(mutex.acquire_async(timeout)))

    def call(self, real: Any, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        del real
        return fn(*args, **kwargs)

    def run(self, real: Any, fn: Callable[..., T], /, *args: Any) -> T:
        if in_greenlet():
            return self.call(real, fn, *args)
        return run_on(self._loop_of(real), fn, *args)

    def can_wait(self) -> bool:
        return bool(in_greenlet())

    def outer_frame(self, frame: FrameType) -> FrameType | None:
        # A greenlet's stack ends where it was spawned; the coroutine that drives it is suspended
        # in its parent.
        from greenlet import getcurrent

        parent = getcurrent().parent
        outer = parent.gr_frame if parent is not None else None
        return outer if outer is not frame else None

    def _loop_of(self, real: Any) -> asyncio.AbstractEventLoop:
        del real
        return background_loop()


class HomeIO(GreenletIO):
    """asyncpg: a connection lives on one event loop, its home; other loops hand their calls over.

    Home is the caller's own loop if that has outlived a test before, as session-scoped loops do,
    and else the background loop, which outlives them all. A call on the home loop goes straight;
    a hop costs about 0.4 ms.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()
        self._lasting: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()
        self._shunned: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()
        """They stood still when others needed them: one sandbox, used by several loops in turn."""

    def home(self) -> Hashable:
        loop = running_loop()
        if loop is not None:
            with self._lock:
                self._seen.add(loop)
                if loop in self._lasting and loop not in self._shunned:
                    return loop
        return background_loop()

    def shelter(self) -> Hashable:
        return background_loop()

    def left(self) -> None:
        with self._lock:
            self._lasting = weakref.WeakSet(loop for loop in self._seen if not loop.is_closed())

    def call(self, real: Any, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        home = self._loop_of(real)
        if home is running_loop():
            return fn(*args, **kwargs)
        if not home.is_running():
            with self._lock:
                self._shunned.add(home)
            raise SandboxError(
                "This sandbox's asyncpg connection was opened on an event loop that is not running"
                " now, so that the loop that is running cannot use it. Let the fixtures and the"
                " test of one sandbox run on one loop (pytest-asyncio: the same loop_scope). From"
                " the next sandbox on, the connection lives on a loop that always runs."
            )
        return hop(home, fn, *args, **kwargs)

    def reaches(self, real: Any) -> bool:
        return bool(in_greenlet()) or self._loop_of(real) is not running_loop()

    def _loop_of(self, real: Any) -> asyncio.AbstractEventLoop:
        # asyncpg keeps the loop that it was made on.
        loop: asyncio.AbstractEventLoop = real._connection._loop
        return loop


def hop(home: asyncio.AbstractEventLoop, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    """Run ``fn`` in a greenlet on another loop and await it here."""
    result: T = await_only(_hop(home, greenlet_spawn(fn, *args, **kwargs)))
    return result


async def _hop(home: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T]) -> T:
    ended: concurrent.futures.Future[None] = concurrent.futures.Future()

    async def run() -> T:
        try:
            return await coroutine
        finally:
            ended.set_result(None)

    future = asyncio.run_coroutine_threadsafe(run(), home)
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        # It is being cancelled over there too. The connection is free when that has happened.
        await uninterrupted(_ended(ended))
        raise


async def _ended(future: concurrent.futures.Future[None]) -> None:
    await asyncio.wrap_future(future)


class uninterrupted(Generic[T]):  # noqa: N801 - awaited like a function
    """Await to the end, and only then be cancelled: what was done half nobody could go on from.

    Like ``asyncio.shield`` in a task that is waited for, but without the task: at each point
    where the coroutine waits for a future, a cancellation is kept until the future is done.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, Any, T]:
        steps = self._coroutine.__await__()
        cancelled: asyncio.CancelledError | None = None
        while True:
            try:
                future: asyncio.Future[Any] | None = next(steps)
            except StopIteration as stop:
                if cancelled is not None:
                    raise cancelled from None
                result: T = stop.value
                return result
            done = False
            while not done:
                try:
                    if future is None:
                        yield
                    else:
                        yield from _wait_for(future)
                except asyncio.CancelledError as error:
                    cancelled = error
                done = future is None or future.done()


def _wait_for(future: asyncio.Future[Any]) -> Generator[Any, Any, None]:
    """Wait for another's future without cancelling it when we are."""
    # The protocol of Future.__await__: the flag says that the task is to wait, and the task
    # would cancel what it waits for.
    future._asyncio_future_blocking = False
    ours: asyncio.Future[None] = future.get_loop().create_future()

    def wake(_: object) -> None:
        if not ours.done():
            ours.set_result(None)

    future.add_done_callback(wake)
    yield from ours.__await__()


def run_on(loop: asyncio.AbstractEventLoop, fn: Callable[..., T], /, *args: Any) -> T:
    """Run ``fn`` in a greenlet on a loop, from outside of any greenlet, and wait for it."""
    coroutine: Coroutine[Any, Any, T] = greenlet_spawn(fn, *args)
    if loop is running_loop():
        coroutine.close()
        raise RuntimeError(
            "this connection lives on the event loop that is running here, which cannot wait for"
            " itself: use `await sandbox.acheckin()`"
        )
    if loop.is_running():
        future: concurrent.futures.Future[T] = asyncio.run_coroutine_threadsafe(coroutine, loop)
        return future.result(30)
    if loop.is_closed():
        coroutine.close()
        raise RuntimeError("the event loop of this connection is closed")
    return loop.run_until_complete(coroutine)

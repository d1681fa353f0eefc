"""Who is calling.

An owner is an opaque token in a :class:`~contextvars.ContextVar`, so that asyncio tasks,
``asyncio.to_thread`` and anyio's threads inherit it (PEP 567) and nobody else does. It is never
a thread's ident or an ``id()``: both are used again, and a test that finds the sandbox of an
earlier one is worse than one that finds none.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ("Caller", "Owner", "current_owner", "inherit_threads", "run_as", "set_owner")


class Owner:
    """Who a sandbox belongs to: usually one test.

    ``label`` names it in messages. The thread and the task that made it are remembered weakly,
    so that :func:`sandbox.allow` can be given either of them.
    """

    __slots__ = ("__weakref__", "_task", "_thread", "ended", "label")

    def __init__(self, label: str | None = None) -> None:
        self.label = label or _default_label()
        self.ended = False
        self._thread = weakref.ref(threading.current_thread())
        task = _current_task()
        self._task = weakref.ref(task) if task is not None else None

    def made_by(self, who: object) -> bool:
        """Whether this thread or task made it."""
        if who is None:
            return False
        return self._thread() is who or (self._task is not None and self._task() is who)

    def __repr__(self) -> str:
        return f"<Owner {self.label}{' (ended)' if self.ended else ''}>"


class Caller:
    """The thread or task that asks, as messages name it."""

    __slots__ = ("owner", "task", "thread")

    def __init__(self) -> None:
        self.owner = _owner.get()
        self.thread = threading.current_thread()
        self.task = _current_task()

    def __str__(self) -> str:
        name = f"thread {self.thread.name!r}"
        if self.task is not None:
            name = f"task {self.task.get_name()!r} of {name}"
        return name


_owner: ContextVar[Owner | None] = ContextVar("sandbox_owner", default=None)


def current_owner() -> Owner | None:
    """Return the owner that this thread or task acts as, or None.

    Callable from anywhere. What it returns may have ended: a task that outlived its test still
    carries the test's owner, and is refused for it.
    """
    return _owner.get()


def set_owner(owner: Owner | None) -> None:
    """Make the current context act as this owner from here on."""
    _owner.set(owner)


@contextlib.contextmanager
def run_as(owner: Owner | None) -> Iterator[Owner | None]:
    """Act as ``owner`` inside the block; None: as nobody.

    For callbacks, schedulers and worker threads that were started before the test. Restores
    what was before, whatever happens. Takes an :class:`Owner`, or anything with an ``owner``.
    """
    owner = getattr(owner, "owner", owner)
    before = _owner.get()
    _owner.set(owner)
    try:
        yield owner
    finally:
        # set(), not reset(): the block may be left in another context than it was entered in,
        # as asynchronous generators are.
        _owner.set(before)


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def _default_label() -> str:
    test = os.environ.get("PYTEST_CURRENT_TEST")
    if test:
        return test.rsplit(" ", 1)[0]
    return str(Caller())


_patched: dict[str, Any] = {}


def inherit_threads(enabled: bool = True) -> None:
    """Let ``Thread.start`` and ``Executor.submit`` carry the owner along, or stop doing so.

    Process-wide, idempotent, off by default: on CPython before 3.14 (and unless
    ``thread_inherit_context`` is set) a new thread starts with an empty context. A worker thread
    acts as the owner of whoever submitted the job, for that job only, so that the next job never
    sees an earlier test's sandbox.
    """
    from concurrent.futures import ThreadPoolExecutor

    if enabled and not _patched:
        start, submit = threading.Thread.start, ThreadPoolExecutor.submit
        _patched.update(start=start, submit=submit)

        def start_as_owner(self: threading.Thread) -> None:
            owner, run = _owner.get(), self.run
            if owner is None:
                start(self)
                return
            before = {name: value for name, value in vars(self).items() if name == "run"}

            def unwrap() -> None:
                vars(self).pop("run", None)
                vars(self).update(before)

            def run_as_owner() -> None:
                # The wrapper goes before the thread's own code runs: it would otherwise keep
                # the thread alive through a cycle.
                unwrap()
                with run_as(owner):
                    run()

            vars(self)["run"] = run_as_owner
            try:
                start(self)
            except RuntimeError:
                # It was started before, or the system has no thread left.
                unwrap()
                raise

        def submit_as_owner(self: ThreadPoolExecutor, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            owner = _owner.get()
            # A worker thread must not inherit the owner of the job that happened to start it.
            with run_as(None):
                return submit(self, _as_owner, owner, fn, args, kwargs)

        threading.Thread.start = start_as_owner  # type: ignore[method-assign]
        ThreadPoolExecutor.submit = submit_as_owner  # type: ignore[method-assign,assignment]
    elif not enabled and _patched:
        threading.Thread.start = _patched.pop("start")  # type: ignore[method-assign]
        ThreadPoolExecutor.submit = _patched.pop("submit")  # type: ignore[method-assign]


def _as_owner(owner: Owner | None, fn: Any, args: Any, kwargs: Any) -> Any:
    with run_as(owner):
        return fn(*args, **kwargs)

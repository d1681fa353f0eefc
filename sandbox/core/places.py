"""Places in the application: where a transaction began, and where who began it is now.

A place is kept as code object and instruction, which costs next to nothing, and becomes text when
somebody has to be told. Frames are never kept: they would keep alive whatever their variables hold.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import weakref
from types import CodeType, CoroutineType, FrameType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sandbox.core.frames import Transaction

__all__ = ("Origin", "Trace", "began", "here", "lines", "standing", "where")

Trace = tuple[tuple[CodeType, int], ...]
"""Frames of the application, the innermost first."""

DEPTH: Final = 8
"""How many frames tell where somebody is."""

_PASSED_OVER: Final = frozenset(
    [
        "anyio",
        "asyncio",
        "concurrent",
        "contextlib",
        "greenlet",
        "pytest_asyncio",
        "sandbox",
        "sqlalchemy",
        "threading",
    ]
)
_OUTERMOST: Final = frozenset(["_pytest", "pluggy", "pytest", "runpy", "unittest"])
_LOOP: Final = "asyncio.events"
"""What runs tests, and what runs tasks: whatever called these tells nothing."""

_END: Final = 2
_found: dict[str, int] = {}
"""What has been found out of modules: 0 is the application, 1 passed over, 2 the end."""


class Origin:
    """Where a transaction began, and who began it. Made in the thread or task that begins it."""

    __slots__ = ("_task", "_thread", "trace")

    def __init__(self, outer: Callable[[FrameType], FrameType | None]) -> None:
        self.trace = here(outer)
        self._thread = weakref.ref(threading.current_thread())
        self._task: weakref.ref[asyncio.Task[Any]] | None = None
        loop = asyncio._get_running_loop()
        task = asyncio.current_task(loop) if loop is not None else None
        if task is not None:
            self._task = weakref.ref(task)

    def is_here(self) -> bool:
        """Whether the caller is the thread or the task that began it."""
        loop = asyncio._get_running_loop()
        task = asyncio.current_task(loop) if loop is not None else None
        if self._task is not None:
            return task is not None and self._task() is task
        return task is None and self._thread() is threading.current_thread()

    def now(self) -> Trace:
        """Where that thread or task is at this moment; nowhere if it has ended."""
        thread = self._thread()
        if self._task is not None:
            task = self._task()
            if task is None or task.done():
                return ()
            if not _is_running(task):
                return _trace(_suspended(task))
        if thread is None or thread.ident is None or not thread.is_alive():
            return ()
        return _trace(_outwards(sys._current_frames().get(thread.ident)))


def here(outer: Callable[[FrameType], FrameType | None], depth: int = DEPTH) -> Trace:
    """Where the caller is. ``outer`` tells what called the outermost frame of a greenlet."""
    found: list[tuple[CodeType, int]] = []
    frame: FrameType | None = sys._getframe(1)
    in_greenlet = True
    while frame is not None:
        kind = _found.get(name := frame.f_globals.get("__name__", ""), -1)
        if kind < 0:
            kind = _kind(name)
        if kind == 0:
            found.append((frame.f_code, frame.f_lasti))
            if len(found) == depth:
                break
        elif kind == _END:
            break
        last, frame = frame, frame.f_back
        if frame is None and in_greenlet:
            in_greenlet = False
            frame = outer(last)
    return tuple(found)


def where(trace: Trace) -> str:
    """The innermost place: ``file:line (function)``, or nothing."""
    return _place(*trace[0]) if trace else ""


def lines(trace: Trace) -> list[str]:
    """One for each frame."""
    return [_place(code, instruction) for code, instruction in trace]


def began(transaction: Transaction) -> str:
    """Where it began, as a paragraph of a message."""
    trace = transaction.origin.trace if transaction.origin is not None else ()
    return _listed("began at", lines(trace) or [transaction.where or "a place not known"])


def standing(transaction: Transaction) -> str:
    """Where it began, and where who holds it is now."""
    origin = transaction.origin
    if origin is None or transaction.over:
        return began(transaction)
    if origin.is_here():
        return f"{began(transaction)}\n    by the same thread or task that is told this"
    now = lines(origin.now()) or ["the end: its thread or task is over"]
    return f"{began(transaction)}\n  {_listed('is now at', now)}"


def _listed(what: str, places: list[str]) -> str:
    return what + "".join(f"\n    {place}" for place in places)


def _place(code: CodeType, instruction: int) -> str:
    line = code.co_firstlineno
    for start, end, number in code.co_lines():
        if start <= instruction < end and number is not None:
            line = number
            break
    return f"{code.co_filename}:{line} ({code.co_name})"


def _trace(frames: Iterator[FrameType]) -> Trace:
    found: list[tuple[CodeType, int]] = []
    for frame in frames:
        kind = _kind(str(frame.f_globals.get("__name__", "")))
        if kind == _END or len(found) == DEPTH:
            break
        if kind == 0:
            found.append((frame.f_code, frame.f_lasti))
    return tuple(found)


def _kind(name: str) -> int:
    package = name.partition(".")[0]
    end = name == _LOOP or package in _OUTERMOST
    kind = _END if end else int(package in _PASSED_OVER)
    _found[name] = kind
    return kind


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_running(task: asyncio.Task[Any]) -> bool:
    return bool(getattr(task.get_coro(), "cr_running", False))


def _suspended(task: asyncio.Task[Any]) -> Iterator[FrameType]:
    """A task that waits: the coroutines that await each other, and below them the greenlet that
    SQLAlchemy runs its synchronous core in.
    """
    frames: list[FrameType] = []
    greenlet: Any = None
    awaited: Any = task.get_coro()
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
        if frame is None:
            break
        frames.append(frame)
        if isinstance(awaited, CoroutineType) and awaited.__name__ == "greenlet_spawn":
            greenlet = frame.f_locals.get("context")
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
    yield from _outwards(getattr(greenlet, "gr_frame", None))
    yield from reversed(frames)

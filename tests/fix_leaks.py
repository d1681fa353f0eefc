"""Nothing outlives a test: threads, processes, directories."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import sandbox

# The loop that serves asyncpg connections lives as long as the process, like a logger's queue.
_ALLOWED = ("sandbox-loop", "pytest_timeout")


def _threads() -> set[threading.Thread]:
    return {t for t in threading.enumerate() if not t.name.startswith(_ALLOWED)}


def _children() -> set[str]:
    found: set[str] = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            found.update((task / "children").read_text().split())
        except OSError:
            continue
    return found


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    # The run's server is a child of the process that needed it first.
    if "server" in request.fixturenames:
        request.getfixturevalue("server")
    threads, children = _threads(), _children()
    yield
    for thread in _threads() - threads:
        thread.join(2)
    left = _threads() - threads
    assert not left, f"threads left running: {left}"
    new = _children() - children
    assert not new, f"processes left running: {new}"
    assert sandbox.current_owner() is None, "the test left its owner behind"

"""Nothing outlives a test: connections, threads, tasks, processes, directories."""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sandbox
from sandbox.databases.backends import EmbeddedPostgres
from sandbox.databases.backends.rundir import is_abandoned

# The loop that serves asyncpg connections lives as long as the process, like a logger's queue.
LOOP = "sandbox-loop"
_ALLOWED = (LOOP, "pytest_timeout")


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


def _abandoned() -> set[Path]:
    """Directories of runs that nobody holds: those of others on the machine are held."""
    places = (Path("/dev/shm"), Path(tempfile.gettempdir()))
    runs = {path for place in places for path in place.glob(f"sandbox-{os.getuid()}/pg-*")}
    return {path for path in runs if is_abandoned(path)}


def _tasks() -> list[Any]:
    """What still runs on the background loop."""
    if not any(thread.name == LOOP for thread in threading.enumerate()):
        return []
    from sandbox.adapters.sqlalchemy.io import background_loop

    loop = background_loop()

    async def others() -> list[Any]:
        return [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]

    return asyncio.run_coroutine_threadsafe(others(), loop).result(5)


def _connections(server: EmbeddedPostgres) -> set[int]:
    """The server's client processes, but the one that looks."""
    import psycopg

    with psycopg.connect(server.url()) as connection:
        rows = connection.execute(
            "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend'"
            " AND pid <> pg_backend_pid() AND datname LIKE 'test\\_%'"
        ).fetchall()
    return {pid for (pid,) in rows}


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    server: EmbeddedPostgres | None = None
    if "server" in request.fixturenames:
        # It outlives the test that needed it first.
        server = request.getfixturevalue("server")
    threads, children, abandoned = _threads(), _children(), _abandoned()
    connections = _connections(server) if server is not None else set()
    yield
    for thread in _threads() - threads:
        thread.join(2)
    left = _threads() - threads
    assert not left, f"threads left running: {left}"
    tasks = _tasks()
    assert not tasks, f"tasks left running: {tasks}"
    new = _children() - children
    assert not new, f"processes left running: {new}"
    directories = _abandoned() - abandoned
    if directories:
        # The last holder's watchdog is about to remove it.
        threading.Event().wait(0.5)
        directories &= _abandoned()
    assert not directories, f"directories left behind: {directories}"
    if server is not None:
        open_ = _connections(server) - connections
        if open_:
            # A server process ends a moment after its client has gone.
            threading.Event().wait(0.2)
            open_ &= _connections(server)
        assert not open_, f"connections left open: {open_}"
    assert sandbox.current_owner() is None, "the test left its owner behind"

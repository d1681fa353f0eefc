"""``sandbox up``: an embedded server with a migrated database, until it is interrupted."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from rich.console import Console

from sandbox.cli._progress import Progress
from sandbox.databases import urls
from sandbox.databases.backends import EmbeddedPostgres
from sandbox.databases.clock import install
from sandbox.databases.migrations import parse_sources
from sandbox.errors import ServerStartError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from sandbox.databases.migrations import MigrationSource

__all__ = ("Request", "serve")

_LOOK_EVERY = 0.5  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What was asked for on the command line."""

    migrations: tuple[str, ...]
    database: str
    driver: str
    env: str
    tcp: bool
    port: int | None
    bindir: Path | None
    as_json: bool


class _Stop(BaseException):
    """A signal asked us to end. No Exception: no handler on the way may swallow it."""


def serve(request: Request) -> None:
    """Start, migrate, print, wait for SIGINT or SIGTERM, stop; from the main thread only.

    Raises ConfigurationError before anything is started, ServerStartError and MigrationError
    with the server stopped again.
    """
    sources = parse_sources(request.migrations, root=Path.cwd())
    with contextlib.suppress(_Stop), _stopped_by_signals(), contextlib.ExitStack() as stack:
        with Progress("starting PostgreSQL") as progress:
            server = EmbeddedPostgres.start(
                bindir=request.bindir, tcp=request.tcp, port=request.port, progress=progress.tell
            )
            stack.callback(server.close)
            url = _prepare(server, request, sources, progress)
        _announce(server, request, url)
        _wait(server)


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    def stop(_number: int, _frame: FrameType | None) -> NoReturn:
        # Once: nothing may interrupt the stopping.
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise _Stop

    wanted = (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", None))
    before = {each: signal.signal(each, stop) for each in wanted if each is not None}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _prepare(
    server: EmbeddedPostgres,
    request: Request,
    sources: tuple[MigrationSource, ...],
    progress: Progress,
) -> str:
    """Create the database and build its schema; return its URL."""
    server.create_database(request.database)
    install(server, request.database)
    url = server.url(request.database, f"postgresql+{request.driver}")
    # Always: an env.py that reads the environment would else migrate whatever the shell names.
    os.environ[request.env] = url
    for source in sources:
        progress.tell(f"migrating: {source.description}")
        source.run(url)
    return url


def _announce(server: EmbeddedPostgres, request: Request, url: str) -> None:
    libpq = urls.libpq_url(url)
    facts = {
        "url": url,
        "libpq_url": libpq,
        "database": request.database,
        "version": server.version,
        "pid": server.pid,
        "migrations": list(request.migrations),
    }
    if request.as_json:
        print(json.dumps(facts), flush=True)
        return
    migrated = f", migrated by {', '.join(request.migrations)}" if request.migrations else ""
    Console(stderr=True).print(
        f"PostgreSQL {server.version}, started in {server.started_in * 1000:.0f} ms on"
        f" {server.storage}{migrated}. Everything is gone when it stops: Ctrl-C.",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    # Lines of their own that are never wrapped: they are copied, and read by scripts.
    print(f"url     {url}")
    print(f"psql    psql {shlex.quote(libpq)}")
    print(f"export {request.env}={shlex.quote(url)}", flush=True)


def _wait(server: EmbeddedPostgres) -> NoReturn:
    nothing = threading.Event()
    while _alive(server.pid):
        nothing.wait(_LOOK_EVERY)
    raise ServerStartError(
        f"the embedded server (process {server.pid}) ended by itself: somebody stopped it, or the\n"
        "  machine ran out of memory. Its databases are gone; start it again with sandbox up"
    )


def _alive(pid: int) -> bool:
    if os.name != "posix":
        return True  # elsewhere, signal 0 is no question but an end
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

"""A real PostgreSQL server of our own, shared by the processes of one test run."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from sandbox.databases.backends import cluster
from sandbox.databases.backends.admin import Admin, require_driver
from sandbox.databases.backends.rundir import Hold, is_abandoned, sweep
from sandbox.errors import SandboxError, ServerStartError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType
    from typing import Self

    from sandbox.databases.backends.cluster import ServerInfo

__all__ = ("EmbeddedPostgres",)

_live: set[EmbeddedPostgres] = set()


class EmbeddedPostgres:
    """One process's share in an embedded server.

    Made by ``start`` in one process and by ``attach`` in the others; the server lives until the
    last of them has closed it or died, and is then gone, with its data, in a few hundredths of a
    second.  A forked child has no share in what its parent holds (it may ``attach``).

    All methods may be called from any thread; they block, so not from a running event loop.
    """

    run_dir: Path
    """The directory of the run; ``attach`` takes it."""
    version: str
    """The server's version, ``"18.6"``."""
    bindir: Path
    """Where its programs lie."""
    pid: int
    """The server's process."""
    started_in: float
    """Seconds from the call of ``start`` to the first connection it could take."""
    host: str
    """The directory of its socket, or 127.0.0.1."""
    port: int
    """Its port; without TCP merely a part of the socket's name."""
    user: str
    """The superuser that the tests connect as."""
    storage: str
    """Where the data lies, in words."""
    source: str
    """Who brought the programs: a package, PATH, a setting."""

    def __init__(self, info: ServerInfo, hold: Hold) -> None:
        self.run_dir = Path(info.run_dir)
        self.version = info.version
        self.bindir = Path(info.bindir)
        self.source = info.source
        self.pid = info.pid
        self.started_in = info.started_in
        self.host = info.host
        self.port = info.port
        self.user = cluster.USER
        self.storage = info.storage
        self._password = info.password
        self._hold = hold
        self._admin = Admin(info.sockets, info.port, self.user, info.version)
        self._closing = threading.Lock()
        _remember(self)

    @classmethod
    def start(
        cls,
        *,
        bindir: Path | None = None,
        tcp: bool = False,
        port: int | None = None,
        root: Path | None = None,
        settings: Mapping[str, str] | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> EmbeddedPostgres:
        """Start a server; this process holds it alive.

        It listens on a Unix socket that only this user can reach, and with ``tcp`` also on
        127.0.0.1, with a password.  ``root`` is the directory to put the run's directory in,
        ``settings`` go over the ones chosen for speed, ``progress`` is told, in words, what takes
        longer than usual.

        Raises ServerStartError, which says why and what to do; nothing is left behind then.
        """
        if tcp:
            try:
                require_driver()  # sets the password that a port needs
            except SandboxError as error:
                raise ServerStartError(error.message) from error
        request = cluster.Request(bindir, tcp, port, root, settings, progress)
        server = cls(*cluster.start(request))
        if server._password is not None:
            try:
                server._admin.set_password(server._password)
            except BaseException:
                server.close()
                raise
        return server

    @classmethod
    def attach(cls, run_dir: Path) -> EmbeddedPostgres:
        """Share in a server that another process of this run has started.

        Raises ServerStartError if that server is gone.
        """
        run_dir = Path(run_dir)
        hold = Hold.take(run_dir) if os.name == "posix" else None
        if hold is None:
            raise ServerStartError(
                f"There is no embedded server in {run_dir}: the last process that used it has"
                " closed it or ended. Start one with EmbeddedPostgres.start(), and keep it open"
                " while others attach."
            )
        try:
            info = cluster.ServerInfo.read(run_dir / "info.json")
        except (OSError, ValueError, TypeError) as error:
            hold.release()
            raise ServerStartError(
                f"The embedded server in {run_dir} is not ready, or of another version of sandbox:"
                f" {error}"
            ) from error
        return cls(info, hold)

    def url(self, database: str = "postgres", driver: str = "postgresql") -> str:
        """Return the URL of a database for SQLAlchemy, or with no driver named, for libpq.

        ``driver`` is the URL's scheme: ``postgresql+psycopg``, ``postgresql+asyncpg``, …
        """
        name = quote(database, safe="")
        if self._password is not None:
            return f"{driver}://{self.user}:{self._password}@{self.host}:{self.port}/{name}"
        return f"{driver}://{self.user}@/{name}?host={quote(self.host)}&port={self.port}"

    def create_database(self, name: str, *, template: str | None = None) -> None:
        """Create a database, by copying the template's files where the server can.

        Nobody may be connected to the template.  Raises SandboxError if the name is taken.
        """
        self._admin.create_database(name, template)

    def drop_database(self, name: str) -> None:
        """Disconnect whoever uses the database and drop it; no error if there is none."""
        self._admin.drop_database(name)

    def database_exists(self, name: str) -> bool:
        """Tell whether there is a database of this name."""
        return self._admin.database_exists(name)

    def close(self) -> None:
        """Let go of the server; if nobody else uses it, wait until it is gone.

        May be called more than once, and is called at the exit of the process.
        """
        with self._closing:
            _live.discard(self)
            self._admin.close()
            if self._hold.release():
                self._await_end()

    def _await_end(self) -> None:
        deadline = time.monotonic() + 5.0
        while self.run_dir.exists():
            if is_abandoned(self.run_dir) or time.monotonic() > deadline:
                # The keeper was killed: do its work.
                sweep(self.run_dir.parent)
                break
            time.sleep(0.001)
        with contextlib.suppress(OSError):
            self.run_dir.parent.rmdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<EmbeddedPostgres {self.version} pid={self.pid} in {self.run_dir}>"


def _remember(server: EmbeddedPostgres) -> None:
    if not _registered:
        _registered.append(True)
        atexit.register(_close_all)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_forget_all)
    _live.add(server)


_registered: list[bool] = []


def _close_all() -> None:
    for server in list(_live):
        server.close()


def _forget_all() -> None:
    """In a forked child: the hold and the connection are the parent's."""
    for server in list(_live):
        server._hold.forget()
        server._admin.forget()
        server._closing = threading.Lock()  # a thread of the parent may have had it
    _live.clear()

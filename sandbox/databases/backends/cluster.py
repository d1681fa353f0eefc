"""Start one server: find, copy, configure, spawn, wait.  Leaves nothing behind if it fails."""

from __future__ import annotations

import errno
import json
import os
import secrets
import socket
import time
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from sandbox.databases.backends import binaries as programs
from sandbox.databases.backends import golden, relocation, settings, storage
from sandbox.databases.backends.keeper import Keeper
from sandbox.databases.backends.rundir import Hold, RunDirectory, remove, sweep
from sandbox.errors import ServerStartError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from sandbox.databases.backends.binaries import Binaries
    from sandbox.databases.backends.storage import ServerUser

__all__ = ("USER", "Request", "ServerInfo", "start")

USER = "sandbox"
_RECIPE = 1  # part of the name of what is cached: count up when initdb is run otherwise
_PATIENCE = 60.0
_POLL = 0.0005


class ServerInfo(NamedTuple):
    """What every process of the run has to know about its server; ``info.json``."""

    run_dir: str
    version: str
    bindir: str
    source: str
    pid: int
    keeper: int
    started_in: float
    host: str
    sockets: str
    port: int
    password: str | None
    storage: str

    def write(self, path: Path) -> None:
        """Publish it, whole or not at all."""
        temporary = path.with_suffix(".new")
        temporary.touch(mode=0o600)
        temporary.write_text(json.dumps(self._asdict()))
        temporary.replace(path)

    @classmethod
    def read(cls, path: Path) -> ServerInfo:
        """Read what ``write`` wrote; raises OSError, ValueError or TypeError."""
        return cls(**json.loads(path.read_text()))


class Request(NamedTuple):
    """What ``EmbeddedPostgres.start`` was asked for."""

    bindir: Path | None = None
    tcp: bool = False
    port: int | None = None
    root: Path | None = None
    settings: Mapping[str, str] | None = None
    progress: Callable[[str], None] | None = None


def start(request: Request) -> tuple[ServerInfo, Hold]:
    """Start a server and return it with this process's hold on it.

    Raises ServerStartError, after everything that was made is gone again.
    """
    if os.name != "posix":
        raise ServerStartError(
            "The embedded PostgreSQL needs a POSIX system (Linux; macOS should do): its processes"
            f" share it by flock, which {os.name!r} has not. Name a server with sandbox_url."
        )
    try:
        return _start(request)
    except OSError as error:
        _explain(error)


def _start(request: Request) -> tuple[ServerInfo, Hold]:
    began = time.perf_counter()
    progress = request.progress or (lambda _: None)
    user = storage.server_user()
    found = programs.find(request.bindir)
    if request.tcp and request.port is not None:
        _refuse_taken(request.port)
    settings.effective("", {}, request.settings)  # refused before anything is made
    found = relocation.reachable_binaries(found, user, progress)
    place = storage.choose(request.root, user)
    sweep(place.base)
    run = RunDirectory.create(place.base, user)
    keeper = None
    try:
        keeper = Keeper(run.path, run.sockets, user)
        launch = _Launch(request, run, keeper, found, user, progress)
        info = launch.run(place.words, began)
        keeper.release()
    except BaseException:
        run.hold.release()
        if keeper is not None:
            keeper.abandon()
        sweep(place.base)  # the keeper has removed everything, unless it was killed
        remove(run.path)
        raise
    return info, run.hold


class _Launch:
    """The steps between an empty run directory and a server that answers."""

    def __init__(
        self,
        request: Request,
        run: RunDirectory,
        keeper: Keeper,
        found: Binaries,
        user: ServerUser | None,
        progress: Callable[[str], None],
    ) -> None:
        self._request = request
        self._run = run
        self._keeper = keeper
        self._binaries = found
        self._user = user
        self._progress = progress

    def run(self, words: str, began: float) -> ServerInfo:
        run, request = self._run, self._request
        version = self._make_data()
        os.close(os.open(run.log, os.O_CREAT | os.O_WRONLY, 0o600))
        port = request.port or (_free_port() if request.tcp else 5432)
        self._configure(version, port)
        command: list[str | Path] = [
            self._binaries.postgres,
            "-D",
            run.data,
            "-c",
            f"config_file={run.settings}",
        ]
        pid = self._keeper.serve(command, log=run.log, cwd=run.data)
        self._await_ready(port)
        info = ServerInfo(
            run_dir=str(run.path),
            version=version,
            bindir=str(self._binaries.bindir),
            source=self._binaries.source,
            pid=pid,
            keeper=self._keeper.pid,
            started_in=time.perf_counter() - began,
            host="127.0.0.1" if request.tcp else str(run.sockets),
            sockets=str(run.sockets),
            port=port,
            password=secrets.token_urlsafe(18) if request.tcp else None,
            storage=words,
        )
        info.write(run.info)
        return info

    def _make_data(self) -> str:
        """Write the data directory, from the cache or anew; return the server's version."""
        cache = storage.cache_directory()
        kept = cache / "pg" if cache else None
        if kept is None or not storage.own_directory(kept):
            self._progress("Initialising PostgreSQL (there is no directory to keep the result in)")
            self._keeper.greet()
            return self._initialise()
        path = kept / f"{relocation.identity(self._binaries)}-{_RECIPE}.golden"
        version = self._unpack(path)
        if version is not None:
            return version
        with golden.locked(path.with_suffix(".lock")):
            # Another process may have done it while we waited.
            version = self._unpack(path)
            if version is None:
                self._progress("Initialising PostgreSQL (once per installation)")
                self._keeper.greet()
                version = self._initialise()
                golden.trim(self._run.data)
                golden.pack(self._run.data, path, version)
                golden.clear_unused(kept)
        return version

    def _unpack(self, path: Path) -> str | None:
        pack = golden.Golden.open(path)
        if pack is None:
            return None
        try:
            pack.unpack(self._run.data, self._user)
            return pack.version
        finally:
            pack.close()
            # The keeper's interpreter has started while we copied.
            self._keeper.greet()

    def _initialise(self) -> str:
        run, user = self._run, self._user
        version = programs.version_of(self._binaries.postgres)
        run.data.mkdir(mode=0o700)
        if user:
            os.chown(run.data, user.uid, user.gid)
        log = run.path / "initdb.log"
        code = self._keeper.run(
            [self._binaries.initdb, "-D", run.data, *_initdb_options(version)],
            log=log,
            cwd=run.data,
            timeout=_PATIENCE,
        )
        if code != 0:
            raise ServerStartError(
                f"initdb of {self._binaries.bindir} failed{_as(user)} (exit code {code}):"
                f"\n{_tail(log)}{_advice(log)}"
            )
        return version

    def _configure(self, version: str, port: int) -> None:
        request, run = self._request, self._run
        ours = {
            "hba_file": str(run.access),
            "listen_addresses": "127.0.0.1" if request.tcp else "",
            "port": str(port),
            "unix_socket_directories": str(run.sockets),
            "unix_socket_permissions": "0700",
        }
        merged = settings.effective(version, ours, request.settings)
        # In our directory, not the server's: as root we don't write where another user may. Of
        # two values of a setting the last one counts, and ALTER SYSTEM still has its say.
        _publish(run.settings, settings.configuration(run.data / "postgresql.conf", merged))
        _publish(run.access, settings.HBA)

    def _await_ready(self, port: int) -> None:
        status = self._run.data / "postmaster.pid"
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            code = self._keeper.exited(_POLL)
            if code is not None:
                raise self._exited(code, port)
            try:
                # The eighth line of the lock file is the server's state.
                if status.read_bytes().rstrip().endswith(b"\nready"):
                    return
            except FileNotFoundError:
                pass
        raise ServerStartError(
            f"PostgreSQL {self._binaries.bindir} was not ready after {_PATIENCE:.0f} s. The last it"
            f" said:\n{_tail(self._run.log)}"
        )

    def _exited(self, code: int, port: int) -> ServerStartError:
        log = self._run.log
        if "Address already in use" in log.read_text(errors="replace"):
            return _taken(port)
        return ServerStartError(
            f"PostgreSQL {self._binaries.bindir} ended while it started (exit code {code}):"
            f"\n{_tail(log)}{_advice(log)}"
        )


def _publish(path: Path, content: str) -> None:
    """Write a file that the server's user may read."""
    path.write_text(content)
    path.chmod(0o644)


def _initdb_options(version: str) -> list[str]:
    major = programs.major_of(version)
    options = ["-N", "-U", USER, "-A", "trust", "-E", "UTF8", "--locale=C"]
    if major >= 17:
        # Sorts as C does, and knows the case of every letter, on every system.
        options += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    if major >= 18:
        options.append("--no-data-checksums")
    return options


def _as(user: ServerUser | None) -> str:
    return f" as {user.name!r}" if user else ""


def _tail(log: Path, lines: int = 12) -> str:
    try:
        said = log.read_text(errors="replace").strip().splitlines()
    except OSError:
        said = []
    return "\n".join(f"    {line}" for line in said[-lines:]) or "    (it said nothing)"


def _advice(log: Path) -> str:
    try:
        said = log.read_text(errors="replace")
    except OSError:
        return ""
    if "No space left on device" in said or "Disk quota exceeded" in said:
        return f"\n  {_NO_SPACE}"
    if "could not look up effective user ID" in said:
        return (
            "\n  PostgreSQL needs its user to have a name: give this user id an entry in"
            " /etc/passwd, or run the tests as one that has it."
        )
    return ""


_NO_SPACE = (
    "Free some, or name another place: TMPDIR, the argument root=, or SANDBOX_CACHE_DIR for what"
    " is kept between runs."
)


def _explain(error: OSError) -> NoReturn:
    where = f" at {error.filename}" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise ServerStartError(
            f"There is no space for the embedded server's data{where}: {error.strerror}."
            f" {_NO_SPACE}"
        ) from error
    raise ServerStartError(
        f"The embedded server could not be started: {error.strerror or error}{where}."
    ) from error


def _taken(port: int) -> ServerStartError:
    return ServerStartError(
        f"Port {port} of 127.0.0.1 is taken by another program. Name another port, or leave it out"
        " to get a free one; without tcp=True no port is needed at all."
    )


def _refuse_taken(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise _taken(port) from error
            raise ServerStartError(
                f"Port {port} of 127.0.0.1 cannot be used: {error.strerror}. Ports below 1024"
                " belong to the system."
            ) from error


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

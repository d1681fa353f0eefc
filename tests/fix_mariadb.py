"""A real MariaDB for the tests: one private server for each worker, in memory if there is some."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

import sandbox
from sandbox.databases.backends.storage import server_user
from tests.fix_db import App

INSTALL = (
    "apt-get install -y --no-install-recommends mariadb-server-core mariadb-client-core"
    " (the programs without the service), and pip install pymysql aiomysql asyncmy"
)
_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))


@dataclass(frozen=True)
class MariaDB:
    """A running server, which only this user of this machine reaches."""

    socket: Path
    pid: int

    def url(self, database: str, driver: str, dialect: str = "mysql") -> str:
        """By socket, as user root without a password."""
        return f"{dialect}+{driver}://root@localhost/{database}?unix_socket={self.socket}"


def missing() -> str | None:
    """Why there is no MariaDB here, or None."""
    for program in ("mariadbd", "mariadb-install-db", "my_print_defaults"):
        if shutil.which(program, path=_PATH) is None:
            return f"there is no {program} on this machine: {INSTALL}"
    for module in ("pymysql", "aiomysql", "asyncmy"):
        try:
            __import__(module)
        except ImportError:
            return f"there is no {module} in this environment: {INSTALL}"
    return None


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    """Memory is faster; sockets need a short path."""
    memory = Path("/dev/shm")
    base = memory if os.access(memory, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())
    for old in base.glob("sandbox-mariadb-*"):
        # Of a run that was killed; its server has ended with it.
        if not Path("/proc", old.name.split("-")[2]).exists():
            shutil.rmtree(old, ignore_errors=True)
    path = Path(tempfile.mkdtemp(prefix=f"sandbox-mariadb-{os.getpid()}-", dir=base))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def _run_as() -> dict[str, Any]:
    """The unprivileged user that a server has to be, for ``subprocess``."""
    user = server_user()
    if user is None:
        return {}
    return {"user": user.uid, "group": user.gid, "extra_groups": []}


def _end_with_us() -> None:
    """Run in the child: be terminated when the parent dies, however it dies."""
    PR_SET_PDEATHSIG = 1
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _initialise(directory: Path) -> Path:
    user = server_user()
    if user is not None:
        os.chown(directory, user.uid, user.gid)
    data = directory / "data"
    program = shutil.which("mariadb-install-db", path=_PATH)
    assert program is not None
    done = subprocess.run(
        [
            program,
            "--no-defaults",
            f"--datadir={data}",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
            "--skip-name-resolve",
            "--innodb-log-file-size=16M",
        ],
        cwd=directory,
        env={**os.environ, "PATH": _PATH, "TMPDIR": str(directory)},
        capture_output=True,
        text=True,
        check=False,
        **_run_as(),
    )
    assert done.returncode == 0, f"mariadb-install-db failed:\n{done.stdout}\n{done.stderr}"
    return data


def _wait_until_ready(process: subprocess.Popen[bytes], path: Path, log: Path) -> None:
    deadline = time.monotonic() + 30
    while True:
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
            probe.connect(str(path))
            return
        running = process.poll() is None and time.monotonic() < deadline
        assert running, f"MariaDB did not start:\n{log.read_text()[-4000:]}"
        time.sleep(0.02)


@contextlib.contextmanager
def start() -> Iterator[MariaDB]:
    """Initialise a data directory and run a server on it; nothing is left afterwards."""
    program = shutil.which("mariadbd", path=_PATH)
    assert program is not None
    with _directory() as directory:
        data = _initialise(directory)
        path, log = directory / "s", directory / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    program,
                    "--no-defaults",
                    f"--datadir={data}",
                    f"--socket={path}",
                    "--skip-networking",
                    "--skip-log-bin",
                    "--innodb-log-file-size=16M",
                    "--innodb-flush-log-at-trx-commit=0",
                    "--innodb-buffer-pool-size=32M",
                    "--innodb-lock-wait-timeout=5",
                    f"--tmpdir={directory}",
                ],
                cwd=directory,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                preexec_fn=_end_with_us,
                **_run_as(),
            )
        try:
            _wait_until_ready(process, path, log)
            yield MariaDB(path, process.pid)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDB]:
    """The server of this worker; its tests are skipped where it is not installed."""
    why = missing()
    if why is not None:
        pytest.skip(f"MariaDB is not tested: {why}")
    with start() as running:
        yield running


# --- applications ------------------------------------------------------------------------------

ASYNC_MYSQL = ("aiomysql", "asyncmy")
MYSQL = ("pymysql", *ASYNC_MYSQL)


class MySQLApp(App):
    """An application whose database is on the MariaDB server."""

    @property
    def is_async(self) -> bool:
        return self.driver in ASYNC_MYSQL

    def outside(self) -> Any:
        """A plain connection, past everything of ours; for ``with contextlib.closing(…)``."""
        import pymysql

        url = sa.make_url(self.outside_url)
        return pymysql.connect(
            unix_socket=url.query["unix_socket"], user="root", database=url.database
        )

    def ask(self, sql: str, *args: Any) -> list[tuple[Any, ...]]:
        """Run a statement from outside, committed at once; its rows."""
        with contextlib.closing(self.outside()) as connection:
            connection.autocommit(True)
            cursor = connection.cursor()
            cursor.execute(sql, args or None)
            return list(cursor.fetchall())

    def names(self) -> list[str]:
        return [name for (name,) in self.ask("SELECT name FROM items ORDER BY name")]

    def empty(self) -> None:
        # What is deleted stays in InnoDB's indexes until it is purged, and the next test's real
        # transactions would wait for one another at the gap.
        self.ask("TRUNCATE TABLE items")

    def is_left(self) -> bool:
        """Whether nobody is connected."""
        return not self.others()

    def others(self) -> list[tuple[Any, ...]]:
        """The connections to the database, but for the one that looks."""
        return self.ask(
            "SELECT id, command, info FROM information_schema.processlist"
            " WHERE db = database() AND id <> connection_id()"
        )


def wait_until(reached: Callable[[], bool], seconds: float = 10, pause: float = 0.005) -> None:
    """Ask a foreign process again and again."""
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(pause)


@pytest.fixture
def make_my_app(mariadb: MariaDB) -> Iterator[Callable[[str], MySQLApp]]:
    """Applications by driver; whatever they left on the server fails the test."""
    apps: list[MySQLApp] = []

    def make(driver: str) -> MySQLApp:
        name = f"test_{driver}"
        url = mariadb.url(name, driver)
        app = MySQLApp(driver, url, url)
        server = MySQLApp(driver, "", mariadb.url("mysql", "pymysql"))
        server.ask(f"CREATE DATABASE IF NOT EXISTS {name}")
        app.ask(
            "CREATE TABLE IF NOT EXISTS items (id integer PRIMARY KEY AUTO_INCREMENT,"
            " name varchar(50) NOT NULL UNIQUE) ENGINE=InnoDB"
        )
        apps.append(app)
        return app

    yield make
    sandbox.stop()
    for app in apps:
        app.dispose()
        left = app.names()
        app.empty()
        assert left == [], f"rows left behind by {app.driver}"
        gc.collect()
        # The server notices a moment later that a client has gone.
        wait_until(app.is_left, 5)


@pytest.fixture(params=MYSQL)
def my_app(request: pytest.FixtureRequest, make_my_app: Callable[[str], MySQLApp]) -> MySQLApp:
    return make_my_app(request.param)

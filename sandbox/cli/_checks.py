"""What ``sandbox doctor`` looks at, each thing really tried: imported, connected to, started."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.metadata
import importlib.util
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sandbox.databases.backends import EmbeddedPostgres, binaries, storage
from sandbox.errors import SandboxError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ("INSTALL_POSTGRES", "Check", "all_checks")

INSTALL_POSTGRES = binaries.INSTALL
_OLDEST_SQLALCHEMY = (2, 0, 30)

# What to import, the distribution that brings it, and what to install.
_DRIVERS = {
    "psycopg": ("psycopg", 'pip install "psycopg[binary]"'),
    "psycopg2": ("psycopg2-binary", "pip install psycopg2-binary"),
    "asyncpg": ("asyncpg", 'pip install "sandbox-orm[asyncio]"'),
    "aiosqlite": ("aiosqlite", 'pip install "sandbox-orm[sqlite]"'),
}
_TOOLS = {
    "pytest": ("pytest", 'pip install "sandbox-orm[pytest]"'),
    "pytest_asyncio": ("pytest-asyncio", "pip install pytest-asyncio"),
    "anyio": ("anyio", "pip install anyio"),
    "xdist": ("pytest-xdist", "pip install pytest-xdist"),
    "alembic": ("alembic", 'pip install "sandbox-orm[migrations]"'),
}


@dataclass(frozen=True, slots=True)
class Check:
    """One row: what was looked at and what came of it.

    ``fix`` is the exact command that installs what is missing, or what else to do.
    """

    group: str
    name: str
    status: Literal["ok", "missing", "broken"]
    detail: str
    fix: str = ""


def all_checks(*, start: bool, progress: Callable[[str], None]) -> Iterator[Check]:
    """Everything, in the order it is shown."""
    yield _python()
    yield _platform()
    yield sqlalchemy()
    for module, (distribution, fix) in _DRIVERS.items():
        yield module_check("drivers", module, distribution, fix)
        if module == "asyncpg":
            yield _sqlite3()
    for module, (distribution, fix) in _TOOLS.items():
        yield module_check("testing", module, distribution, fix)
    yield from _servers()
    yield _memory()
    progress("starting an embedded server")
    yield embedded(start=start)
    yield _sqlite_backend()
    yield docker()


def module_check(group: str, module: str, distribution: str, fix: str) -> Check:
    """Import a module and tell its distribution's version."""
    if importlib.util.find_spec(module) is None:
        return Check(group, distribution, "missing", "", fix)
    try:
        importlib.import_module(module)
    except Exception as error:  # noqa: BLE001  a C extension can fail with anything
        again = f"{fix.replace('pip install', 'pip install --force-reinstall')}"
        return Check(group, distribution, "broken", _said(error), again)
    return Check(group, distribution, "ok", _version(distribution, module))


def sqlalchemy() -> Check:
    """SQLAlchemy, which must not be older than what is supported."""
    fix = 'pip install "sandbox-orm[sqlalchemy]"'
    check = module_check("python", "sqlalchemy", "sqlalchemy", fix)
    if check.status != "ok":
        return check
    numbers = tuple(int(part) for part in check.detail.split(".")[:3] if part.isdigit())
    if numbers < _OLDEST_SQLALCHEMY:
        oldest = ".".join(map(str, _OLDEST_SQLALCHEMY))
        return Check(
            "python",
            "sqlalchemy",
            "broken",
            f"{check.detail} is too old, {oldest} is needed",
            f'pip install --upgrade "sqlalchemy>={oldest}"',
        )
    return check


def embedded(*, start: bool) -> Check:
    """The embedded server: started, asked, stopped and timed, or only looked for."""
    try:
        if not start:
            found = binaries.find()
            version = binaries.version_of(found.postgres)
            return Check("backends", "embedded", "ok", f"PostgreSQL {version}, not started")
        with EmbeddedPostgres.start() as server:
            connected = ", ".join(_connected(server)) or "no driver"
            detail = (
                f"PostgreSQL {server.version} from {server.source}, ready in"
                f" {server.started_in * 1000:.0f} ms, on {server.storage}; {connected} connected"
            )
        return Check("backends", "embedded", "ok", detail)
    except SandboxError as error:
        missing = not binaries.discover()
        return Check(
            "backends",
            "embedded",
            "missing" if missing else "broken",
            error.message,
            INSTALL_POSTGRES if missing else "",
        )


def _connected(server: EmbeddedPostgres) -> Iterator[str]:
    """The drivers that could ask this server something."""
    with contextlib.suppress(Exception):
        import psycopg

        with psycopg.connect(server.url()) as connection:
            connection.execute("SELECT 1")
        yield "psycopg"
    with contextlib.suppress(Exception):
        import psycopg2

        psycopg2.connect(server.url()).close()
        yield "psycopg2"
    with contextlib.suppress(Exception):
        import asyncpg

        async def ask() -> None:
            connection = await asyncpg.connect(server.url())
            await connection.fetchval("SELECT 1")
            await connection.close()

        asyncio.run(ask())
        yield "asyncpg"


def docker() -> Check:
    """The Docker daemon. Nothing in this release needs it."""
    program = shutil.which("docker")
    if program is None:
        return Check("optional", "docker", "missing", "no docker on PATH; not needed")
    try:
        done = subprocess.run(  # noqa: S603
            [program, "version", "--format", "{{.Server.Version}}"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check("optional", "docker", "broken", _said(error), "")
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        detail = said[-1] if said else "the daemon does not answer"
        return Check("optional", "docker", "broken", f"{detail}; not needed", "")
    return Check("optional", "docker", "ok", f"daemon {done.stdout.strip()}")


def _python() -> Check:
    return Check("python", "python", "ok", f"{platform.python_version()}, {sys.executable}")


def _platform() -> Check:
    name = f"{platform.system()} {platform.release()} {platform.machine()}"
    tried = "" if sys.platform == "linux" else ", where sandbox has not been tried"
    return Check("python", "platform", "ok", name + tried)


def _sqlite3() -> Check:
    try:
        import sqlite3
    except ImportError as error:
        fix = "use a Python that was built with SQLite"
        return Check("drivers", "sqlite3", "broken", _said(error), fix)
    return Check("drivers", "sqlite3", "ok", f"SQLite {sqlite3.sqlite_version}")


def _servers() -> Iterator[Check]:
    try:
        found = binaries.discover()
    except SandboxError as error:
        yield Check("postgresql", "programs", "broken", error.message, INSTALL_POSTGRES)
        return
    for each in found:
        detail = f"{each.version or 'does not run here'}, {each.bindir}"
        yield Check("postgresql", each.source, "ok" if each.version else "broken", detail)
    if not found:
        yield Check("postgresql", "programs", "missing", "no server found", INSTALL_POSTGRES)


def _memory() -> Check:
    try:
        chosen = storage.choose(None, storage.server_user())
    except (SandboxError, AttributeError, OSError) as error:  # no os.geteuid on Windows
        return Check("postgresql", "storage", "broken", _said(error))
    return Check("postgresql", "storage", "ok", chosen.words)


def _sqlite_backend() -> Check:
    try:
        from sqlalchemy import create_engine, text

        engine = create_engine("sqlite://")
        with engine.connect() as connection:
            version = connection.execute(text("SELECT sqlite_version()")).scalar_one()
        engine.dispose()
    except ImportError:
        fix = 'pip install "sandbox-orm[sqlite]"'
        return Check("backends", "sqlite", "missing", "needs SQLAlchemy", fix)
    except Exception as error:  # noqa: BLE001  whatever it is, it is to be shown
        return Check("backends", "sqlite", "broken", _said(error))
    return Check("backends", "sqlite", "ok", f"SQLite {version}, through SQLAlchemy")


def _version(distribution: str, module: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return str(getattr(sys.modules[module], "__version__", "unknown version"))


def _said(error: BaseException) -> str:
    return getattr(error, "message", None) or f"{type(error).__name__}: {error}"

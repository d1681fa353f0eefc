from __future__ import annotations

import sqlite3
import sys
import textwrap
from contextlib import closing
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from sandbox.databases import urls
from sandbox.databases.backends import EmbeddedPostgres

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_ENV = {
    "sync": """
from alembic import context
from sqlalchemy import engine_from_config, pool

engine = engine_from_config(
    context.config.get_section("alembic"), prefix="sqlalchemy.", poolclass=pool.NullPool
)
with engine.connect() as connection:
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()
""",
    "async": """
import asyncio
from alembic import context
from sqlalchemy import pool
from sqlalchemy.ext.asyncio import async_engine_from_config

def migrate(connection):
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()

async def main():
    engine = async_engine_from_config(
        context.config.get_section("alembic"), prefix="sqlalchemy.", poolclass=pool.NullPool
    )
    async with engine.connect() as connection:
        await connection.run_sync(migrate)
    await engine.dispose()

asyncio.run(main())
""",
}


class Project:
    """A project's directory, with the little of Alembic that a test needs."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    def alembic(self, env: str = "sync", *, before: str = "", ini: str = "") -> None:
        """Write the configuration and an env.py, which may begin with code of its own."""
        self.write(
            "alembic.ini",
            f"[alembic]\nscript_location = migrations\npath_separator = os\n{ini}",
        )
        self.write("migrations/env.py", before + _ENV[env])
        (self.root / "migrations/versions").mkdir(exist_ok=True)

    def revision(self, name: str, down: str | None, *statements: str) -> Path:
        body = "".join(f"    op.execute({statement!r})\n" for statement in statements)
        return self.write(
            f"migrations/versions/{name}_step.py",
            f'"""step {name}"""\n'
            f"from alembic import op\nrevision = {name!r}\ndown_revision = {down!r}\n"
            f"def upgrade():\n{body or '    pass'}\n",
        )


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    path, modules = list(sys.path), set(sys.modules)
    root = tmp_path / "project"
    root.mkdir()
    yield Project(root)
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        file = getattr(sys.modules[name], "__file__", None)
        paths = getattr(sys.modules[name], "__path__", [])
        if str(file or next(iter(paths), "")).startswith(str(root)):
            del sys.modules[name]


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/app.db"


def sqlite_tables(url: str) -> set[str]:
    with closing(sqlite3.connect(urls.sqlite_path(url) or "")) as connection:
        names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    return {name for name in names if not name.startswith("sqlite_")}


@pytest.fixture
def tables():
    return sqlite_tables


@pytest.fixture(scope="session")
def _server() -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres.start() as server:
        yield server


@pytest.fixture
def postgresql(_server: EmbeddedPostgres) -> Iterator[Database]:
    name = "migrated_test"
    _server.create_database(name)
    yield Database(_server, name)
    _server.drop_database(name)


class Database:
    """A new, empty database on a real server."""

    def __init__(self, server: EmbeddedPostgres, name: str) -> None:
        self._server = server
        self.name = name

    def url(self, driver: str = "psycopg") -> str:
        return self._server.url(self.name, f"postgresql+{driver}")

    def ask(self, sql: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self._server.url(self.name)) as connection:
            return connection.execute(sql.encode()).fetchall()

    def empty(self) -> None:
        self._server.drop_database(self.name)
        self._server.create_database(self.name)

    @property
    def bindir(self) -> Path:
        return self._server.bindir

    def tables(self) -> set[str]:
        return {
            name
            for (name,) in self.ask("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        }

"""Inner runs of pytest, in a project that knows nothing of sandbox but its settings."""

from __future__ import annotations

import os
import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandbox.databases.backends import EmbeddedPostgres

_CACHE = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")

MODELS = """
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

class Base(DeclarativeBase):
    pass

class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(50), unique=True)
"""

SYNC_APP = """
import os
import sqlalchemy as sa
from sqlalchemy.orm import Session
from models import User

engine = sa.create_engine(os.environ["DATABASE_URL"])

def add(name):
    with Session(engine) as session:
        session.add(User(name=name))
        session.commit()

def names():
    with Session(engine) as session:
        return list(session.scalars(sa.select(User.name).order_by(User.name)))
"""

ASYNC_APP = """
import os
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from models import User

engine = create_async_engine(os.environ["DATABASE_URL"])

async def add(name):
    async with AsyncSession(engine) as session:
        session.add(User(name=name))
        await session.commit()

async def names():
    async with AsyncSession(engine) as session:
        return list(await session.scalars(sa.select(User.name).order_by(User.name)))
"""

SETTINGS = """
sandbox_env = "DATABASE_URL=postgresql+psycopg"
sandbox_migrations = "metadata:models:Base"
sandbox_autouse = true
"""

COUNTS_CALLS = """
def build():
    with open("built", "a") as calls:
        calls.write("x")
"""


class Project:
    """Writes an application's project and runs its tests in a process of their own."""

    def __init__(self, pytester: pytest.Pytester, server: EmbeddedPostgres) -> None:
        self.path = pytester.path
        self._pytester = pytester
        self._server = server
        self.write("models.py", MODELS)
        self.write("app.py", SYNC_APP)
        self.settings(SETTINGS)

    def write(self, name: str, text: str) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    def settings(self, text: str) -> None:
        self.write(
            "pyproject.toml",
            "[tool.pytest.ini_options]\n"
            'asyncio_default_fixture_loop_scope = "function"\n'
            'filterwarnings = ["error"]\n'
            'addopts = "-p no:cacheprovider -p no:benchmark -p no:cov -p no:hypothesispytest"\n'
            + textwrap.dedent(text),
        )

    def asynchronous(self, scheme: str = "postgresql+asyncpg") -> None:
        """Make the application an asynchronous one."""
        self.write("app.py", ASYNC_APP)
        self.settings(SETTINGS.replace("postgresql+psycopg", scheme))

    def run(self, *arguments: str) -> pytest.RunResult:
        return self._pytester.runpytest_subprocess(*arguments)

    def passes(self, tests: str, count: int, *arguments: str) -> pytest.RunResult:
        """Run these tests alone; all of them pass."""
        self.write("test_it.py", tests)
        result = self.run(*arguments)
        result.assert_outcomes(passed=count)
        assert result.ret == 0
        return result

    def databases(self) -> set[str]:
        """The databases of runs that are on the server now."""
        with psycopg.connect(self._server.url()) as connection:
            rows = connection.execute("SELECT datname FROM pg_database").fetchall()
        return {name for (name,) in rows if name.startswith("sandbox_run_")}


@pytest.fixture
def project(
    pytester: pytest.Pytester, server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Project]:
    for name in [name for name in os.environ if name.startswith(("PYTEST_XDIST", "SANDBOX_"))]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    # What xdist's workers are told: inner runs then make a database instead of a server.
    monkeypatch.setenv("SANDBOX_SERVER", str(server.run_dir))
    # pytester has moved the home directory, and with it the server's cache.
    monkeypatch.setenv("XDG_CACHE_HOME", _CACHE)
    project = Project(pytester, server)
    yield project
    assert project.databases() == set(), "the inner run left its database behind"


def summary(result: pytest.RunResult) -> dict[str, int]:
    """The figures of the plugin's line at the end."""
    line = next(
        line for line in result.outlines if line.startswith("sandbox: ") and "isolated" in line
    )
    found = re.search(r"(\d+) tests? isolated.*?(\d+) statements?, (\d+) extra round trip", line)
    assert found is not None, line
    return dict(zip(("tests", "statements", "round_trips"), map(int, found.groups()), strict=True))


@pytest.fixture
def named_database(server: EmbeddedPostgres) -> Iterator[str]:
    """The URL of a database that was not made by the plugin."""
    server.create_database("shop_test")
    yield server.url("shop_test", "postgresql+psycopg")
    server.drop_database("shop_test")

"""Real databases for the tests: one server a run, one database for each driver."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.util.concurrency import greenlet_spawn

import sandbox
from sandbox.databases.backends import EmbeddedPostgres

metadata = sa.MetaData()
items = sa.Table(
    "items",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(50), unique=True, nullable=False),
)

POSTGRESQL = ("psycopg", "psycopg2", "asyncpg", "psycopg_async")
SQLITE = ("pysqlite", "aiosqlite")
DRIVERS = POSTGRESQL + SQLITE
ASYNC = ("asyncpg", "psycopg_async", "aiosqlite")


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres.start() as running:
        yield running


@dataclass
class App:
    """An application's database: engines as it would make them, and an eye from outside."""

    driver: str
    url: str
    outside_url: str
    engines: list[Any] = field(default_factory=list)

    @property
    def is_async(self) -> bool:
        return self.driver in ASYNC

    @property
    def is_sqlite(self) -> bool:
        return self.driver in SQLITE

    def make_engine(self, **options: Any) -> sa.Engine:
        """A new engine; of an asynchronous one the synchronous core, to be used through run()."""
        if self.is_async:
            engine = create_async_engine(self.url, **options)
            self.engines.append(engine)
            return engine.sync_engine
        sync = sa.create_engine(self.url, **options)
        self.engines.append(sync)
        return sync

    def run(self, case: Callable[..., Any], *args: Any) -> Any:
        """Run a case as an application with this driver would: here, or in a greenlet."""
        if self.is_async:
            return asyncio.run(greenlet_spawn(case, *args))
        return case(*args)

    def names(self) -> list[str]:
        """What somebody else sees in the database, through no engine."""
        with contextlib.closing(self._outside()) as connection:
            return [name for (name,) in connection.execute("SELECT name FROM items ORDER BY name")]

    def empty(self) -> None:
        with contextlib.closing(self._outside()) as connection:
            connection.execute("DELETE FROM items")
            connection.commit()

    def _outside(self) -> Any:
        import psycopg

        if self.is_sqlite:
            return sqlite3.connect(self.outside_url.removeprefix("sqlite:///"))
        return psycopg.connect(self.outside_url)

    def dispose(self) -> None:
        for engine in self.engines:
            if isinstance(engine, AsyncEngine):
                asyncio.run(engine.dispose())
            else:
                engine.dispose()
        self.engines.clear()


def terminate(app: App, process: int) -> None:
    """End a server process and wait until it is gone."""
    import psycopg

    # In a transaction pg_stat_activity would show what it showed at first.
    with psycopg.connect(app.outside_url, autocommit=True) as connection:
        connection.execute("SELECT pg_terminate_backend(%s)", [process])
        while connection.execute(
            "SELECT 1 FROM pg_stat_activity WHERE pid = %s", [process]
        ).fetchone():
            pass


def _urls(driver: str, server: EmbeddedPostgres | None, directory: Path) -> tuple[str, str]:
    if driver in SQLITE:
        path = directory / f"{driver}.db"
        return f"sqlite+{driver}:///{path}", f"sqlite:///{path}"
    assert server is not None
    name = f"test_{driver}"
    if not server.database_exists(name):
        server.create_database(name)
    sqlalchemy_name = "psycopg" if driver == "psycopg_async" else driver
    return server.url(name, f"postgresql+{sqlalchemy_name}"), server.url(name)


@pytest.fixture(scope="session")
def _app_urls(
    server: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[str, str]]:
    made: dict[str, tuple[str, str]] = {}
    directory = tmp_path_factory.mktemp("sqlite")

    def urls(driver: str) -> tuple[str, str]:
        if driver not in made:
            made[driver] = _urls(driver, server, directory)
            url = sa.make_url(made[driver][1])
            if driver in POSTGRESQL:
                url = url.set(drivername="postgresql+psycopg")
            engine = sa.create_engine(url, poolclass=sa.NullPool)
            metadata.create_all(engine)
            engine.dispose()
        return made[driver]

    return urls


@pytest.fixture
def make_app(_app_urls: Callable[[str], tuple[str, str]]) -> Iterator[Callable[[str], App]]:
    """Applications by driver; whatever they left in the database fails the test."""
    apps: list[App] = []

    def make(driver: str) -> App:
        app = App(driver, *_app_urls(driver))
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


@pytest.fixture(params=DRIVERS)
def app(request: pytest.FixtureRequest, make_app: Callable[[str], App]) -> App:
    return make_app(request.param)


@pytest.fixture(params=POSTGRESQL)
def pg_app(request: pytest.FixtureRequest, make_app: Callable[[str], App]) -> App:
    return make_app(request.param)

"""The database of one run, or of one worker of it: made, found by its URL, and gone at the end."""

from __future__ import annotations

import os
import secrets
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

from sandbox.databases import urls
from sandbox.errors import ConfigurationError
from sandbox.pytest_plugin.files import RunFiles
from sandbox.pytest_plugin.worker import FILES_VARIABLE, SERVER_VARIABLE, worker_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.databases.backends import EmbeddedPostgres
    from sandbox.pytest_plugin.settings import Settings

__all__ = ("RunDatabase", "open_database")

_SUPPORTED = ("postgresql", "sqlite")


class RunDatabase(ABC):
    """Where this process's tests run."""

    shares: dict[str, str]
    """What the environment of the workers has to say for them to find this."""
    made_here = True
    """Whether it is new, or ours to use as we like; False for one that the user named."""

    @property
    @abstractmethod
    def description(self) -> str:
        """For the header."""

    @abstractmethod
    def url(self, scheme: str | None = None) -> str:
        """The database's URL for SQLAlchemy, ``scheme`` being its dialect and driver."""

    def migrate(self, action: Callable[[], None]) -> None:
        """Build the schema, if nobody else has."""
        action()

    def obstacle(self, *, migrated: bool) -> str | None:
        """Why it cannot be made anew, or None; ``migrated``: the schema is of our making."""
        del migrated
        return None

    @abstractmethod
    def renew(self) -> None:
        """Make it anew, empty, where there is no obstacle. No connection of ours is in use."""

    @abstractmethod
    def close(self) -> None:
        """Remove what was made."""


def open_database(settings: Settings, *, controller: bool) -> RunDatabase:
    """Make or find the database; for xdist's controller only what its workers share.

    Raises ServerStartError, UnsafeDatabaseError, ConfigurationError; nothing is left behind then.
    """
    if settings.url is not None:
        return _Named(
            settings.url,
            allow_any=settings.allow_any_database,
            clock=settings.clock,
            controller=controller,
        )
    if settings.backend == "sqlite":
        if settings.clock in {"replace", "shadow"}:
            raise ConfigurationError(
                f"sandbox_clock = {settings.clock} is not possible with sandbox_backend = sqlite:"
                " SQLite's functions for the time cannot be replaced. Leave it out."
            )
        return _SqliteFile(controller=controller)
    return _Embedded.open(controller=controller, clock=settings.clock)


class _Embedded(RunDatabase):
    """A database of its own on the run's embedded server."""

    def __init__(
        self, server: EmbeddedPostgres, name: str | None, *, attached: bool, clock: str
    ) -> None:
        self._server = server
        self._name = name
        self._attached = attached
        self._clock = clock
        self.shares = {SERVER_VARIABLE: str(server.run_dir)}

    @classmethod
    def open(cls, *, controller: bool, clock: str) -> _Embedded:
        from sandbox.databases.backends import EmbeddedPostgres
        from sandbox.databases.clock import install

        run_dir = os.environ.get(SERVER_VARIABLE)
        server = EmbeddedPostgres.attach(Path(run_dir)) if run_dir else EmbeddedPostgres.start()
        try:
            name = None
            if not controller:
                # Random: a worker that crashed is replaced by one that makes its own.
                worker = worker_name()
                suffix = f"_{worker}" if worker else ""
                name = f"sandbox_run_{secrets.token_hex(4)}{suffix}"
                server.create_database(name)
                install(server, name, clock)
            return cls(server, name, attached=run_dir is not None, clock=clock)
        except BaseException:
            server.close()
            raise

    @property
    def description(self) -> str:
        server = self._server
        database = f"database {self._name}" if self._name else "a database for each worker"
        how = "shared" if self._attached else f"started in {server.started_in * 1000:.0f} ms"
        return f"PostgreSQL {server.version} (embedded, {server.storage}), {database}, {how}"

    def url(self, scheme: str | None = None) -> str:
        # The controller's own imports of the application need some URL; no test runs there.
        name = self._name or "postgres"
        if scheme is None:
            return urls.sync_url(self._server.url(name))
        _check_dialect(scheme, "postgresql", "an embedded PostgreSQL")
        return self._server.url(name, scheme)

    def renew(self) -> None:
        from sandbox.databases.clock import install

        assert self._name is not None
        self._server.drop_database(self._name)
        self._server.create_database(self._name)
        install(self._server, self._name, self._clock)

    def close(self) -> None:
        try:
            if self._attached and self._name:
                # The server may outlive us by far; otherwise it vanishes whole.
                self._server.drop_database(self._name)
        finally:
            self._server.close()


class _SqliteFile(RunDatabase):
    """A file in a temporary directory."""

    def __init__(self, *, controller: bool) -> None:
        shared = os.environ.get(FILES_VARIABLE)
        self._files = RunFiles.join(Path(shared)) if shared else RunFiles.make()
        name = "controller" if controller else worker_name() or "run"
        self._path = self._files.path / f"{name}-{secrets.token_hex(4)}.db"
        self.shares = {FILES_VARIABLE: str(self._files.path)}

    @property
    def description(self) -> str:
        import sqlite3

        return f"SQLite {sqlite3.sqlite_version}, file {self._path}"

    def url(self, scheme: str | None = None) -> str:
        if scheme is None:
            scheme = "sqlite"
        elif urls.dialect_of(f"{scheme}://") != "sqlite":
            # The application's setting for its production database: keep its kind of driver.
            is_async = urls.driver_of(f"{scheme}://") in urls.ASYNC_DRIVERS
            scheme = "sqlite+aiosqlite" if is_async else "sqlite"
        return f"{scheme}:///{self._path}"

    def renew(self) -> None:
        for path in self._path.parent.glob(f"{self._path.name}*"):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        self.renew()
        self._files.close()


class _Named(RunDatabase):
    """The database that the user named, on a server of theirs: used, and left as it is.

    Unless a test has written to it for good: then it is made anew where that can be done.
    """

    made_here = False

    def __init__(self, url: str, *, allow_any: bool, clock: str, controller: bool) -> None:
        _check_supported(url)
        urls.refuse_unless_test_database(url, allow_any=allow_any)
        self._url = url
        self._clock = clock
        self._filled: str | None = None
        """A table that had rows before this run."""
        self._files: RunFiles | None = None
        shared = os.environ.get(FILES_VARIABLE)
        if shared:
            self._files = RunFiles.join(Path(shared))
        elif controller:
            self._files = RunFiles.make()
        self.shares = {FILES_VARIABLE: str(self._files.path)} if self._files else {}

    @property
    def description(self) -> str:
        return f"{urls.hide_password(self._url)} (sandbox_url)"

    def url(self, scheme: str | None = None) -> str:
        if scheme is None:
            return self._url
        dialect = urls.dialect_of(self._url)
        _check_dialect(scheme, dialect, urls.hide_password(self._url))
        return urls.with_driver(self._url, urls.driver_of(f"{scheme}://"))

    def migrate(self, action: Callable[[], None]) -> None:
        self._check_connection()
        # All workers meet in this one database.
        if self._files is not None:
            self._files.once(lambda: self._build(action))
        else:
            self._build(action)

    def obstacle(self, *, migrated: bool) -> str | None:
        from sandbox.pytest_plugin import renewal

        if not migrated:
            return "no sandbox_migrations say how to build it again"
        if self._files is not None:
            return "the other workers of pytest-xdist are using it"
        if self._filled is not None:
            return f"its table {self._filled} had rows before this run, which would be lost"
        return renewal.obstacle(self._url)

    def renew(self) -> None:
        from sandbox.pytest_plugin import renewal

        renewal.renew(self._url)

    def close(self) -> None:
        if self._files is not None:
            self._files.close()

    def _build(self, action: Callable[[], None]) -> None:
        from sandbox.databases.clock import arrange
        from sandbox.pytest_plugin import renewal

        self._filled = renewal.filled_table(self._url)
        arrange(self._url, self._clock)
        action()

    def _check_connection(self) -> None:
        from sqlalchemy import NullPool, create_engine
        from sqlalchemy.exc import SQLAlchemyError

        engine = create_engine(urls.sync_url(self._url), poolclass=NullPool)
        try:
            engine.connect().close()
        except SQLAlchemyError as error:
            raise ConfigurationError(
                f"sandbox_url: cannot connect to {urls.hide_password(self._url)}:"
                f"\n  {str(getattr(error, 'orig', None) or error).strip()}"
                "\nIs the server running, and are host, port, user, password and database right?"
            ) from error


def _check_dialect(scheme: str, dialect: str, what: str) -> None:
    if urls.dialect_of(f"{scheme}://") != dialect:
        raise ConfigurationError(
            f"sandbox_env asks for a URL of the kind {scheme}://, but the database is {what}."
            f" Write NAME={dialect}+driver."
        )


def _check_supported(url: str) -> None:
    dialect = urls.dialect_of(url)
    if dialect not in _SUPPORTED:
        raise ConfigurationError(
            f"sandbox_url: {urls.hide_password(url)} names a {dialect} database, which cannot be"
            f" sandboxed. This version has {' and '.join(_SUPPORTED)}."
        )
    if dialect == "sqlite" and urls.sqlite_path(url) is None:
        raise ConfigurationError(
            f"sandbox_url: {url} is a database in memory, which every connection has for itself."
            " Use a file, or leave sandbox_url out and set sandbox_backend = sqlite."
        )

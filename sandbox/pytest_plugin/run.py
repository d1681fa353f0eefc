"""One run of pytest in this process: its database, its engines, and the end of both."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from sandbox.errors import ConfigurationError, SandboxError, SandboxEscapeError
from sandbox.pytest_plugin.settings import unconfigured_error

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Hashable, Iterable

    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

    from sandbox.connection.escapes import Escape
    from sandbox.databases.migrations import MigrationSource
    from sandbox.pytest_plugin.database import RunDatabase
    from sandbox.pytest_plugin.settings import Settings

__all__ = ("RUN", "Run", "end_session")

RUN: pytest.StashKey[Run] = pytest.StashKey()

_EXIT_CODE = int(pytest.ExitCode.USAGE_ERROR)


class Run:
    """What the plugin has done in this process so far, and what it has to undo.

    Nothing at all at first. ``start`` makes the database and names it in the environment;
    ``ready`` also builds the schema and puts the sandbox under every engine of that database.
    For the main thread.
    """

    def __init__(
        self, config: pytest.Config, options: argparse.Namespace, settings: Settings
    ) -> None:
        from sandbox.pytest_plugin.worker import is_controller

        self.settings = settings
        self.controller = is_controller(config, options)
        self._root = config.inipath.parent if config.inipath is not None else config.rootpath
        self._config = config
        self._database: RunDatabase | None = None
        self._sources: tuple[MigrationSource, ...] = ()
        self._watched: tuple[Hashable, str] | None = None
        self._environment: dict[str, str | None] = {}
        self._engines: dict[str, Any] = {}
        self._mode = "manual"
        self.escaped: tuple[str, Escape] | None = None
        """The test that wrote to the database for good, and how, until that is healed."""

    # -- beginning -------------------------------------------------------------------------------

    def check(self) -> None:
        """Read the migrations' specs, so that a wrong one is said before anything starts."""
        if self.settings.migrations:
            from sandbox.databases.migrations import parse_sources

            self._sources = parse_sources(self.settings.migrations, root=self._root)

    def start(self) -> RunDatabase:
        """Make the database and say in the environment where it is; idempotent.

        In xdist's controller only what the workers share. Raises SandboxError.
        """
        if self._database is None:
            from sandbox.pytest_plugin.database import open_database

            database = open_database(self.settings, controller=self.controller)
            self._database = database
            for variable in self.settings.env:
                self._set(variable.name, database.url(variable.scheme))
            if self.controller:
                for name, value in database.shares.items():
                    self._set(name, value)
        return self._database

    def ready(self) -> tuple[Hashable, str]:
        """The migrated database, watched, in mode manual; idempotent.

        Ends the session where that cannot be had: no test could run. ConfigurationError where
        nothing was set at all.
        """
        if not self.settings.configured:
            raise unconfigured_error("This test")
        if self._watched is None:
            try:
                self._watched = self._prepare()
            except SandboxError as error:
                self.close()
                end_session(self._config, error)
        return self._watched

    def set_mode(self, mode: str) -> None:
        """The mode of the run's database, from now on or from when it is there."""
        self._mode = mode
        if self._watched is not None:
            from sandbox import _api

            _api.set_mode(self._watched[0], mode)

    # -- escapes ---------------------------------------------------------------------------------

    def note_escape(self, nodeid: str, escape: Escape) -> bool:
        """Whether it was one from the run's own database, which is healed before the next test."""
        if self._watched is None or escape.database != self._watched[0]:
            return False
        self.escaped = self.escaped or (nodeid, escape)
        return True

    def heal(self, *, last: bool = False) -> str:
        """After an escape: make the database anew, and say in words what became of it.

        The application's engines go on: same URL, and their connections are virtual. Ends the
        session where it cannot be done, since no further test could be believed; after the last
        one it is only said.
        """
        assert self.escaped is not None
        assert self._database is not None
        (nodeid, escape), self.escaped = self.escaped, None
        if last and self._database.made_here:
            return "goes with this run"
        obstacle = self._database.obstacle(migrated=bool(self._sources))
        if obstacle is None:
            try:
                self._rebuild()
            except Exception as error:  # noqa: BLE001 - whatever it was, the database is of no use
                obstacle = f"{type(error).__name__}: {getattr(error, 'message', error)}"
        if obstacle is not None and not last:
            self.close()
            end_session(self._config, _unhealed(nodeid, escape, obstacle))
        if obstacle is not None:
            return f"keeps what it wrote, and was not built anew: {obstacle}"
        return "was built anew"

    def _rebuild(self) -> None:
        from sandbox import _api
        from sandbox.core.owner import run_as

        assert self._database is not None
        assert self._watched is not None
        database = self._watched[0]
        # Those of wider fixtures: what they held is lost with the database.
        _check_in_all(held for held in _api._registry.held() if held.database == database)
        _api.disconnect(database)
        self._database.renew()
        _api.set_mode(database, "auto")
        try:
            with run_as(None):
                self._database.migrate(self._migrate)
        finally:
            _api.set_mode(database, self._mode)

    def _prepare(self) -> tuple[Hashable, str]:
        from sandbox import _api

        if self.controller:
            # xdist decided to run everything here after all.
            self.close()
            self.controller = False
        database = self.start()
        database.migrate(self._migrate)
        # Only now: migrations are real, and engines they used are taken over at the next connect.
        watched = _api.watch(database.url())
        _api.set_mode(watched[0], self._mode)
        return watched

    def _migrate(self) -> None:
        assert self._database is not None
        for source in self._sources:
            source.run(self._database.url())

    def _set(self, name: str, value: str) -> None:
        self._environment.setdefault(name, os.environ.get(name))
        os.environ[name] = value

    # -- what tests are given ----------------------------------------------------------------------

    def url(self) -> str:
        """The migrated database's URL, for a synchronous engine."""
        from sandbox.databases import urls

        self.ready()
        found = self._application_urls()
        synchronous = [url for url in found if urls.driver_of(url) not in urls.ASYNC_DRIVERS]
        return urls.sync_url((synchronous or found)[0])

    def engine(self) -> Engine:
        """A synchronous engine of the plugin's own, on the application's driver."""
        if "sync" not in self._engines:
            from sqlalchemy import NullPool, create_engine

            url = self._url_for("synchronous", lambda driver: driver not in _async_drivers())
            self._engines["sync"] = create_engine(url, poolclass=NullPool)
        engine: Engine = self._engines["sync"]
        return engine

    def async_engine(self) -> AsyncEngine:
        """An asynchronous one."""
        if "async" not in self._engines:
            from sqlalchemy import NullPool
            from sqlalchemy.ext.asyncio import create_async_engine

            both = {"psycopg", *_async_drivers()}
            url = self._url_for("asynchronous", lambda driver: driver in both)
            self._engines["async"] = create_async_engine(url, poolclass=NullPool)
        engine: AsyncEngine = self._engines["async"]
        return engine

    def _url_for(self, kind: str, serves: Callable[[str | None], bool]) -> str:
        """A URL whose driver the application uses too, where that is known.

        Another driver has another real connection. It would not see what the application wrote,
        and would wait for ever for a row that it locked.
        """
        from sandbox.databases import urls

        self.ready()
        assert self._database is not None
        if not self.settings.env:
            url = self._database.url()
            return urls.sync_url(url) if kind == "synchronous" else urls.async_url(url)
        found = self._application_urls()
        for url in found:
            if serves(urls.driver_of(url)):
                return url
        drivers = ", ".join(urls.driver_of(url) or urls.dialect_of(url) for url in found)
        raise ConfigurationError(
            f"The application uses {drivers} (sandbox_env), which {kind} sessions cannot. On"
            " another driver they would not see what the application writes. Use the fixture of"
            " the other kind, or name a second variable in sandbox_env if the application has two"
            " engines."
        )

    def _application_urls(self) -> list[str]:
        """As the application has been told."""
        assert self._database is not None
        schemes = [variable.scheme for variable in self.settings.env] or [None]
        return [self._database.url(scheme) for scheme in schemes]

    # -- header and end ----------------------------------------------------------------------------

    def describe(self) -> str | None:
        """The header's line; None where there is nothing to say."""
        if not self.settings.configured:
            return None
        where = (
            self._database.description
            if self._database is not None
            else f"{self.settings.backend} database, made when a test needs it"
        )
        return f"sandbox: {where}, isolation {self.settings.isolation}"

    def close(self) -> None:
        """Undo everything; idempotent."""
        try:
            if self._watched is not None:
                self._release(self._watched[0])
        finally:
            self._watched = None
            database, self._database = self._database, None
            for name, value in self._environment.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
            self._environment.clear()
            if database is not None:
                database.close()

    def _release(self, database: Hashable) -> None:
        from sandbox import _api

        for engine in self._engines.values():
            getattr(engine, "sync_engine", engine).dispose()
        self._engines.clear()
        _check_in_all(held for held in _api._registry.held() if held.database == database)
        if not _api._registry.held():
            _api.stop()


def _async_drivers() -> frozenset[str]:
    from sandbox.databases import urls

    return urls.ASYNC_DRIVERS


def _unhealed(nodeid: str, escape: Escape, obstacle: str) -> SandboxEscapeError:
    return SandboxEscapeError(
        f"{nodeid} ended the transaction around it by {escape.how}. What it wrote is in the"
        f" {escape.name} for good, and that cannot be built anew: {obstacle}."
        f"\nThe run ends here: tests that find such rows tell nothing. Let the driver or the ORM"
        f" commit instead (connection.commit()), clean the database up, and run again."
    )


def _check_in_all(sandboxes: Iterable[Any]) -> None:
    import contextlib

    from sandbox import _api

    for sandbox in sandboxes:
        with contextlib.suppress(SandboxError):
            _api.checkin(sandbox)


def end_session(config: pytest.Config, error: SandboxError) -> NoReturn:
    """End the run with one message instead of one for every test; exit code 4.

    A worker cannot speak to the user: it leaves its words to the controller.
    """
    output = getattr(config, "workeroutput", None)
    if output is not None:
        output["sandbox_error"] = str(error)
    pytest.exit(str(error), returncode=_EXIT_CODE)

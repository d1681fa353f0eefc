"""The fixtures that tests ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from sandbox.errors import ConfigurationError
from sandbox.pytest_plugin.plan import CHECKOUT_FIXTURE
from sandbox.pytest_plugin.settings import unconfigured_error

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

    from sandbox.connection.sandbox import Sandbox
    from sandbox.core.owner import Owner
    from sandbox.pytest_plugin.items import ItemHooks, ItemState

__all__ = ("Fixtures",)


class Fixtures:
    """Registered by ``pytest_configure``; the fixtures are its methods."""

    def __init__(self, hooks: ItemHooks) -> None:
        self._hooks = hooks

    @pytest.fixture(scope="session")
    def sandbox_url(self) -> str:
        """The URL of this worker's migrated database, for a synchronous SQLAlchemy engine."""
        run = self._hooks.run
        if not run.settings.configured:
            _fail(unconfigured_error("The fixture `sandbox_url`"))
        return run.url()

    @pytest.fixture(scope="session")
    def sandbox_engines(self) -> list[Any]:
        """The engines to sandbox; none named: every engine of the run's database.

        Override it in conftest.py to sandbox engines of your own, of whatever database.
        """
        return []

    @pytest.fixture(name=CHECKOUT_FIXTURE)
    def _engines_checked_out(self, sandbox_engines: Any) -> None:
        self._hooks.check_out_engines(_listed(sandbox_engines))

    @pytest.fixture
    def sandboxed(self, request: pytest.FixtureRequest) -> Sandbox:
        """The test's sandbox; asking for it sandboxes the test."""
        return self._sandbox(request)

    @pytest.fixture
    def sandbox_owner(self, request: pytest.FixtureRequest) -> Owner:
        """Who this test is: for sandbox.allow() and sandbox.run_as()."""
        state = self._state()
        if state.owner is None:
            pytest.fail(f"{request.node.nodeid} is marked no_sandbox: it has no owner.", False)
        return state.owner

    @pytest.fixture
    def sandbox_connection(self, request: pytest.FixtureRequest) -> Connection:
        """A SQLAlchemy connection in this test's sandbox."""
        connection = self._engine(request).connect()
        self._state().after.append(connection.close)
        return connection

    @pytest.fixture
    def sandbox_session(self, request: pytest.FixtureRequest) -> Session:
        """An ORM session in this test's sandbox."""
        from sqlalchemy.orm import Session

        session = Session(self._engine(request))
        self._state().after.append(session.close)
        return session

    @pytest.fixture
    def sandbox_async_session(self, request: pytest.FixtureRequest) -> AsyncSession:
        """An AsyncSession in this test's sandbox, for tests of pytest-asyncio and anyio alike."""
        from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

        self._sandbox(request)
        engine = next((e for e in self._named(request) if isinstance(e, AsyncEngine)), None)
        if engine is None:
            if not self._hooks.run.settings.names_database:
                _fail(
                    ConfigurationError(
                        "The fixture `sandbox_async_session` needs an AsyncEngine, and"
                        " `sandbox_engines` names none."
                    )
                )
            engine = self._hooks.run.async_engine()
        # No coroutine of ours: which event loop would run it? After check-in there is nothing
        # left to roll back, so the synchronous close has no I/O to do.
        session = AsyncSession(engine)
        self._state().after.append(session.sync_session.close)
        return session

    def _engine(self, request: pytest.FixtureRequest) -> Engine:
        from sqlalchemy import Engine

        self._sandbox(request)
        for engine in self._named(request):
            if isinstance(engine, Engine):
                return engine
        run = self._hooks.run
        if not run.settings.names_database and self._named(request):
            _fail(
                ConfigurationError(
                    f"The fixture `{request.fixturename}` needs a synchronous engine, and"
                    " `sandbox_engines` names asynchronous ones only: use sandbox_async_session."
                )
            )
        return run.engine()

    def _named(self, request: pytest.FixtureRequest) -> list[Any]:
        return _listed(request.getfixturevalue("sandbox_engines"))

    def _sandbox(self, request: pytest.FixtureRequest) -> Sandbox:
        state = self._state()
        if not state.sandboxes:
            pytest.fail(
                f"{request.node.nodeid} got `{request.fixturename}` through"
                " request.getfixturevalue(), too late to be sandboxed. Name it among the"
                " arguments, or add @pytest.mark.usefixtures('sandboxed').",
                pytrace=False,
            )
        return state.sandboxes[0]

    def _state(self) -> ItemState:
        state = self._hooks.state
        assert state is not None
        return state


def _listed(engines: Any) -> list[Any]:
    """One engine, or any number of them."""
    return list(engines) if isinstance(engines, (list, tuple, set, frozenset)) else [engines]


def _fail(error: ConfigurationError) -> None:
    pytest.fail(error.message, pytrace=False)

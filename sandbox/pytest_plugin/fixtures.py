"""The fixtures that tests ask for. A plugin of its own, registered by ``pytest_configure``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import pytest

from sandbox.errors import ConfigurationError
from sandbox.pytest_plugin.items import HOOKS, ItemState
from sandbox.pytest_plugin.plan import CHECKOUT_FIXTURE
from sandbox.pytest_plugin.settings import unconfigured_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection, Engine
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

    from sandbox.connection.sandbox import Sandbox
    from sandbox.core.owner import Owner
    from sandbox.pytest_plugin.run import Run

__all__ = ()

_E = TypeVar("_E")


@pytest.fixture(scope="session")
def sandbox_url(request: pytest.FixtureRequest) -> str:
    """The URL of this worker's migrated database, for a synchronous SQLAlchemy engine."""
    run = _run(request)
    if not run.settings.configured:
        _fail(unconfigured_error("The fixture `sandbox_url`"))
    return run.url()


@pytest.fixture(scope="session")
def sandbox_engines() -> list[Any]:
    """The engines to sandbox; none named: every engine of the run's database.

    Override it in conftest.py to sandbox engines of your own, of whatever database.
    """
    return []


@pytest.fixture(name=CHECKOUT_FIXTURE)
def _engines_checked_out(request: pytest.FixtureRequest, sandbox_engines: Any) -> Iterator[None]:
    yield from request.config.stash[HOOKS].check_out_engines(_listed(sandbox_engines))


@pytest.fixture
def sandboxed(request: pytest.FixtureRequest) -> Sandbox:
    """The test's sandbox; asking for it sandboxes the test."""
    return _sandbox(request)


@pytest.fixture
def sandbox_owner(request: pytest.FixtureRequest) -> Owner:
    """Who the test is: for sandbox.allow() and sandbox.run_as()."""
    owner = _state(request).owner
    if owner is None:
        pytest.fail(f"{request.node.nodeid} has no owner: it is marked no_sandbox.", pytrace=False)
    return owner


@pytest.fixture
def sandbox_connection(request: pytest.FixtureRequest) -> Connection:
    """A SQLAlchemy connection in the test's sandbox."""
    connection = _engine(request).connect()
    _state(request).after.append(connection.close)
    return connection


@pytest.fixture
def sandbox_session(request: pytest.FixtureRequest) -> Session:
    """An ORM session in the test's sandbox."""
    from sqlalchemy.orm import Session

    session = Session(_engine(request))
    _state(request).after.append(session.close)
    return session


@pytest.fixture
def sandbox_async_session(request: pytest.FixtureRequest) -> AsyncSession:
    """An AsyncSession in the test's sandbox, for tests of pytest-asyncio and anyio alike."""
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

    _sandbox(request)
    named = [engine for engine in _named(request) if isinstance(engine, AsyncEngine)]
    engine = named[0] if named else _engine_of(_own_run(request, "an AsyncEngine").async_engine)
    # No coroutine of ours: which event loop would run it? After check-in nothing is left to roll
    # back, so that closing does no I/O and can be done from a plain function.
    session = AsyncSession(engine)
    _state(request).after.append(session.sync_session.close)
    return session


def _engine(request: pytest.FixtureRequest) -> Engine:
    from sqlalchemy import Engine

    _sandbox(request)
    named = [engine for engine in _named(request) if isinstance(engine, Engine)]
    return named[0] if named else _engine_of(_own_run(request, "a synchronous Engine").engine)


def _engine_of(make: Callable[[], _E]) -> _E:
    try:
        return make()
    except ConfigurationError as error:
        _fail(error)


def _own_run(request: pytest.FixtureRequest, what: str) -> Run:
    """The run, whose database is sandboxed too, where the user's engines are of another kind."""
    run = _run(request)
    if _named(request) and not run.settings.names_database:
        _fail(
            ConfigurationError(
                f"The fixture `{request.fixturename}` needs {what}, and `sandbox_engines` names"
                " none. Add one of the same database, or use the fixture of the other kind."
            )
        )
    return run


def _named(request: pytest.FixtureRequest) -> list[Any]:
    return _listed(request.getfixturevalue("sandbox_engines"))


def _sandbox(request: pytest.FixtureRequest) -> Sandbox:
    sandboxes = _state(request).sandboxes
    if not sandboxes:
        pytest.fail(
            f"{request.node.nodeid} got `{request.fixturename}` through request.getfixturevalue(),"
            " too late to be sandboxed. Name it among the arguments, or add"
            " @pytest.mark.usefixtures('sandboxed').",
            pytrace=False,
        )
    return sandboxes[0]


def _run(request: pytest.FixtureRequest) -> Run:
    return request.config.stash[HOOKS].run


def _state(request: pytest.FixtureRequest) -> ItemState:
    state = request.config.stash[HOOKS].state
    assert state is not None
    return state


def _listed(engines: Any) -> list[Any]:
    """One engine, or any number of them."""
    return list(engines) if isinstance(engines, (list, tuple, set, frozenset)) else [engines]


def _fail(error: ConfigurationError) -> NoReturn:
    pytest.fail(error.message, pytrace=False)

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from httpx import ASGITransport, AsyncClient
from shop import Shop
from starlette.testclient import TestClient

import sandbox
from bookshop.app import app


@pytest.fixture
def fulfilment_allowed(sandboxed: sandbox.Sandbox) -> None:
    """The warehouse's threads, which the application starts itself, work in this test's sandbox."""
    sandbox.allow(sandboxed, "fulfilment*")


@pytest.fixture
async def client(fulfilment_allowed: None) -> AsyncIterator[AsyncClient]:
    """The running application, from start-up to shutdown."""
    async with (
        app.router.lifespan_context(app),
        AsyncClient(transport=ASGITransport(app), base_url="http://shop") as client,
    ):
        yield client
    app.dependency_overrides.clear()


@pytest.fixture
def shop(client: AsyncClient) -> Shop:
    """The application and the few calls most tests begin with."""
    return Shop(client)


@pytest.fixture
def browser(fulfilment_allowed: None) -> Iterator[TestClient]:
    """The running application for tests that are no coroutines."""
    with TestClient(app) as browser:
        yield browser

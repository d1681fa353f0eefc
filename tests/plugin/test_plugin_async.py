from __future__ import annotations

import pytest

from tests.plugin.conftest import Project

# Fixtures and tests of one scope of loop; the engine is the application's, used from all of them.
SCOPES = """
import app, pytest, pytest_asyncio

@pytest_asyncio.fixture
async def ann():
    await app.add("ann")
    yield "ann"
    assert "ann" in await app.names()

@pytest.fixture
def owner_seen_by_a_plain_fixture(sandbox_owner):
    import sandbox
    assert sandbox.current_owner() is sandbox_owner

@pytest.mark.asyncio(loop_scope="{scope}")
class Test:
    async def test_fixture_and_test_share_a_sandbox(self, ann):
        assert await app.names() == ["ann"]
        await app.add("bob")

    async def test_nothing_is_left(self, owner_seen_by_a_plain_fixture):
        assert await app.names() == []
        await app.add("ann")

    async def test_not_of_this_one_either(self):
        assert await app.names() == []
        await app.add("ann")
"""


@pytest.mark.parametrize("scope", ["function", "module", "session"])
@pytest.mark.parametrize("driver", ["postgresql+asyncpg", "sqlite+aiosqlite"])
def test_any_scope_of_loop_will_do(project: Project, scope: str, driver: str) -> None:
    project.asynchronous(driver)
    backend = ["--sandbox-backend=sqlite"] if driver.startswith("sqlite") else []
    project.passes(
        SCOPES.format(scope=scope), 3, "-o", f"asyncio_default_fixture_loop_scope={scope}", *backend
    )


def test_tests_of_all_scopes_take_turns(project: Project) -> None:
    project.asynchronous()
    tests = "".join(
        f"""
@pytest.mark.asyncio(loop_scope="{scope}")
async def test_{scope}_{n}():
    assert await app.names() == []
    await app.add("ann")
"""
        for n in range(2)
        for scope in ("function", "module", "session")
    )
    project.passes(f"import app, pytest\n{tests}", 6)


def test_tasks_and_threads_of_a_test_are_in_its_sandbox(project: Project) -> None:
    project.asynchronous()
    project.passes(
        """
        import app, asyncio, pytest

        @pytest.mark.asyncio
        @pytest.mark.parametrize("n", range(2))
        async def test_gather(n):
            await asyncio.gather(*(app.add(f"user {i}") for i in range(5)))
            assert len(await app.names()) == 5

        @pytest.mark.parametrize("n", range(2))
        def test_own_loop(n):
            asyncio.run(app.add("ann"))
            assert asyncio.run(app.names()) == ["ann"]
        """,
        4,
    )


# The module's fixture keeps anyio's runner, one task with one context, alive over both tests.
ANYIO = """
import app, pytest

pytestmark = pytest.mark.anyio

@pytest.fixture(scope="module")
def anyio_backend():
    return "asyncio"

@pytest.fixture(scope="module")
async def runner_stays():
    import sandbox
    assert sandbox.current_owner() is None
    yield
    assert sandbox.current_owner() is None

@pytest.fixture
async def ann(runner_stays, sandbox_owner):
    import sandbox
    await app.add("ann")
    yield "ann"
    assert sandbox.current_owner() is sandbox_owner
    assert "ann" in await app.names()

class TestIt:
    @pytest.fixture
    async def bob(self, ann):
        assert isinstance(self, TestIt)
        await app.add("bob")

    async def test_first(self, ann, bob):
        assert await app.names() == ["ann", "bob"]
        await app.add("carl")

    async def test_second(self, ann, bob):
        assert await app.names() == ["ann", "bob"]
        await app.add("carl")

async def test_third(runner_stays, sandboxed):
    import sandbox
    assert sandbox.current_owner() is sandboxed.owner
    assert await app.names() == []
"""


def test_anyio_runs_each_test_in_its_own_sandbox(project: Project) -> None:
    project.asynchronous()
    project.passes(ANYIO, 3)


def test_anyio_and_hypothesis_together(project: Project) -> None:
    project.asynchronous()
    project.passes(
        """
        import app, itertools, pytest
        from hypothesis import HealthCheck, given, settings, strategies as st

        numbers = itertools.count()
        pytestmark = pytest.mark.anyio

        @pytest.fixture(scope="module")
        def anyio_backend():
            return "asyncio"

        @pytest.fixture(scope="module")
        async def runner_stays():
            yield

        async def test_before(runner_stays):
            assert await app.names() == []

        @settings(max_examples=3, deadline=None, database=None,
                  suppress_health_check=list(HealthCheck))
        @given(st.integers())
        async def test_given(runner_stays, sandbox_owner, n):
            import sandbox
            assert sandbox.current_owner() is sandbox_owner
            await app.add(f"user {next(numbers)}")
        """,
        2,
        "-p",
        "no:randomly",
    )


@pytest.mark.parametrize("plugin", ["asyncio", "anyio"])
def test_a_session_comes_for_coroutines_of_either_plugin(project: Project, plugin: str) -> None:
    project.asynchronous()
    project.passes(
        f"""
        import app, gc, pytest, sqlalchemy as sa
        from models import User

        @pytest.fixture
        def anyio_backend():
            return "asyncio"

        @pytest.mark.{plugin}
        @pytest.mark.parametrize("n", range(3))
        async def test_session(n, sandbox_async_session):
            assert await app.names() == []
            sandbox_async_session.add(User(name="ann"))
            await sandbox_async_session.commit()
            assert await app.names() == ["ann"]
            # Left in the middle of a transaction: no warning, nothing kept.
            sandbox_async_session.add(User(name="bob"))
            await sandbox_async_session.flush()

        def test_no_warning_comes_later():
            gc.collect()
        """,
        4,
    )

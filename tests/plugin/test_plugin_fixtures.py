from __future__ import annotations

import pytest

from tests.plugin.conftest import Project

NO_AUTOUSE = """
sandbox_env = "DATABASE_URL=postgresql+psycopg"
sandbox_migrations = "metadata:models:Base"
"""

OWN_ENGINE = """
import pytest, sqlalchemy as sa
import models

@pytest.fixture(scope="session")
def engine(tmp_path_factory):
    engine = sa.create_engine(f"sqlite:///{tmp_path_factory.mktemp('db')}/own.db")
    yield engine
    engine.dispose()

@pytest.fixture(scope="session")
def sandbox_engines(engine):
    return [engine]

@pytest.fixture(scope="session", autouse=True)
def tables(engine):
    models.Base.metadata.create_all(engine)
    yield
    with engine.connect() as connection:
        assert connection.execute(sa.select(models.User.name)).all() == []
"""


def test_fixtures_and_application_share_the_sandbox(project: Project) -> None:
    project.passes(
        """
        import app, pytest, sandbox, sqlalchemy as sa
        from models import User

        @pytest.mark.parametrize("n", range(2))
        def test_connection(n, sandbox_connection):
            assert app.names() == []
            sandbox_connection.execute(sa.insert(User).values(name="ann"))
            sandbox_connection.commit()
            assert app.names() == ["ann"]

        @pytest.mark.parametrize("n", range(2))
        def test_session(n, sandbox_session):
            app.add("ann")
            ann = sandbox_session.scalars(sa.select(User)).one()
            ann.name = "bob"
            sandbox_session.commit()
            assert app.names() == ["bob"]
            sandbox_session.add(User(name="left in a transaction"))
            sandbox_session.flush()

        def test_sandbox(sandboxed, sandbox_owner, request):
            assert isinstance(sandboxed, sandbox.Sandbox)
            assert sandboxed.owner is sandbox_owner is sandbox.current_owner()
            assert sandboxed.label == request.node.nodeid

        def test_url(sandbox_url):
            assert sa.make_url(sandbox_url).database == app.engine.url.database
            engine = sa.create_engine(sandbox_url)
            app.add("ann")
            with engine.connect() as connection:
                assert connection.execute(sa.select(User.name)).scalars().all() == ["ann"]
            engine.dispose()
        """,
        6,
    )


def test_without_autouse_a_test_asks_by_fixture_or_marker(project: Project) -> None:
    project.settings(NO_AUTOUSE)
    project.write(
        "test_it.py",
        """
        import app, pytest

        def test_fixture(sandboxed):
            app.add("ann")
            assert app.names() == ["ann"]

        @pytest.mark.sandbox
        def test_marker():
            assert app.names() == []

        @pytest.mark.usefixtures("sandboxed")
        class TestClass:
            def test_use(self):
                assert app.names() == []

        def test_refused():
            app.names()

        def test_too_late(request):
            request.getfixturevalue("sandboxed")
        """,
    )
    result = project.run()
    result.assert_outcomes(passed=3, failed=2)
    result.stdout.fnmatch_lines_random(
        [
            "*OwnershipError*may not use database*",
            "*test_too_late got `sandboxed` through request.getfixturevalue()*",
        ]
    )


def test_engines_of_ones_own_need_no_setting(project: Project) -> None:
    project.settings("")
    project.write("conftest.py", OWN_ENGINE)
    result = project.passes(
        """
        import pytest, sqlalchemy as sa
        from models import User

        def write(engine):
            with engine.begin() as connection:
                assert connection.execute(sa.select(User.name)).all() == []
                connection.execute(sa.insert(User).values(name="ann"))

        @pytest.mark.parametrize("n", range(2))
        def test_sandboxed(n, sandboxed, engine):
            write(engine)

        @pytest.mark.sandbox
        @pytest.mark.parametrize("n", range(2))
        def test_marked(n, engine, sandbox_session):
            write(engine)
            assert sandbox_session.scalars(sa.select(User.name)).all() == ["ann"]

        @pytest.fixture
        def ann(engine):
            write(engine)

        @pytest.mark.sandbox
        def test_fixture(ann):
            pass

        @pytest.mark.sandbox
        class TestUnit(__import__("unittest").TestCase):
            @pytest.fixture(autouse=True)
            def _engine(self, engine):
                self.engine = engine

            def test_unit(self):
                write(self.engine)
        """,
        6,
    )
    assert "sandbox: 6 tests isolated" in result.stdout.str()


def test_engines_of_ones_own_and_autouse(project: Project) -> None:
    project.settings("sandbox_autouse = true")
    project.write("conftest.py", OWN_ENGINE)
    project.passes(
        """
        import pytest, sqlalchemy as sa
        from models import User

        @pytest.mark.parametrize("n", range(2))
        def test_write(n, engine):
            with engine.begin() as connection:
                connection.execute(sa.insert(User).values(name="ann"))
        """,
        2,
    )


@pytest.mark.parametrize(
    "test",
    [
        "def test_it(sandboxed): pass",
        "import pytest\n@pytest.mark.sandbox\ndef test_it(): pass",
        "def test_it(sandbox_url): pass",
    ],
    ids=["fixture", "marker", "url"],
)
def test_asking_without_any_setting_says_what_to_set(project: Project, test: str) -> None:
    project.settings("")
    project.write("test_it.py", test)
    result = project.run()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["*needs a database, and nothing says which*", '*sandbox_env = "DATABASE_URL"*']
    )
    assert "Traceback" not in result.stdout.str()


WIDER = """
import app, pytest

@pytest.fixture(scope="{scope}")
def seed():
    app.add("seed")

{mark}
def test_it(seed):
    assert app.names() == ["seed"]

def test_other():
    assert app.names() == {after}
"""


@pytest.mark.parametrize("scope", ["module", "session"])
def test_a_wider_fixture_may_not_write_through_a_tests_sandbox(
    project: Project, scope: str
) -> None:
    project.write("test_it.py", WIDER.format(scope=scope, mark="", after=[]))
    result = project.run()
    result.assert_outcomes(errors=1, passed=1)
    result.stdout.fnmatch_lines(
        [
            f"*The fixture `seed` of scope '{scope}' used the database*",
            "*give it function scope*",
            "*sandbox_migrations = call:module:function*",
            "*@pytest.mark.no_sandbox*",
        ]
    )


def test_neither_may_an_asynchronous_one_nor_a_class(project: Project) -> None:
    project.asynchronous()
    project.write(
        "test_it.py",
        """
        import app, asyncio, pytest, pytest_asyncio, unittest

        @pytest_asyncio.fixture(scope="session", loop_scope="session")
        async def for_asyncio():
            await app.add("seed")

        @pytest.mark.asyncio(loop_scope="session")
        async def test_asyncio(for_asyncio):
            pass

        @pytest.fixture(scope="module")
        def anyio_backend():
            return "asyncio"

        @pytest.fixture(scope="module")
        async def for_anyio():
            await app.add("seed")

        @pytest.mark.anyio
        async def test_anyio_runner_has_an_owner(sandboxed, anyio_backend):
            pass

        @pytest.mark.anyio
        async def test_anyio(for_anyio):
            pass

        class Class(unittest.TestCase):
            @classmethod
            def setUpClass(cls):
                asyncio.run(app.add("seed"))

            def test_class(self):
                pass
        """,
    )
    result = project.run()
    result.assert_outcomes(errors=3, passed=1)
    result.stdout.fnmatch_lines_random(
        [
            "*The fixture `for_asyncio` of scope 'session' used the database*",
            "*The fixture `for_anyio` of scope 'module' used the database*",
            "*The setUpClass() of scope 'class' used the database*",
        ]
    )


def test_a_wider_fixture_ends_as_nobody_too(project: Project) -> None:
    project.passes(
        """
        import app, pytest, sandbox

        @pytest.fixture(scope="module")
        def wider():
            assert sandbox.current_owner() is None
            yield
            assert sandbox.current_owner() is None
            with pytest.raises(sandbox.errors.OwnershipError):
                app.add("gone at once")

        @pytest.fixture
        def narrow(wider, sandbox_owner):
            assert sandbox.current_owner() is sandbox_owner
            yield
            assert sandbox.current_owner() is sandbox_owner

        def test_it(narrow, sandbox_owner):
            assert sandbox.current_owner() is sandbox_owner
        """,
        1,
    )


def test_what_an_unsandboxed_test_commits_is_real(project: Project) -> None:
    project.passes(
        """
        import app, pytest, sandbox

        @pytest.fixture(scope="module")
        def seed():
            app.add("seed")

        @pytest.mark.no_sandbox
        def test_1_outside(seed):
            assert sandbox.current_owner() is None
            app.add("real")

        def test_2_inside():
            assert app.names() == ["real", "seed"]
            app.add("contained")

        @pytest.mark.no_sandbox
        class TestOutside:
            def test_3(self):
                assert app.names() == ["real", "seed"]

            @pytest.mark.sandbox
            def test_4_the_closest_marker_wins(self, sandboxed):
                app.add("contained")
        """,
        4,
        "-p",
        "no:randomly",
    )


def test_a_marker_shares_the_sandbox_with_every_thread(project: Project) -> None:
    project.passes(
        """
        import app, pytest, sandbox, threading

        def in_thread(function):
            outcome = []
            def run():
                try:
                    outcome.append(function())
                except Exception as error:
                    outcome.append(error)
            thread = threading.Thread(target=run)
            thread.start()
            thread.join()
            return outcome[0]

        @pytest.mark.sandbox(shared=True)
        @pytest.mark.parametrize("n", range(2))
        def test_shared(n):
            in_thread(lambda: app.add("ann"))
            assert app.names() == ["ann"]

        def test_refused():
            assert isinstance(in_thread(app.names), sandbox.errors.OwnershipError)

        def test_allowed(sandboxed):
            sandbox.allow(sandboxed, "Thread-*")
            app.add("ann")
            assert in_thread(app.names) == ["ann"]
        """,
        4,
    )


def test_a_marker_sets_the_isolation_level(project: Project) -> None:
    project.passes(
        """
        import app, pytest, sqlalchemy as sa

        @pytest.mark.sandbox(isolation_level="serializable", isolation="savepoint")
        class TestLevel:
            def test_level(self):
                with app.engine.connect() as connection:
                    level = connection.exec_driver_sql("SHOW transaction_isolation").scalar()
                assert level == "serializable"

            @pytest.mark.sandbox(isolation_level="REPEATABLE_READ")
            def test_the_closest_wins(self):
                with app.engine.connect() as connection:
                    level = connection.exec_driver_sql("SHOW transaction_isolation").scalar()
                assert level == "repeatable read"
        """,
        2,
    )


def test_a_session_on_another_driver_than_the_applications_is_refused(project: Project) -> None:
    project.write(
        "test_it.py",
        """
        def test_sync(sandbox_session):
            pass

        def test_async(sandbox_async_session):
            pass
        """,
    )
    result = project.run("-o", "sandbox_env=DATABASE_URL=postgresql+asyncpg")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["The application uses asyncpg *synchronous sessions cannot*"])
    result = project.run("-o", "sandbox_env=DATABASE_URL=postgresql+psycopg2")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["The application uses psycopg2 *asynchronous sessions cannot*"])


def test_a_database_that_is_first_needed_outside_is_open_to_the_test(project: Project) -> None:
    project.settings('sandbox_migrations = "metadata:models:Base"')
    result = project.passes(
        """
        import pytest, sqlalchemy as sa
        from models import User

        def write(url):
            engine = sa.create_engine(url, poolclass=sa.NullPool)
            with engine.begin() as connection:
                connection.execute(sa.insert(User).values(name="ann"))

        @pytest.mark.no_sandbox
        def test_1_outside(sandbox_url):
            write(sandbox_url)

        def test_2_refused_again(sandbox_url):
            from sandbox.errors import OwnershipError
            with pytest.raises(OwnershipError):
                write(sandbox_url)
        """,
        2,
        "-p",
        "no:randomly",
    )
    result.stdout.fnmatch_lines(["sandbox: embedded database, made when a test needs it*"])


def test_a_test_that_runs_pytest_itself_keeps_its_sandbox(project: Project) -> None:
    project.passes(
        """
        import app, sandbox
        pytest_plugins = "pytester"

        def test_outer(pytester, sandbox_owner):
            app.add("ann")
            pytester.makepyfile(test_inner='''
                import app
                def test_inner(sandbox_owner):
                    assert app.names() == []
            ''')
            options = "--sandbox-autouse --sandbox-migrations=metadata:models:Base -p no:randomly"
            pytester.inline_run(*options.split()).assertoutcome(failed=1)
            assert sandbox.current_owner() is sandbox_owner
            assert app.names() == ["ann"]
        """,
        1,
        "-W",
        "default",
    )

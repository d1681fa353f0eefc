"""After a test that wrote to the database for good, the next one finds a clean database."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.plugin.conftest import Project

if TYPE_CHECKING:
    from sandbox.databases.backends import EmbeddedPostgres

USAGE_ERROR = pytest.ExitCode.USAGE_ERROR
ORDER = ("-p", "no:randomly")

ESCAPES = """
import app, pytest, sqlalchemy as sa

def test_1_contained():
    app.add("ann")

def test_2_escapes():
    app.add("escaped")
    with app.engine.connect() as connection:
        connection.execute(sa.text("SELECT 1"))
        # A path that no facade sees.
        connection.connection.dbapi_connection.pgconn.exec_(b"COMMIT")

def test_3_finds_it_clean():
    assert app.names() == []
    app.add("escaped")

def test_4_goes_on():
    assert app.names() == []
"""

HEALED = [
    "*ERROR at teardown of test_2_escapes*",
    "SandboxEscapeError: *test_it.py::test_2_escapes was ended by*",
    "*sandbox: escapes*",
    "test_it.py::test_2_escapes ended the transaction around it by *was built anew.",
]


@pytest.fixture
def shop(project: Project) -> Project:
    project.write("test_it.py", ESCAPES)
    return project


def test_the_next_test_finds_the_database_built_anew(shop: Project) -> None:
    result = shop.run(*ORDER)
    result.assert_outcomes(passed=4, errors=1)
    result.stdout.fnmatch_lines(HEALED)


def test_an_escape_into_another_transaction_is_one_too(project: Project) -> None:
    """The connection is in a transaction all the time, only not in the one that was begun."""
    project.write("test_it.py", ESCAPES.replace("COMMIT", "COMMIT AND CHAIN"))
    result = project.run(*ORDER)
    result.assert_outcomes(passed=4, errors=1)
    result.stdout.fnmatch_lines(HEALED)


def test_so_it_is_in_each_worker(shop: Project) -> None:
    result = shop.run(*ORDER, "-n2", "--dist=loadfile")
    result.assert_outcomes(passed=4, errors=1)
    result.stdout.fnmatch_lines([HEALED[0], *HEALED[2:]])


def test_so_it_is_for_an_asynchronous_application(project: Project) -> None:
    project.asynchronous()
    project.write(
        "test_it.py",
        """
        import app, pytest, sqlalchemy as sa

        pytestmark = pytest.mark.asyncio

        async def test_1_escapes(sandboxed):
            await app.add("escaped")
            (shared, _), = sandboxed._shared.values()
            from sandbox.adapters.sqlalchemy.io import background_loop
            import asyncio
            commit = shared.real._connection.execute("COMMIT")
            await asyncio.wrap_future(
                asyncio.run_coroutine_threadsafe(commit, shared.real._connection._loop)
            )

        async def test_2_finds_it_clean():
            assert await app.names() == []
            await app.add("escaped")
        """,
    )
    result = project.run(*ORDER)
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*test_1_escapes ended the transaction*was built anew."])


def test_a_sqlite_file_is_built_anew(project: Project) -> None:
    project.write(
        "test_it.py",
        """
        import app

        def test_1_escapes(sandboxed):
            app.add("escaped")
            (shared, _), = sandboxed._shared.values()
            shared.real.execute("COMMIT")

        def test_2_finds_it_clean():
            assert app.names() == []
            app.add("escaped")
        """,
    )
    result = project.run(*ORDER, "--sandbox-backend=sqlite")
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*test_1_escapes ended the transaction*was built anew."])


def test_an_escape_that_the_test_itself_expects_is_healed_too(project: Project) -> None:
    project.write(
        "test_it.py",
        """
        import app, contextlib, pytest, sandbox

        def use_three_at_once():
            with contextlib.ExitStack() as stack:
                for _ in range(3):
                    connection = stack.enter_context(app.engine.connect())
                    assert connection.exec_driver_sql("SELECT * FROM users").all() == []

        @pytest.mark.no_sandbox
        def test_0_leaves_real_connections_in_the_pool():
            use_three_at_once()

        def test_1_escapes():
            with sandbox.run_as(sandbox.Owner("inner")):
                with pytest.raises(sandbox.errors.SandboxEscapeError):
                    with sandbox.sandboxed(app.engine) as inner:
                        app.add("escaped")
                        (shared, _), = inner._shared.values()
                        shared.real.execute("COMMIT")

        @pytest.mark.no_sandbox
        def test_2_reaches_the_new_database():
            use_three_at_once()

        def test_3_finds_it_clean():
            assert app.names() == []
            app.add("escaped")
        """,
    )
    result = project.run(*ORDER)
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(["test_it.py::test_1_escapes ended*was built anew."])


def test_a_session_that_outlives_the_test_is_ended_with_its_database(project: Project) -> None:
    """Whoever is connected, the database is dropped."""
    project.write(
        "test_it.py",
        """
        import app, os, psycopg, sqlalchemy as sa

        url = sa.make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql")
        others = []

        def test_1_escapes():
            other = psycopg.connect(url.render_as_string(hide_password=False))
            others.append(other)
            app.add("escaped")
            with app.engine.connect() as connection:
                connection.execute(sa.text("SELECT 1"))
                connection.connection.dbapi_connection.pgconn.exec_(b"COMMIT")
            assert other.execute("SELECT name FROM users").fetchall() == [("escaped",)]

        def test_2_finds_it_clean():
            assert app.names() == []
            others.pop().close()
        """,
    )
    result = project.run(*ORDER)
    result.assert_outcomes(passed=2, errors=1)


def test_nothing_is_rebuilt_after_the_last_test(project: Project) -> None:
    project.write(
        "built.py", "def build():\n    with open('built', 'a') as file:\n        file.write('x')\n"
    )
    project.write("test_it.py", ESCAPES.partition("def test_3")[0])
    result = project.run(
        *ORDER, "-o", "sandbox_migrations=metadata:models:Base\ncall:built:build"
    )  # fmt: skip
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*test_2_escapes ended the transaction*goes with this run."])
    assert (project.path / "built").read_text() == "x"


# -- databases that the user named ---------------------------------------------------------------


def _rows(url: str) -> list[tuple[str]]:
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        return connection.execute("SELECT name FROM users").fetchall()


def test_a_named_database_is_built_anew_as_it_was_made(
    shop: Project, server: EmbeddedPostgres, named_database: str
) -> None:
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("ALTER DATABASE shop_test SET search_path = public, other")
        connection.execute("ALTER DATABASE shop_test SET statement_timeout = '77s'")
    result = shop.run(*ORDER, "--sandbox-url", named_database)
    result.assert_outcomes(passed=4, errors=1)
    result.stdout.fnmatch_lines(HEALED)
    assert _rows(named_database) == []
    with psycopg.connect(server.url("shop_test")) as connection:
        assert connection.execute("SHOW search_path").fetchone() == ("public, other",)
        assert connection.execute("SHOW statement_timeout").fetchone() == ("77s",)


def test_a_named_database_is_left_clean_by_the_last_test(
    shop: Project, named_database: str
) -> None:
    shop.write("test_it.py", ESCAPES.partition("def test_3")[0])
    result = shop.run(*ORDER, "--sandbox-url", named_database)
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(HEALED)
    assert _rows(named_database) == []


def test_without_migrations_the_run_ends(
    shop: Project, named_database: str, server: EmbeddedPostgres
) -> None:
    with psycopg.connect(server.url("shop_test")) as connection:
        connection.execute(
            "CREATE TABLE users (id serial PRIMARY KEY, name varchar(50) UNIQUE NOT NULL)"
        )
    result = shop.run(*ORDER, "--sandbox-url", named_database, "-o", "sandbox_migrations=")
    assert result.ret == USAGE_ERROR
    result.stdout.fnmatch_lines(["*test_2_escapes ended*no sandbox_migrations say how*"])
    assert "test_3" not in result.stdout.str()
    assert _rows(named_database) == [("escaped",)]


def test_rows_from_before_the_run_are_not_dropped(
    shop: Project, named_database: str, server: EmbeddedPostgres
) -> None:
    with psycopg.connect(server.url("shop_test")) as connection:
        connection.execute("CREATE TABLE seeds (name text)")
        connection.execute("INSERT INTO seeds VALUES ('by hand')")
    result = shop.run(*ORDER, "--sandbox-url", named_database)
    assert result.ret == USAGE_ERROR
    result.stdout.fnmatch_lines(["*its table public.seeds had rows before this run*"])
    with psycopg.connect(server.url("shop_test")) as connection:
        assert connection.execute("SELECT name FROM seeds").fetchall() == [("by hand",)]


def test_a_role_that_may_not_create_databases_ends_the_run(
    shop: Project, server: EmbeddedPostgres, named_database: str
) -> None:
    with psycopg.connect(server.url("shop_test"), autocommit=True) as connection:
        connection.execute("CREATE ROLE clerk LOGIN")
        connection.execute("GRANT ALL ON SCHEMA public TO clerk")
    try:
        url = named_database.replace("sandbox@", "clerk@")
        result = shop.run(*ORDER, "--sandbox-url", url)
        assert result.ret == USAGE_ERROR
        result.stdout.fnmatch_lines(["*the role clerk may not drop and create it*"])
        assert "test_3" not in result.stdout.str()
    finally:
        with psycopg.connect(server.url("shop_test"), autocommit=True) as connection:
            connection.execute("DROP OWNED BY clerk CASCADE")
            connection.execute("DROP ROLE clerk")


def test_workers_that_share_a_named_database_end_the_run(
    shop: Project, named_database: str
) -> None:
    result = shop.run(*ORDER, "-n2", "--dist=loadfile", "--sandbox-url", named_database)
    assert result.ret == USAGE_ERROR
    said = result.stdout.str() + result.stderr.str()
    assert "the other workers of pytest-xdist are using it" in said


def test_a_database_whose_name_does_not_say_test_is_never_dropped(
    shop: Project, server: EmbeddedPostgres
) -> None:
    server.create_database("shop")
    try:
        url = server.url("shop", "postgresql+psycopg")
        result = shop.run(
            *ORDER, "--sandbox-url", url, "-o", "sandbox_allow_any_database=true"
        )  # fmt: skip
        assert result.ret == USAGE_ERROR
        result.stdout.fnmatch_lines(["*its name does not say that it is for tests*"])
        assert _rows(url) == [("escaped",)]
    finally:
        server.drop_database("shop")


def test_of_engines_of_your_own_it_is_only_said_loudly(project: Project) -> None:
    project.settings("")
    project.write(
        "conftest.py",
        """
        import os, pytest
        os.environ["DATABASE_URL"] = "sqlite:///own.db"

        @pytest.fixture(scope="session")
        def sandbox_engines():
            import app, models
            models.Base.metadata.create_all(app.engine)
            yield [app.engine]
            app.engine.dispose()
        """,
    )
    project.write(
        "test_it.py",
        """
        import app

        def test_1_escapes(sandboxed):
            app.add("escaped")
            (shared, _), = sandboxed._shared.values()
            shared.real.execute("COMMIT")

        def test_2_finds_what_it_left(sandboxed):
            assert app.names() == ["escaped"]
        """,
    )
    result = project.run(*ORDER, "-W", "default")
    result.assert_outcomes(passed=2, errors=1, warnings=1)
    result.stdout.fnmatch_lines(
        [
            "*PytestWarning: test_it.py::test_1_escapes ended*SQLite own.db stays there*",
            "test_it.py::test_1_escapes ended*SQLite own.db is not ours*",
        ]
    )

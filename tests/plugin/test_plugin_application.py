from __future__ import annotations

import pytest

from tests.plugin.conftest import COUNTS_CALLS, Project, summary

# Whichever comes second would see the row of the first, and trip over its unique name.
TWICE = """
import app

def test_first():
    assert app.names() == []
    app.add("ann")
    assert app.names() == ["ann"]

def test_second():
    assert app.names() == []
    app.add("ann")
    assert app.names() == ["ann"]
"""

TWICE_ASYNC = """
import app

async def test_first():
    assert await app.names() == []
    await app.add("ann")
    assert await app.names() == ["ann"]

async def test_second():
    assert await app.names() == []
    await app.add("ann")
    assert await app.names() == ["ann"]
"""


@pytest.mark.parametrize("scheme", ["postgresql+psycopg", "postgresql+psycopg2"])
def test_an_application_that_reads_its_url_at_import_needs_no_conftest(
    project: Project, scheme: str
) -> None:
    project.passes(TWICE, 2, "-o", f"sandbox_env=DATABASE_URL={scheme}")


@pytest.mark.parametrize("scheme", ["postgresql+asyncpg", "postgresql+psycopg"])
def test_neither_does_an_asynchronous_one(project: Project, scheme: str) -> None:
    project.asynchronous(scheme)
    project.passes(TWICE_ASYNC, 2, "-o", "asyncio_mode=auto")


def test_the_same_suite_runs_on_sqlite(project: Project) -> None:
    result = project.passes(TWICE, 2, "--sandbox-backend=sqlite")
    result.stdout.fnmatch_lines(["sandbox: SQLite *isolation savepoint"])


def test_the_same_asynchronous_suite_runs_on_sqlite(project: Project) -> None:
    project.asynchronous("postgresql+asyncpg")
    project.passes(TWICE_ASYNC, 2, "-o", "asyncio_mode=auto", "--sandbox-backend=sqlite")


def test_the_url_without_a_driver_is_one_that_works(project: Project) -> None:
    project.passes(TWICE, 2, "-o", "sandbox_env=DATABASE_URL")


def test_migrations_are_run_by_alembic_and_are_real(project: Project) -> None:
    project.write("alembic.ini", "[alembic]\nscript_location = migrations\npath_separator = os\n")
    project.write(
        "migrations/env.py",
        """
        from alembic import context
        from app import engine

        with engine.connect() as connection:
            context.configure(connection=connection)
            with context.begin_transaction():
                context.run_migrations()
        """,
    )
    project.write(
        "migrations/versions/0001_users.py",
        """
        from alembic import op
        revision, down_revision = "0001", None
        def upgrade():
            op.execute("CREATE TABLE users (id serial PRIMARY KEY, name text UNIQUE)")
        """,
    )
    project.passes(TWICE, 2, "-o", "sandbox_migrations=alembic:alembic.ini")


def test_several_migrations_and_variables_may_be_named(project: Project) -> None:
    project.write("schema.sql", "CREATE TABLE notes (body text);")
    project.write(
        "seed.py",
        """
        def build(connection):
            connection.exec_driver_sql("INSERT INTO notes VALUES ('seed')")
        """,
    )
    project.settings("""
        sandbox_env = ["DATABASE_URL", "ASYNC_URL=postgresql+asyncpg"]
        sandbox_migrations = ["metadata:models:Base", "sql:schema.sql", "call:seed:build"]
        sandbox_autouse = true
    """)
    project.passes(
        """
        import os
        import sqlalchemy as sa
        from app import engine

        def test_variables():
            assert os.environ["ASYNC_URL"].startswith("postgresql+asyncpg://")
            sync, other = (sa.make_url(os.environ[n]) for n in ("DATABASE_URL", "ASYNC_URL"))
            assert sync.database == other.database

        def test_what_migrations_wrote_is_there():
            with engine.connect() as connection:
                found = connection.execute(sa.text("SELECT body FROM notes"))
                assert found.scalars().all() == ["seed"]
        """,
        2,
    )


def test_the_header_says_where_and_the_summary_what_it_cost(project: Project) -> None:
    result = project.passes(TWICE, 2)
    header = r"sandbox: PostgreSQL 18\S* \(embedded, .*\), database \w+, .*isolation savepoint"
    cost = r"sandbox: 2 tests isolated, [\d.]+ ms each \(checkout [\d.]+, check-in [\d.]+\),"
    result.stdout.re_match_lines([header, cost + r" 6 statements, \d+ extra round trips"])


def test_an_idle_sandbox_costs_no_round_trip(project: Project) -> None:
    result = project.passes("def test_nothing():\n    pass\n", 1)
    assert summary(result) == {"tests": 1, "statements": 0, "round_trips": 0}


def test_what_a_failing_test_wrote_is_gone_too(project: Project) -> None:
    project.write(
        "test_it.py",
        """
        import app, pytest

        @pytest.mark.parametrize("n", range(3))
        def test_fails(n):
            assert app.names() == []
            app.add("ann")
            if n != 1:
                raise RuntimeError("on purpose")

        def test_passes():
            assert app.names() == []
        """,
    )
    project.run().assert_outcomes(failed=2, passed=2)


def test_random_order_changes_nothing(project: Project) -> None:
    names = "\n".join(
        f"def test_{n}():\n    assert app.names() == []\n    app.add('ann')\n" for n in range(8)
    )
    result = project.passes(f"import app\n{names}", 8, "-p", "randomly", "--randomly-seed=7")
    result.stdout.fnmatch_lines(["Using --randomly-seed=7"])


def test_migrations_run_once_however_many_tests_there_are(project: Project) -> None:
    project.write("seed.py", COUNTS_CALLS)
    project.write("test_it.py", TWICE)
    project.run("-o", "sandbox_migrations=metadata:models:Base\ncall:seed:build")
    assert (project.path / "built").read_text() == "x"


def test_collecting_migrates_nothing(project: Project) -> None:
    project.write("seed.py", COUNTS_CALLS)
    project.write("test_it.py", TWICE)
    result = project.run("--collect-only", "-o", "sandbox_migrations=call:seed:build")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*2 tests collected*"])
    assert not (project.path / "built").exists()


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_asking_for_help_starts_nothing(
    project: Project, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANDBOX_SERVER", "/nonexistent")
    result = project.run(option)
    assert result.ret == 0
    assert "Error" not in result.stderr.str()


def test_the_environment_is_as_before_when_the_run_ends(project: Project) -> None:
    project.write("test_it.py", TWICE)
    script = project.write(
        "main.py",
        """
        import os, pytest
        os.environ["DATABASE_URL"] = "before"
        assert pytest.main([]) == 0
        assert os.environ["DATABASE_URL"] == "before"
        import sandbox
        sandbox.start()
        sandbox.stop()
        """,
    )
    result = project._pytester.runpython(script)
    assert result.ret == 0, result.stderr.str()

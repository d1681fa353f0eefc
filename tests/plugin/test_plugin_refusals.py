"""What is said, and where it ends, when something is wrong."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.plugin.conftest import Project
from tests.plugin.test_plugin_application import TWICE

if TYPE_CHECKING:
    from sandbox.databases.backends import EmbeddedPostgres

USAGE_ERROR = pytest.ExitCode.USAGE_ERROR


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--sandbox-backend=oracle", "sandbox_backend: 'oracle' is not known*'embedded', 'server'"),
        ("--sandbox-backend=server", "sandbox_backend = server needs to be told which"),
        ("--sandbox-isolation=hope", "sandbox_isolation: 'hope' is not known*'savepoint'"),
        ("--sandbox-env=DATABASE URL", "sandbox_env: 'DATABASE URL' cannot be understood"),
        ("--sandbox-env=URL=mysql+pymysql", "sandbox_env asks for a URL of the kind mysql+pymysql"),
        ("--sandbox-migrations=flyway:x", "unknown kind of migrations 'flyway'"),
        ("--sandbox-migrations=alembic:none.ini", "there is no file *none.ini"),
        ("--sandbox-url=postgresql://db/shop", "refusing to use postgresql://db/shop"),
        ("--sandbox-url=mysql://db/shop_test", "names a mysql database"),
        ("--sandbox-url=sqlite://", "is a database in memory"),
        ("--sandbox-url=nonsense", "'nonsense' is no database URL"),
    ],
)
def test_a_wrong_setting_ends_the_run_at_once(project: Project, option: str, said: str) -> None:
    project.write("test_it.py", TWICE)
    project.write("conftest.py", "raise RuntimeError('no conftest was to be imported')")
    result = project.run(option)
    assert result.ret == USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{said}*"])
    assert "Traceback" not in result.stderr.str()


def test_url_and_backend_contradict_each_other(project: Project) -> None:
    result = project.run("--sandbox-url=sqlite:///x_test.db", "--sandbox-backend=sqlite")
    assert result.ret == USAGE_ERROR
    result.stderr.fnmatch_lines(["*Set one of the two*"])


def test_a_server_that_does_not_answer_is_named_without_its_password(project: Project) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        project.write("test_it.py", TWICE)
        result = project.run(
            f"--sandbox-url=postgresql+psycopg://me:secret@127.0.0.1:{port}/x_test"
        )
    assert result.ret == USAGE_ERROR
    said = result.stdout.str() + result.stderr.str()
    assert f"cannot connect to postgresql+psycopg://me:***@127.0.0.1:{port}/x_test" in said
    assert "secret" not in said


def test_a_database_of_another_name_may_be_allowed(
    project: Project, server: EmbeddedPostgres
) -> None:
    server.create_database("shop")
    try:
        url = server.url("shop", "postgresql+psycopg")
        project.passes(TWICE, 2, "--sandbox-url", url, "-o", "sandbox_allow_any_database=true")
        with psycopg.connect(server.url("shop")) as connection:
            assert connection.execute("SELECT * FROM users").fetchall() == []
    finally:
        server.drop_database("shop")


def test_a_migration_that_fails_ends_the_run_with_one_message(project: Project) -> None:
    project.write("schema.sql", "CREATE TABLE users (id int);\nCREATE TALBE other (id int);\n")
    project.write("test_it.py", TWICE)
    result = project.run("-o", "sandbox_migrations=sql:schema.sql")
    assert result.ret == USAGE_ERROR
    said = result.stdout.str() + result.stderr.str()
    assert said.count("migrations 'sql:schema.sql' failed") == 1
    assert "TALBE" in said
    assert "Traceback" not in said
    assert "error" not in result.parseoutcomes()


@pytest.mark.parametrize(
    ("marker", "said", "options"),
    [
        ("sandbox(isolated=True)", "does not know isolated; it takes isolation=, shared=", []),
        ("sandbox('savepoint')", "does not know 'savepoint'", []),
        ("sandbox(isolation='hope')", "isolation='hope'*is not known", []),
        ("sandbox(isolation='hope')", "isolation='hope'*is not known", ["-n2"]),
    ],
    ids=["unknown option", "positional", "unknown isolation", "with xdist"],
)
def test_a_marker_that_makes_no_sense_ends_the_run(
    project: Project, marker: str, said: str, options: list[str]
) -> None:
    project.write("test_it.py", f"import pytest\n\n@pytest.mark.{marker}\ndef test_it(): pass\n")
    result = project.run(*options)
    assert result.ret == USAGE_ERROR
    assert "passed" not in result.parseoutcomes()
    combined = pytest.LineMatcher([*result.outlines, *result.errlines])
    combined.fnmatch_lines([f"*test_it.py::test_it*{said}*"])


def test_a_fixture_contradicts_the_marker_that_opts_out(project: Project) -> None:
    project.write(
        "test_it.py",
        """
        import pytest

        @pytest.mark.no_sandbox
        def test_it(sandboxed):
            pass
        """,
    )
    result = project.run()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*asks for the fixture `sandboxed`, and is marked no_sandbox*"])


def test_an_escape_is_the_error_of_the_test_that_did_it(project: Project) -> None:
    project.write(
        "test_it.py",
        """
        import app, pytest

        def test_1_contained():
            app.add("ann")

        def test_2_escapes(sandboxed):
            app.add("escaped")
            # Where no sandbox sees it: on the real connection.
            (shared, _), = sandboxed._shared.values()
            shared.real.execute("COMMIT")

        def test_3_goes_on():
            assert app.names() == []
            app.add("ann")
        """,
    )
    result = project.run("-p", "no:randomly")
    result.assert_outcomes(passed=3, errors=1)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test_2_escapes*",
            "SandboxEscapeError: *test_it.py::test_2_escapes was ended by*",
        ]
    )


def test_an_escape_does_not_hide_what_else_went_wrong(project: Project) -> None:
    project.write(
        "test_it.py",
        """
        import app, pytest

        @pytest.fixture
        def fails_at_its_end():
            yield
            raise RuntimeError("of the fixture")

        def test_escapes(sandboxed, fails_at_its_end):
            app.add("escaped")
            (shared, _), = sandboxed._shared.values()
            shared.real.execute("COMMIT")
        """,
    )
    result = project.run()
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*RuntimeError: of the fixture*", "*SandboxEscapeError: *"])


FORGETS = """
import app, sandbox

def test_1_forgets():
    sandbox.checkout(app.engine)
    app.add("ann")

def test_2_is_not_bothered():
    with sandbox.sandboxed(app.engine):
        assert app.names() == []
        app.add("ann")
"""


def test_a_forgotten_checkin_is_done_and_named(project: Project) -> None:
    project.write("test_it.py", FORGETS)
    options = ("-p", "no:randomly", "-o", "sandbox_autouse=false")
    result = project.run(*options, "-W", "default")
    result.assert_outcomes(passed=2, warnings=1)
    result.stdout.fnmatch_lines(["*test_it.py::test_1_forgets checked out * did not check it in*"])
    # With warnings as errors it is that test's error.
    result = project.run(*options)
    result.assert_outcomes(passed=2, errors=1)


def test_so_it_is_without_any_setting(project: Project) -> None:
    project.settings("")
    project.write("conftest.py", 'import os\nos.environ["DATABASE_URL"] = "sqlite:///own.db"\n')
    project.write(
        "test_it.py",
        FORGETS
        + """
import models, pytest

@pytest.fixture(scope="module", autouse=True)
def tables():
    models.Base.metadata.create_all(app.engine)
    yield
    app.engine.dispose()

@pytest.fixture(scope="module")
def wider():
    with sandbox.sandboxed(app.engine) as sandboxed:
        yield sandboxed

class TestWider:
    def test_3_a_wider_fixture_forgets_nothing(self, wider):
        app.add("ann")

    def test_4_it_lives_on(self, wider):
        assert not wider.closed
        assert app.names() == ["ann"]
""",
    )
    result = project.run("-p", "no:randomly", "-W", "default")
    result.assert_outcomes(passed=4, warnings=1)
    result.stdout.fnmatch_lines(["*test_it.py::test_1_forgets checked out *"])

from __future__ import annotations

import importlib.util
import shutil
import subprocess

import pytest

from sandbox.databases.migrations import parse_source
from sandbox.errors import ConfigurationError, MigrationError

DRIVERS = ["psycopg", "psycopg2", "asyncpg"]


@pytest.fixture
def run(project, postgresql):
    def run_(spec, driver="psycopg"):
        parse_source(spec, root=project.root).run(postgresql.url(driver))

    return run_


@pytest.fixture
def only(monkeypatch):
    """Hide every PostgreSQL driver but one."""
    find = importlib.util.find_spec

    def hide(*installed):
        hidden = {"psycopg", "psycopg2", "asyncpg"} - set(installed)
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name in hidden else find(name)
        )

    return hide


@pytest.mark.parametrize("env", ["sync", "async"])
@pytest.mark.parametrize("driver", DRIVERS)
def test_alembic_migrates_whatever_the_driver(project, postgresql, run, env, driver):
    project.alembic(env)
    project.revision("a1", None, "CREATE TYPE colour AS ENUM ('red')")
    project.revision("b2", "a1", "CREATE TABLE book (id integer, colour colour)")
    run("alembic", driver)
    assert postgresql.tables() == {"alembic_version", "book"}


def test_a_failing_revision_keeps_nothing_on_postgresql(project, postgresql, run):
    project.alembic()
    project.revision("a1", None, "CREATE TABLE book (id integer)")
    project.revision("b2", "a1", "CREATE TABLE book (id integer)")
    with pytest.raises(MigrationError, match=r"psycopg\.errors\.DuplicateTable") as caught:
        run("alembic")
    assert "in revision b2" in str(caught.value)
    assert postgresql.tables() == set()


def test_a_failure_at_the_commit_is_no_revisions_fault(project, run):
    project.alembic()
    project.revision(
        "a1",
        None,
        "CREATE TABLE a (id integer PRIMARY KEY)",
        "CREATE TABLE b (a integer REFERENCES a DEFERRABLE INITIALLY DEFERRED)",
        "INSERT INTO b VALUES (1)",
    )
    with pytest.raises(MigrationError, match="outside any revision") as caught:
        run("alembic")
    assert "ForeignKeyViolation" in str(caught.value)


def test_an_env_with_an_address_of_its_own_is_found_out(project, run, tmp_path):
    project.alembic(
        before="from alembic import context\n"
        f'context.config.set_main_option("sqlalchemy.url", "sqlite:///{tmp_path}/other.db")\n'
    )
    project.revision("a1", None, "CREATE TABLE book (id integer)")
    with pytest.raises(MigrationError, match="takes its URL from somewhere else"):
        run("alembic")


MODELS = """
import enum
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

class Base(DeclarativeBase): ...
class Colour(enum.Enum):
    red = 1
class Book(Base):
    __tablename__ = "book"
    id: Mapped[int] = mapped_column(primary_key=True)
    colour: Mapped[Colour]
"""


@pytest.mark.parametrize("installed", [*([each] for each in DRIVERS), DRIVERS])
def test_metadata_is_created_by_whatever_driver_is_installed(
    project, postgresql, run, only, installed
):
    project.write("shop_models.py", MODELS)
    only(*installed)
    run("metadata:shop_models:Base.metadata", "asyncpg")
    assert postgresql.tables() == {"book"}


SCHEMA = r"""
\restrict 6f1d
-- PostgreSQL database dump; with a semicolon
SET client_encoding = 'UTF8';
CREATE TABLE public.book (id integer, title text DEFAULT 'a;b%s');
CREATE FUNCTION twice(x integer) RETURNS integer LANGUAGE plpgsql AS $_$
BEGIN
    RETURN x * 2;  -- ;
END $_$;
CREATE FUNCTION thrice(x integer) RETURNS integer BEGIN ATOMIC
    SELECT CASE WHEN true THEN 1 END;
    SELECT x * 3;
END;
CREATE INDEX CONCURRENTLY book_title ON public.book (title);
BEGIN; INSERT INTO public.book (id) VALUES (7); ROLLBACK;
\unrestrict 6f1d
"""


@pytest.mark.parametrize("driver", DRIVERS)
def test_an_sql_file_runs_as_psql_would_run_it(project, postgresql, run, only, driver):
    project.write("schema.sql", SCHEMA)
    only(driver)
    run("sql:schema.sql")
    assert postgresql.ask("SELECT twice(2), thrice(2), count(*)::int FROM book") == [(4, 6, 0)]
    assert postgresql.ask(
        "SELECT indisvalid FROM pg_index WHERE indexrelid = 'book_title'::regclass"
    )


COPY = r"""CREATE TABLE book (id int, title text);
COPY book FROM stdin;
1	a;b
2	\N
\.
SELECT 1;
"""


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_rows_that_pg_dump_wrote_are_loaded(project, postgresql, run, only, driver):
    project.write("dump.sql", COPY)
    only(driver)
    run("sql:dump.sql")
    assert postgresql.ask("SELECT * FROM book ORDER BY id") == [(1, "a;b"), (2, None)]


def test_what_pg_dump_writes_today_is_read(project, postgresql, run):
    program = shutil.which("pg_dump", path=postgresql.bindir)
    if program is None:
        pytest.skip("this PostgreSQL came without pg_dump")
    project.write("schema.sql", SCHEMA)
    run("sql:schema.sql")
    postgresql.ask("INSERT INTO book VALUES (1, E'a\\t\\\\.') RETURNING id")
    dump = subprocess.run(
        [program, postgresql.url().replace("+psycopg", "")], capture_output=True, check=True
    )
    (project.root / "dump.sql").write_bytes(dump.stdout)
    postgresql.empty()
    run("sql:dump.sql")
    assert postgresql.ask("SELECT title, thrice(id) FROM book") == [("a\t\\.", 3)]


def test_rows_cannot_be_loaded_by_asyncpg_and_it_says_so(project, run, only):
    project.write("dump.sql", COPY)
    only("asyncpg")
    with pytest.raises(MigrationError, match=r"dump\.sql:2\n.*needs psycopg[\s\S]*pip install"):
        run("sql:dump.sql")


@pytest.mark.parametrize("driver", DRIVERS)
def test_an_error_in_an_sql_file_is_found_by_its_line(project, run, only, driver):
    file = project.write(
        "schema.sql", "CREATE TABLE a (id int);\n\nSELECT 'é',\n  no_such\nFROM a;\n"
    )
    only(driver)
    with pytest.raises(MigrationError, match='column "no_such" does not exist') as caught:
        run("sql:schema.sql")
    assert f"{file}:4\n" in str(caught.value)


def test_an_sql_file_needs_a_driver(project, run, only):
    project.write("schema.sql", "SELECT 1;")
    only()
    with pytest.raises(ConfigurationError, match=r'pip install "psycopg\[binary\]"'):
        run("sql:schema.sql")


def test_a_server_that_is_not_there_is_an_error_of_its_own(project):
    project.write("schema.sql", "SELECT 1;")
    source = parse_source("sql:schema.sql", root=project.root)
    with pytest.raises(MigrationError, match="connecting to postgresql://me:") as caught:
        source.run("postgresql://me:secret@127.0.0.1:1/x")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_coroutine_function_gets_a_connection_of_asyncio(project, postgresql, run, driver):
    project.write(
        "seeds.py",
        """
        import sqlalchemy as sa
        async def build(connection):
            await connection.execute(sa.text("CREATE TABLE seeded (id integer)"))
        """,
    )
    run("call:seeds:build", driver)
    assert postgresql.tables() == {"seeded"}

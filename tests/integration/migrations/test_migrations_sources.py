from __future__ import annotations

import asyncio

import pytest

from sandbox.databases.migrations import parse_source, parse_sources
from sandbox.errors import ConfigurationError, MigrationError

MODELS = """
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

class Base(DeclarativeBase):
    pass

class Book(Base):
    __tablename__ = "book"
    id: Mapped[int] = mapped_column(primary_key=True)

class Empty(DeclarativeBase):
    pass
"""


@pytest.fixture
def run(project, sqlite_url):
    def run_(spec, url=sqlite_url):
        parse_source(spec, root=project.root).run(url)

    return run_


def test_several_specs_are_read_in_order(project):
    project.write("schema.sql", "SELECT 1;")
    specs = "\n  sql:schema.sql\n\n # then the rest\n metadata:shop.models:Base\n"
    sources = parse_sources(specs, root=project.root)
    assert [each.description for each in sources] == ["sql:schema.sql", "metadata:shop.models:Base"]
    assert parse_sources(["sql:schema.sql"], root=project.root) == sources[:1]
    assert parse_sources("", root=project.root) == ()


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("django", "unknown kind of migrations 'django'"),
        ("schema.sql", "unknown kind of migrations 'schema.sql'"),
        ("metadata:", "names no metadata"),
        ("metadata:app.models", "expected a module and a name"),
        ("metadata:app/models.py:Base", "expected a module and a name"),
        ("call:", "names no function"),
        ("call:tests.schema", "expected a module and a name"),
        ("sql:", "names no file"),
        ("sql:missing.sql", "there is no file or directory"),
        ("sql:empty", r"no \*\.sql file"),
    ],
)
def test_a_spec_that_cannot_be_understood_is_refused_at_once(project, spec, reason):
    (project.root / "empty").mkdir()
    with pytest.raises(ConfigurationError, match=reason) as caught:
        parse_source(spec, root=project.root)
    assert "call:tests.schema:build" in str(caught.value)


@pytest.mark.parametrize("attribute", ["Base.metadata", "Base"])
@pytest.mark.parametrize("driver", ["sqlite", "sqlite+aiosqlite"])
def test_metadata_is_created(project, run, sqlite_url, tables, attribute, driver):
    project.write("shop/models.py", MODELS)
    run(f"metadata:shop.models:{attribute}", sqlite_url.replace("sqlite", driver, 1))
    assert tables(sqlite_url) == {"book"}


def test_what_the_spec_names_must_exist(project, run):
    project.write("shop/models.py", MODELS)
    with pytest.raises(ConfigurationError, match=r"there is no module 'shop\.tables'"):
        run("metadata:shop.tables:Base")
    with pytest.raises(ConfigurationError, match=r"module 'shop.models' has no 'Base\.meta'"):
        run("metadata:shop.models:Base.meta")
    with pytest.raises(ConfigurationError, match="is a int, not a MetaData"):
        run("metadata:shop.models:Book.__tablename__.__len__.__call__.__hash__.__class__.__flags__")
    with pytest.raises(ConfigurationError, match="the metadata has no tables"):
        run("metadata:shop.models:Empty")


def test_a_module_that_fails_to_import_fails_with_its_own_error(project, run):
    project.write("broken.py", "import no_such_package_anywhere")
    with pytest.raises(
        MigrationError, match="No module named 'no_such_package_anywhere'"
    ) as caught:
        run("metadata:broken:Base")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


BUILDERS = """
from __future__ import annotations
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy import Connection, Engine

DDL = sa.text("CREATE TABLE built (id INTEGER)")
CALLS = []

def by_url(url):
    assert isinstance(url, str)
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(DDL)
    engine.dispose()

def by_connection(connection):
    assert isinstance(connection, sa.Connection)
    connection.execute(DDL)

def by_annotation(anything: "Connection", verbose=False):
    by_connection(anything)

def by_engine(engine):
    assert isinstance(engine, sa.Engine)
    with engine.begin() as connection:
        connection.execute(DDL)

async def async_by_url(url):
    by_url(url)

async def async_by_connection(connection: AsyncConnection):
    assert isinstance(connection, AsyncConnection)
    await connection.execute(DDL)

def by_unknown_type(url: NotImportedHere):
    by_url(url)

async def async_by_engine(db: AsyncEngine):
    async with db.begin() as connection:
        await connection.execute(DDL)

def two(url, schema): ...

def alone():
    CALLS.append("alone")

def failing(url):
    raise LookupError("no seeds")

number = 5
"""


@pytest.fixture
def builders(project):
    project.write("builders.py", BUILDERS)


@pytest.mark.usefixtures("builders")
@pytest.mark.parametrize(
    "name",
    [
        "by_url",
        "by_connection",
        "by_annotation",
        "by_engine",
        "by_unknown_type",
        "async_by_url",
        "async_by_connection",
        "async_by_engine",
    ],
)
def test_a_function_gets_what_its_parameter_asks_for(run, sqlite_url, tables, name):
    run(f"call:builders:{name}")
    assert tables(sqlite_url) == {"built"}


@pytest.mark.usefixtures("builders")
async def test_a_coroutine_function_runs_inside_a_running_loop(run, sqlite_url, tables):
    run("call:builders:async_by_connection")
    assert tables(sqlite_url) == {"built"}
    assert asyncio.get_running_loop().is_running()


@pytest.mark.usefixtures("builders")
def test_a_function_without_parameters_is_called_with_nothing(run):
    run("call:builders:alone")
    assert __import__("builders").CALLS == ["alone"]


@pytest.mark.usefixtures("builders")
def test_a_function_that_fails_is_quoted_with_its_line(project, run):
    line = BUILDERS.splitlines().index('    raise LookupError("no seeds")') + 1
    with pytest.raises(MigrationError, match="LookupError: no seeds") as caught:
        run("call:builders:failing")
    assert f"{project.root}/builders.py:{line}" in str(caught.value)
    assert isinstance(caught.value.__cause__, LookupError)


@pytest.mark.usefixtures("builders")
def test_what_cannot_be_called_with_one_argument_is_refused(run):
    with pytest.raises(ConfigurationError, match=r"wants 2 arguments \(url, schema\)"):
        run("call:builders:two")
    with pytest.raises(ConfigurationError, match="is a int, not a function"):
        run("call:builders:number")


def test_sql_files_run_by_name(project, run, sqlite_url, tables):
    project.write("schema/20_book.sql", "ALTER TABLE shop RENAME TO book;")
    project.write("schema/10_shop.sql", "CREATE TABLE shop (id INTEGER);")
    project.write("schema/readme.txt", "not SQL")
    run("sql:schema")
    assert tables(sqlite_url) == {"book"}


def test_an_sqlite_script_keeps_its_triggers_whole(project, run, sqlite_url, tables):
    project.write(
        "schema.sql",
        """
        CREATE TABLE shop (id INTEGER, name TEXT DEFAULT 'a;b'); -- a comment; with one
        CREATE TRIGGER loud AFTER INSERT ON shop BEGIN
            UPDATE shop SET name = upper(name);
            DELETE FROM shop WHERE id < 0;
        END;
        INSERT INTO shop (id) VALUES (1)
        """,
    )
    run("sql:schema.sql")
    assert tables(sqlite_url) == {"shop", "loud"}


def test_a_failing_statement_is_named_by_file_and_line(project, run):
    file = project.write(
        "schema.sql", "CREATE TABLE shop (id INTEGER);\n\n\nCREATE TABLE shop (x);"
    )
    with pytest.raises(MigrationError, match="table shop already exists") as caught:
        run("sql:schema.sql")
    assert f"{file}:4" in str(caught.value)
    assert "in: CREATE TABLE shop (x);" in str(caught.value)


def test_commands_of_the_sqlite_program_are_refused(project, run):
    project.write("schema.sql", "SELECT 1;\n.mode csv\n")
    with pytest.raises(MigrationError, match=r"schema.sql:2\n.*\.mode is a command of the sqlite3"):
        run("sql:schema.sql")


def test_a_file_that_is_no_text_is_refused(project, run):
    (project.root / "schema.sql").write_bytes(b"SELECT '\xff';")
    with pytest.raises(MigrationError, match="UnicodeDecodeError"):
        run("sql:schema.sql")


def test_a_database_in_memory_cannot_be_filled_from_outside(project, run):
    project.write("schema.sql", "SELECT 1;")
    with pytest.raises(ConfigurationError, match="use a file"):
        run("sql:schema.sql", "sqlite://")

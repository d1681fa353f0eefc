"""MySQL and MariaDB: the everyday cases, what commits by itself, what no rollback takes back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa

import sandbox
from sandbox.errors import (
    SandboxEscapeError,
    UnsupportedInSandboxError,
)
from tests.fix_db import items
from tests.fix_mariadb import MYSQL, MariaDB, MySQLApp
from tests.integration.test_transactions import (
    CASES,
    Case,
    a_reader_left_open_hinders_nobody,
    add,
    names,
    savepoints_as_text,
    schema_changes_are_contained,
)

SELECT = sa.select(items.c.name).order_by(items.c.id)


def insert(engine: sa.Engine, name: str) -> None:
    with engine.begin() as connection:
        connection.execute(sa.insert(items).values(name=name))


def seen(engine: sa.Engine) -> list[str]:
    with engine.connect() as connection:
        return list(connection.scalars(SELECT))


def text(engine: sa.Engine, sql: str) -> None:
    with engine.connect() as connection:
        connection.exec_driver_sql(sql)


# -- the case list -------------------------------------------------------------------------------


def a_savepoint_replaces_one_of_the_same_name(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        add(connection, "a")
        connection.exec_driver_sql("SAVEPOINT here")
        add(connection, "b")
        connection.exec_driver_sql("SAVEPOINT `HERE`")
        add(connection, "c")
        connection.exec_driver_sql("ROLLBACK TO SAVEPOINT here")
        connection.exec_driver_sql("RELEASE SAVEPOINT here")
        with pytest.raises(sa.exc.DBAPIError, match="1305"):
            connection.exec_driver_sql("ROLLBACK TO SAVEPOINT here")
        connection.commit()
        assert names(connection) == ["a", "b"]


def a_begin_commits_the_transaction_before_it(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        add(connection, "a")
        connection.exec_driver_sql("START TRANSACTION")
        add(connection, "b")
        connection.rollback()
        assert names(connection) == ["a"]


def comments_and_strings_hide_and_show(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        connection.exec_driver_sql("INSERT INTO items (name) VALUES ('it\\'s; COMMIT; ')")
        connection.exec_driver_sql("# COMMIT\nINSERT INTO items (name) VALUES ('b') -- COMMIT")
        connection.rollback()
        assert names(connection) == []
        add(connection, "c")
        connection.exec_driver_sql("/*!40000 COMMIT */")
        connection.rollback()
        assert names(connection) == ["c"]


# Others' ways, of which this is MySQL's own answer.
REPLACED: dict[Case, Case] = {
    savepoints_as_text: a_savepoint_replaces_one_of_the_same_name,
    # It commits: see below.
    schema_changes_are_contained: a_begin_commits_the_transaction_before_it,
}
MY_CASES = [REPLACED.get(case, case) for case in CASES] + [comments_and_strings_hide_and_show]


@pytest.mark.parametrize("case", MY_CASES, ids=lambda case: case.__name__)
def test_sandboxed_as_in_production_and_nothing_left(my_app: MySQLApp, case: Case) -> None:
    engine = my_app.make_engine()
    with sandbox.sandboxed(engine):
        my_app.run(case, engine)
    assert my_app.names() == []


# A REPEATABLE READ transaction on a connection of its own does not see what others commit. In a
# sandbox it does: all of a test's transactions are one on the server.
SNAPSHOTS = {a_reader_left_open_hinders_nobody}


@pytest.mark.parametrize(
    "case", [c for c in MY_CASES if c not in SNAPSHOTS], ids=lambda case: case.__name__
)
def test_passing_through_as_in_production(my_app: MySQLApp, case: Case) -> None:
    engine = my_app.make_engine()
    sandbox.mode(engine, "auto")
    my_app.run(case, engine)
    my_app.empty()


@pytest.mark.parametrize("driver", MYSQL)
def test_the_dialect_that_is_named_mariadb_is_the_same_database(
    make_my_app: Callable[[str], MySQLApp], mariadb: MariaDB, driver: str
) -> None:
    app = make_my_app(driver)
    engine = app.make_engine()
    app.url = mariadb.url(f"test_{driver}", driver, "mariadb")
    other = app.make_engine()

    def case() -> None:
        insert(engine, "a")
        insert(other, "b")
        assert seen(engine) == seen(other) == ["a", "b"]

    with sandbox.sandboxed(engine):
        app.run(case)


# -- what commits by itself ----------------------------------------------------------------------

COMMITS = [
    "CREATE TABLE extra (id integer)",
    "create  /* really */ table extra (id integer)",
    "CREATE OR REPLACE TABLE extra (id integer)",
    "/*!40000 CREATE TABLE extra (id integer) */",
    "/*M!100000 CREATE TABLE extra (id integer) */",
    "# a comment\nCREATE TABLE extra (id integer)",
    "CREATE TABLE extra LIKE items",
    "CREATE TABLE extra AS SELECT * FROM items",
    "ALTER TABLE victim ADD COLUMN extra integer",
    "DROP TABLE IF EXISTS extra",
    "RENAME TABLE victim TO victim2, victim2 TO victim",
    "TRUNCATE TABLE victim",
    "TRUNCATE victim",
    "CREATE INDEX extra ON victim (name)",
    "DROP INDEX IF EXISTS extra ON victim",
    "CREATE OR REPLACE VIEW extra_view AS SELECT 1",
    "DROP VIEW IF EXISTS extra_view",
    "CREATE DATABASE IF NOT EXISTS extra_database",
    "DROP DATABASE IF EXISTS extra_database",
    "CREATE OR REPLACE SEQUENCE extra_sequence",
    "DROP SEQUENCE IF EXISTS extra_sequence",
    "CREATE OR REPLACE PROCEDURE extra() BEGIN SELECT 1; SELECT 2; END",
    "DROP PROCEDURE IF EXISTS extra",
    "CREATE OR REPLACE FUNCTION extra() RETURNS INT RETURN 1",
    "DROP FUNCTION IF EXISTS extra",
    "CREATE OR REPLACE TRIGGER extra BEFORE INSERT ON victim FOR EACH ROW SET @extra = 1",
    "DROP TRIGGER IF EXISTS extra",
    "CREATE OR REPLACE EVENT extra ON SCHEDULE EVERY 1 DAY DO SELECT 1",
    "DROP EVENT IF EXISTS extra",
    "CREATE OR REPLACE USER extra",
    "ALTER USER extra IDENTIFIED BY 'x'",
    "GRANT SELECT ON victim TO extra",
    "REVOKE SELECT ON victim FROM extra",
    "SET PASSWORD FOR extra = PASSWORD('y')",
    "DROP USER IF EXISTS extra",
    "CREATE OR REPLACE ROLE extra_role",
    "DROP ROLE IF EXISTS extra_role",
    "LOCK TABLES victim READ",
    "LOCK TABLE victim WRITE",
    "ANALYZE TABLE victim",
    "ANALYZE LOCAL TABLE victim",
    "CHECK TABLE victim",
    "OPTIMIZE TABLE victim",
    "REPAIR TABLE victim",
    "FLUSH TABLES",
    "RESET QUERY CACHE",
    "SET autocommit = 0, autocommit = 1",
    "BEGIN NOT ATOMIC INSERT INTO items (name) VALUES ('b'); COMMIT; END",
    "BEGIN NOT ATOMIC CREATE OR REPLACE TABLE extra (id integer); END",
]
KEEPS = [
    "CREATE TEMPORARY TABLE extra (id integer)",
    "CREATE OR REPLACE TEMPORARY TABLE extra (id integer)",
    "CREATE TEMPORARY TABLE extra AS SELECT * FROM items",
    "DROP TEMPORARY TABLE IF EXISTS extra",
    "PREPARE extra FROM 'SELECT 1'",
    "SET @extra = 'CREATE TABLE extra (id integer)'",
    "SET SESSION sql_mode = ''",
    "SET NAMES utf8mb4",
    "SELECT 'CREATE TABLE'",
    "SELECT 1 -- CREATE TABLE",
    "SHOW CREATE TABLE items",
    "DESCRIBE items",
    "EXPLAIN DELETE FROM items",
    "ANALYZE SELECT * FROM items",
    "CHECKSUM TABLE items",
    "UNLOCK TABLES",
    "DO 1",
    "BEGIN NOT ATOMIC INSERT INTO items (name) VALUES ('b'); SELECT 1; END",
    "SET STATEMENT max_statement_time = 5 FOR SELECT * FROM items",
    "INSERT INTO items (name) VALUES ('alter table items; drop table items')",
]


@pytest.fixture
def victim(make_my_app: Callable[[str], MySQLApp]) -> Iterator[MySQLApp]:
    """An application with tables that may be damaged."""
    app = make_my_app("pymysql")
    app.ask("CREATE OR REPLACE TABLE victim (id integer, name varchar(50)) ENGINE=InnoDB")
    yield app
    for table in ("extra", "victim", "victim2"):
        app.ask(f"DROP TABLE IF EXISTS {table}")


@pytest.fixture
def _extra_user(victim: MySQLApp) -> Iterator[None]:
    victim.ask("CREATE USER IF NOT EXISTS extra")
    yield
    for what in ("USER", "ROLE"):
        victim.ask(f"DROP {what} IF EXISTS extra")
    for what in ("VIEW extra_view", "SEQUENCE extra_sequence", "ROLE extra_role"):
        victim.ask(f"DROP {what.partition(' ')[0]} IF EXISTS {what.partition(' ')[2]}")
    for what in ("PROCEDURE", "FUNCTION", "TRIGGER", "EVENT", "DATABASE"):
        name = "extra_database" if what == "DATABASE" else "extra"
        victim.ask(f"DROP {what} IF EXISTS {name}")


def stays_in_its_transaction(app: MySQLApp, sql: str) -> bool:
    """What the server itself does, on a connection of its own."""
    from pymysql.constants.SERVER_STATUS import SERVER_STATUS_IN_TRANS

    with contextlib.closing(app.outside()) as connection:
        cursor = connection.cursor()
        cursor.execute("BEGIN")
        cursor.execute("INSERT INTO items (name) VALUES ('witness')")
        with contextlib.suppress(Exception):
            cursor.execute(sql)
            while cursor.nextset():
                pass
        connection.ping(reconnect=False)
        inside = bool(connection.server_status & SERVER_STATUS_IN_TRANS)
        connection.rollback()
    return inside and "witness" not in app.names()


@pytest.mark.usefixtures("_extra_user")
@pytest.mark.parametrize("sql", COMMITS)
def test_what_commits_by_itself_is_refused_before_the_server_sees_it(
    victim: MySQLApp, sql: str
) -> None:
    assert not stays_in_its_transaction(victim, sql), "the server does not commit here"
    victim.empty()
    engine = victim.make_engine()
    with sandbox.sandboxed(engine):
        with engine.connect() as connection:
            add(connection, "a")
            with pytest.raises(UnsupportedInSandboxError, match=r"was not sent") as caught:
                connection.exec_driver_sql(sql)
            # As if nothing had been said.
            add(connection, "c")
            connection.commit()
        assert seen(engine) == ["a", "c"]
    assert "isolation=" in str(caught.value) or "autocommit" in str(caught.value)


@pytest.mark.parametrize("sql", KEEPS)
def test_what_does_not_commit_is_not_refused(victim: MySQLApp, sql: str) -> None:
    assert stays_in_its_transaction(victim, sql)
    engine = victim.make_engine()
    with sandbox.sandboxed(engine):
        with engine.connect() as connection:
            add(connection, "a")
            connection.exec_driver_sql(sql)
            connection.rollback()
            assert "a" not in names(connection)


@pytest.mark.parametrize(
    "sql",
    [
        "USE mysql",
        "SET GLOBAL max_connections = 200",
        "SET @@global.max_connections = 200",
        "SET GLOBAL TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        "SET autocommit = 0",
        "XA START 'x'",
        "START TRANSACTION READ ONLY",
        "SET SESSION TRANSACTION READ ONLY",
        "SET sql_mode = '', transaction_isolation = 'SERIALIZABLE'",
        "SHUTDOWN",
    ],
)
def test_what_would_reach_beyond_the_sandbox_is_refused(my_app: MySQLApp, sql: str) -> None:
    engine = my_app.make_engine()

    def case() -> None:
        insert(engine, "a")
        with engine.connect() as connection:
            with pytest.raises(UnsupportedInSandboxError):
                connection.exec_driver_sql(sql)
        assert seen(engine) == ["a"]

    with sandbox.sandboxed(engine):
        my_app.run(case)


def test_outside_of_a_sandbox_nothing_is_refused(victim: MySQLApp) -> None:
    engine = victim.make_engine()
    sandbox.mode(engine, "auto")
    text(engine, "CREATE TABLE extra (id integer)")
    text(engine, "DROP TABLE extra")


# -- what is hidden from us ----------------------------------------------------------------------


@pytest.fixture(params=MYSQL)
def hiding(
    request: pytest.FixtureRequest, make_my_app: Callable[[str], MySQLApp]
) -> Iterator[MySQLApp]:
    """An application with procedures that end transactions."""
    app = make_my_app(request.param)
    for name, body in {
        "commits": "COMMIT;",
        "defines": "CREATE OR REPLACE TABLE extra (id integer);",
        "commits_and_begins": "COMMIT; START TRANSACTION;",
        "answers_and_commits": "SELECT 1; COMMIT;",
    }.items():
        app.ask(f"CREATE OR REPLACE PROCEDURE {name}() BEGIN {body} END")
    yield app
    for name in ("commits", "defines", "commits_and_begins", "answers_and_commits"):
        app.ask(f"DROP PROCEDURE {name}")
    app.ask("DROP TABLE IF EXISTS extra")


@pytest.mark.parametrize(
    "sql",
    [
        "CALL commits()",
        "CALL defines()",
        "EXECUTE IMMEDIATE 'CREATE OR REPLACE TABLE extra (id integer)'",
        # It fails, and has committed before.
        "EXECUTE IMMEDIATE 'CREATE TABLE items (id integer)'",
    ],
)
def test_a_hidden_commit_is_found_by_the_servers_status(hiding: MySQLApp, sql: str) -> None:
    engine = hiding.make_engine()

    def case() -> None:
        insert(engine, "a")
        with engine.connect() as connection:
            with pytest.raises((SandboxEscapeError, sa.exc.DBAPIError)):
                connection.exec_driver_sql(sql)
            with pytest.raises(SandboxEscapeError, match=r"was ended by (CALL|EXECUTE)"):
                connection.exec_driver_sql("SELECT 1")

    sandbox.checkout(engine)
    hiding.run(case)
    with pytest.raises(SandboxEscapeError):
        sandbox.checkin(engine)
    # It cannot be undone, but the next test has a connection of its own.
    assert hiding.names() == ["a"]
    hiding.empty()
    with sandbox.sandboxed(engine):
        hiding.run(insert, engine, "a")


# SQLAlchemy 2.0's, for a connection that could not be reset.
@pytest.mark.filterwarnings("ignore:The garbage collector is trying to clean up")
@pytest.mark.parametrize("sql", ["CALL commits_and_begins()", "CALL answers_and_commits()"])
def test_a_commit_that_the_status_hides_is_found_at_checkin_at_the_latest(
    hiding: MySQLApp, sql: str
) -> None:
    engine = hiding.make_engine()

    def case() -> None:
        insert(engine, "a")
        with contextlib.suppress(SandboxEscapeError, sa.exc.DBAPIError):
            text(engine, sql)

    sandbox.checkout(engine)
    hiding.run(case)
    with pytest.raises(SandboxEscapeError):
        sandbox.checkin(engine)
    assert hiding.names() == ["a"]
    hiding.empty()

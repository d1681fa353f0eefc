"""Databases whose now() follows a setting: what changes in them, and what does not."""

from __future__ import annotations

import datetime as dt
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from sandbox.core import clock as core
from sandbox.databases import clock
from sandbox.databases.backends import EmbeddedPostgres
from sandbox.errors import ConfigurationError

AT = "2001-02-03 04:05:06.000789+00"
LONG_AGO = dt.datetime.fromisoformat(AT)
DEBIAN = Path("/usr/lib/postgresql")
"""Where Debian's packages of other versions put theirs."""


def installations() -> list[str]:
    return ["embedded", *sorted(path.name for path in DEBIAN.glob("1[5-8]"))]


@pytest.fixture(scope="module", params=installations())
def server_of_any_version(request: pytest.FixtureRequest) -> Iterator[EmbeddedPostgres]:
    if request.param == "embedded":
        yield request.getfixturevalue("server")
        return
    with EmbeddedPostgres.start(bindir=DEBIAN / request.param / "bin") as running:
        yield running


class Database:
    """One on the server, for one test."""

    def __init__(self, server: EmbeddedPostgres, name: str) -> None:
        self.server, self.name = server, name

    def url(self, user: str | None = None) -> str:
        url = self.server.url(self.name, "postgresql+psycopg")
        return url.replace(f"//{self.server.user}@", f"//{user}@") if user else url

    def connect(self, **options: Any) -> psycopg.Connection[Any]:
        return psycopg.connect(self.server.url(self.name), autocommit=True, **options)

    def ask(self, *statements: str) -> list[Any]:
        with self.connect() as connection:
            for statement in statements:
                cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def set_and_ask(self, statement: str) -> Any:
        ((value,),) = self.ask(f"SET sandbox.now = '{AT}'", statement)
        return value

    @property
    def fact(self) -> Any:
        """What a sandbox finds out about a new connection."""
        ((value,),) = self.ask(core.SHADOW_SQL, core.FACT_SQL)
        return value


@pytest.fixture
def plain(server_of_any_version: EmbeddedPostgres) -> Iterator[Database]:
    server = server_of_any_version
    server.create_database("clock_databases")
    yield Database(server, "clock_databases")
    server.drop_database("clock_databases")


@pytest.fixture
def replaced(plain: Database) -> Database:
    clock.install(plain.server, plain.name)
    return plain


CATALOG = (
    "SELECT p.oid, proname, proowner, prolang, provolatile, proparallel, proisstrict, proleakproof,"
    " prosecdef, proretset, procost, prorettype, proacl, proconfig,"
    " obj_description(p.oid, 'pg_proc')"
    " FROM pg_proc p WHERE proname IN ('now', 'transaction_timestamp') ORDER BY 1"
)


def test_it_says_what_the_setting_says_and_else_the_real_time(replaced: Database) -> None:
    for call in (
        "now()",
        "transaction_timestamp()",
        "pg_catalog.now()",
        "now() AT TIME ZONE 'UTC'",
    ):
        assert replaced.set_and_ask(f"SELECT {call}").replace(tzinfo=dt.UTC) == LONG_AGO
    assert replaced.ask("SELECT now() = CURRENT_TIMESTAMP") == [(True,)]
    assert replaced.ask("SET sandbox.now = ''", "SELECT now() = CURRENT_TIMESTAMP") == [(True,)]
    assert replaced.set_and_ask("SELECT CURRENT_TIMESTAMP > now()")


@pytest.mark.parametrize("style", ["SQL, DMY", "German", "Postgres, MDY", "ISO, YMD"])
def test_no_style_of_dates_misunderstands_a_reading(replaced: Database, style: str) -> None:
    reading = core.Clock.fixed(LONG_AGO).reading()
    (answer,) = replaced.ask(
        f"SET datestyle = '{style}'",
        "SET timezone = 'Asia/Kolkata'",
        f"SET sandbox.now = '{reading}'",
        "SELECT extract(epoch FROM now())::text",
    )
    assert float(answer[0]) == LONG_AGO.timestamp()


def test_a_database_knows_whether_it_follows(plain: Database) -> None:
    assert plain.fact is False
    clock.install(plain.server, plain.name)
    assert plain.fact is True


def test_off_installs_nothing(plain: Database) -> None:
    clock.install(plain.server, plain.name, "off")
    assert plain.fact is False


def test_what_the_planner_and_others_know_of_the_function_stays(plain: Database) -> None:
    before = plain.ask(CATALOG)
    clock.install(plain.server, plain.name)
    after = plain.ask(CATALOG)
    changed = {
        position
        for one, other in zip(before, after, strict=True)
        for position, values in enumerate(zip(one, other, strict=True))
        if values[0] != values[1]
    }
    assert changed == {3, 6}, (
        "the language, and STRICT, which a function without arguments can lack"
    )


def test_installing_again_changes_nothing(replaced: Database) -> None:
    before = replaced.ask(CATALOG)
    clock.install(replaced.server, replaced.name)
    assert replaced.ask(CATALOG) == before
    assert replaced.set_and_ask("SELECT now()") == LONG_AGO


def test_copies_of_the_database_inherit_it(replaced: Database) -> None:
    replaced.ask("CREATE TABLE t (made timestamptz DEFAULT now())")
    server = replaced.server
    server.create_database("clock_copy", template=replaced.name)
    try:
        copy = Database(server, "clock_copy")
        assert copy.fact is True
        assert copy.set_and_ask("INSERT INTO t DEFAULT VALUES RETURNING made") == LONG_AGO
    finally:
        server.drop_database("clock_copy")


def test_other_databases_of_the_server_are_left_alone(replaced: Database) -> None:
    assert Database(replaced.server, "postgres").fact is False
    assert Database(replaced.server, "template1").fact is False


PLACES = {
    "a default made before": "INSERT INTO t DEFAULT VALUES RETURNING made",
    "a default of a column added": "ALTER TABLE t ADD late timestamptz DEFAULT now();"
    "INSERT INTO t DEFAULT VALUES RETURNING late",
    "a default that casts": "INSERT INTO t DEFAULT VALUES RETURNING day",
    "an update to its default": "INSERT INTO t (made) VALUES (NULL);"
    "UPDATE t SET made = DEFAULT RETURNING made",
    "a view made before": "SELECT at FROM v",
    "a function in FROM": "SELECT at FROM now() AS at",
    "LATERAL": "SELECT at FROM generate_series(1, 1), LATERAL now() AS at",
    "SQL in a function": "SELECT in_sql()",
    "PL/pgSQL": "SELECT in_plpgsql()",
    "a trigger": "INSERT INTO triggered VALUES (NULL) RETURNING made",
    "a check that it passes": "INSERT INTO checked VALUES ('2001-02-03') RETURNING made",
    "a prepared statement": "PREPARE p AS SELECT now(); EXECUTE p",
    "an aggregate": "SELECT max(now()) FROM generate_series(1, 3)",
    "a domain's check": "SELECT '2001-02-03'::past::timestamptz",
    "EXECUTE in PL/pgSQL": "SELECT in_dynamic()",
}
BEFORE = """
CREATE TABLE t (id serial, made timestamptz DEFAULT now(), day date DEFAULT now());
CREATE VIEW v AS SELECT now() AS at;
CREATE FUNCTION in_sql() RETURNS timestamptz LANGUAGE sql AS 'SELECT now()';
CREATE FUNCTION in_plpgsql() RETURNS timestamptz LANGUAGE plpgsql
    AS 'DECLARE at timestamptz := now(); BEGIN RETURN at; END';
CREATE FUNCTION in_dynamic() RETURNS timestamptz LANGUAGE plpgsql
    AS 'DECLARE at timestamptz; BEGIN EXECUTE ''SELECT now()'' INTO at; RETURN at; END';
CREATE TABLE triggered (made timestamptz);
CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql
    AS 'BEGIN NEW.made := now(); RETURN NEW; END';
CREATE TRIGGER fill BEFORE INSERT ON triggered FOR EACH ROW
    WHEN (now() < '2002-01-01') EXECUTE FUNCTION fill();
CREATE TABLE checked (made timestamptz CHECK (made > now() - interval '1 day'));
CREATE DOMAIN past AS timestamptz CHECK (VALUE > now() - interval '1 day');
"""


@pytest.mark.parametrize("place", PLACES)
def test_every_place_that_calls_it_follows(plain: Database, place: str) -> None:
    """All that are planned are: see the module's notes on how calls come to the function."""
    plain.ask(BEFORE)
    clock.install(plain.server, plain.name)
    plain.ask(f"ALTER DATABASE {plain.name} SET sandbox.now = '{AT}'")
    *first, last = PLACES[place].split(";")
    ((value,),) = plain.ask(*first, last)
    expected = LONG_AGO.date()
    assert (
        value.astimezone(dt.UTC).date() if isinstance(value, dt.datetime) else value
    ) == expected


def test_copy_takes_the_default_too(replaced: Database) -> None:
    with replaced.connect() as connection:
        connection.execute("CREATE TABLE t (id int, made timestamptz DEFAULT now())")
        connection.execute(f"SET sandbox.now = '{AT}'")
        with connection.cursor().copy("COPY t (id) FROM stdin") as copy:
            copy.write_row((1,))
        assert connection.execute("SELECT made FROM t").fetchone() == (LONG_AGO,)


ROWS = """
CREATE TABLE e (at timestamptz) PARTITION BY RANGE (at);
CREATE TABLE e_old PARTITION OF e FOR VALUES FROM ('2001-01-01') TO ('2002-01-01');
CREATE TABLE e_new PARTITION OF e FOR VALUES FROM ('2002-01-01') TO ('2100-01-01');
INSERT INTO e
    SELECT '2001-01-01'::timestamptz + i * interval '1 hour' FROM generate_series(0, 8000) i;
INSERT INTO e
    SELECT CURRENT_TIMESTAMP - i * interval '1 minute' FROM generate_series(1, 20000) i;
CREATE INDEX ON e (at);
"""


def plan(connection: psycopg.Connection[Any], condition: str) -> dict[str, Any]:
    query = f"EXPLAIN (FORMAT json, ANALYZE, TIMING off) SELECT * FROM e WHERE {condition}"
    row = connection.execute(query).fetchone()
    assert row is not None
    root: dict[str, Any] = row[0][0]["Plan"]
    return root


def test_indexes_partitions_and_estimates_are_used_as_before(plain: Database) -> None:
    plain.ask(*filter(str.strip, ROWS.split(";")), "VACUUM ANALYZE e")
    condition = "at > now() - interval '30 minutes'"
    with plain.connect() as connection:
        before = plan(connection, condition)
    clock.install(plain.server, plain.name)
    with plain.connect() as connection:
        after = plan(connection, condition)
        connection.execute(f"SET sandbox.now = '{AT}'")
        travelled = plan(connection, f"{condition} AND at < now()")
    for found in (before, after):
        assert "Index" in str(found["Plans"][0]["Node Type"])
        assert found["Subplans Removed"] == 1
        assert {each["Relation Name"] for each in found["Plans"]} == {"e_new"}
    assert after["Plan Rows"] == before["Plan Rows"]
    assert travelled["Subplans Removed"] == 1
    assert {each["Relation Name"] for each in travelled["Plans"]} == {"e_old"}
    assert travelled["Actual Rows"] == 1


def pg_dump(database: Database) -> str | None:
    places = [str(database.server.bindir), *(f"{path}/bin" for path in DEBIAN.glob("*"))]
    program = shutil.which("pg_dump", path=os.pathsep.join(places))
    if program is None:
        return None
    done = subprocess.run(
        [program, "--dbname", database.server.url(database.name)],
        capture_output=True,
        text=True,
        check=False,
    )
    if "server version mismatch" in done.stderr:
        return None
    assert done.returncode == 0, done.stderr
    # Newer ones frame the dump with a random word.
    return "\n".join(line for line in done.stdout.splitlines() if "restrict" not in line)


def test_a_dump_of_the_database_does_not_know_of_it(plain: Database) -> None:
    plain.ask("CREATE TABLE t (made timestamptz DEFAULT now())")
    before = pg_dump(plain)
    if before is None:
        pytest.skip("there is no pg_dump of this server's version")
    clock.install(plain.server, plain.name)
    assert pg_dump(plain) == before
    assert "DEFAULT now()" in before


# -- databases that are not ours -----------------------------------------------------------------


def test_auto_leaves_a_database_of_others_alone(plain: Database) -> None:
    before = plain.ask(CATALOG)
    clock.arrange(plain.url(), "auto")
    assert plain.ask(CATALOG) == before
    assert plain.fact is False


@pytest.mark.parametrize("choice", ["replace", "shadow"])
def test_what_was_installed_can_be_taken_out_again(plain: Database, choice: str) -> None:
    before = plain.ask(CATALOG), plain.ask("SELECT nspname FROM pg_namespace ORDER BY 1")
    for _ in range(2):
        clock.arrange(plain.url(), choice)
        assert plain.fact is True
    clock.arrange(plain.url(), "auto")
    assert plain.fact is True, "it stays until it is turned off"
    for _ in range(2):
        clock.arrange(plain.url(), "off")
        assert plain.fact is False
    after = plain.ask(CATALOG), plain.ask("SELECT nspname FROM pg_namespace ORDER BY 1")
    assert after == before


@pytest.fixture
def developer(plain: Database) -> Iterator[str]:
    """A role that may make schemas, and is no superuser."""
    plain.ask(
        "CREATE ROLE developer LOGIN",
        f"GRANT CREATE ON DATABASE {plain.name} TO developer",
        "GRANT CREATE ON SCHEMA public TO developer",
    )
    yield "developer"
    plain.ask("DROP OWNED BY developer", "DROP ROLE developer")


def test_only_a_superuser_may_replace(plain: Database, developer: str) -> None:
    with pytest.raises(ConfigurationError, match=r"Only a superuser.*sandbox_clock = shadow"):
        clock.arrange(plain.url(developer), "replace")
    clock.arrange(plain.url(), "replace")
    clock.arrange(plain.url(developer), "replace")  # it is there already
    assert plain.fact is True


def test_anybody_may_shadow_who_may_make_a_schema(plain: Database, developer: str) -> None:
    clock.arrange(plain.url(developer), "shadow")
    assert plain.fact is True
    plain.ask(f"REVOKE CREATE ON DATABASE {plain.name} FROM developer")
    clock.arrange(plain.url(developer), "shadow")  # it is there already
    clock.arrange(plain.url(), "off")
    with pytest.raises(ConfigurationError, match="GRANT CREATE ON DATABASE"):
        clock.arrange(plain.url(developer), "shadow")


def test_the_shadow_lies_over_statements_and_not_over_column_defaults(plain: Database) -> None:
    plain.ask("CREATE TABLE t (made timestamptz DEFAULT now())")
    clock.arrange(plain.url(), "shadow")
    with plain.connect() as connection:
        connection.execute(core.SHADOW_SQL)
        connection.execute(f"SET sandbox.now = '{AT}'")
        for call in ("now()", "transaction_timestamp()"):
            assert connection.execute(f"SELECT {call}").fetchone() == (LONG_AGO,)
        ((made,),) = connection.execute("INSERT INTO t DEFAULT VALUES RETURNING made").fetchall()
        assert made > LONG_AGO + dt.timedelta(days=1)


def test_others_of_the_database_do_not_see_the_shadow(plain: Database) -> None:
    clock.arrange(plain.url(), "shadow")
    with plain.connect() as connection:
        connection.execute(f"SET sandbox.now = '{AT}'")
        assert connection.execute("SELECT now() = CURRENT_TIMESTAMP").fetchone() == (True,)


PATHS = {
    '"$user", public': '"$user", public, sandbox_clock, pg_catalog',
    "app, public": "app, public, sandbox_clock, pg_catalog",
    "public, pg_catalog": "public, sandbox_clock, pg_catalog",
    'public, "pg_catalog", app': 'public, sandbox_clock, "pg_catalog", app',
    "pg_catalog, public": "pg_catalog, public",
    "missing": "missing",
    "": "",
    '"my pg_catalog", public': '"my pg_catalog", public, sandbox_clock, pg_catalog',
}


@pytest.mark.parametrize("path", PATHS)
def test_tables_are_made_where_they_were_before(plain: Database, path: str) -> None:
    clock.arrange(plain.url(), "shadow")
    plain.ask("CREATE SCHEMA app", 'CREATE SCHEMA "my pg_catalog"')
    with plain.connect() as connection:
        connection.execute("SELECT set_config('search_path', %s, false)", [path])
        home = connection.execute("SELECT current_schema()").fetchone()
        for _ in range(2):
            connection.execute(core.SHADOW_SQL)
            ((found,),) = connection.execute("SHOW search_path").fetchall()
            assert found.replace(" ", "") == PATHS[path].replace(" ", "")
        assert connection.execute("SELECT current_schema()").fetchone() == home


def test_without_a_shadow_no_path_is_touched(plain: Database) -> None:
    ((path,),) = plain.ask(core.SHADOW_SQL, "SHOW search_path")
    assert "sandbox_clock" not in path


def test_sqlite_has_nothing_to_replace(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/app.db"
    clock.arrange(url, "auto")
    clock.arrange(url, "off")
    for choice in ("replace", "shadow"):
        with pytest.raises(ConfigurationError, match="only PostgreSQL"):
            clock.arrange(url, choice)

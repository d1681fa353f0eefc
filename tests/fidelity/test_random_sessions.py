"""Random programs of one session, in production and in a sandbox: statement by statement the same.

What a COMMIT does beyond keeping rows is a state with many parts (settings and whether they are
local, pending constraints, temporary tables, cursors, savepoints, a failure), which no list of
cases covers in all its combinations.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

import sandbox
from sandbox.databases.backends import EmbeddedPostgres
from tests.fidelity.cases.words import SCHEMA, TABLES
from tests.fix_db import metadata

ROLE = "reader_of_sessions"

SAVEPOINTS = (
    "SAVEPOINT one",
    "RELEASE SAVEPOINT one",
    "ROLLBACK TO SAVEPOINT one",
)
SETTINGS = (
    "SET LOCAL app.tenant = 'local'",
    "SET app.tenant = 'session'",
    "RESET app.tenant",
    "SELECT set_config('app.tenant', 'called local', true)",
    "SELECT set_config('app.tenant', 'called', false)",
    "SELECT coalesce(current_setting('app.tenant', true), '')",
    "SET LOCAL TIME ZONE 'Asia/Tokyo'",
    "SHOW TimeZone",
    f"SET ROLE {ROLE}",
    f"SET LOCAL ROLE {ROLE}",
    "SELECT current_user",
    "SET TRANSACTION READ ONLY",
    "SHOW transaction_read_only",
)
CONSTRAINTS = (
    "INSERT INTO watched VALUES ('w')",
    "SELECT note FROM audit ORDER BY note",
    "INSERT INTO parents VALUES (1)",
    "INSERT INTO children VALUES (1, 1)",
    "SELECT count(*) FROM children",
    "INSERT INTO pets VALUES (1, 1)",
    "INSERT INTO late VALUES (1)",
    "SET CONSTRAINTS ALL DEFERRED",
    "SET CONSTRAINTS ALL IMMEDIATE",
)
OBJECTS = (
    "CREATE TEMP TABLE heap (x integer) ON COMMIT DROP",
    "CREATE TEMP TABLE heap (x integer) ON COMMIT DELETE ROWS",
    "INSERT INTO heap VALUES (1)",
    "SELECT x FROM heap",
    "DECLARE reader CURSOR FOR SELECT generate_series(1, 9)",
    "DECLARE reader CURSOR WITH HOLD FOR SELECT generate_series(1, 9)",
    "FETCH reader",
    "CLOSE reader",
)
OTHERS = ("SELECT * FROM nowhere", "INSERT INTO audit VALUES ('a')")
ENDS = ("commit", "commit", "rollback")


THEMES = (
    (OBJECTS,),
    (SETTINGS,),
    (CONSTRAINTS,),
    (SETTINGS, OBJECTS, OTHERS, SAVEPOINTS),
    (SETTINGS, CONSTRAINTS, OTHERS, SAVEPOINTS),
    (OBJECTS, CONSTRAINTS, OTHERS, SAVEPOINTS),
)
"""A program stays with one subject, so that what its statements do has to do with each other."""


def program_of(seed: int) -> list[str]:
    rng = random.Random(seed)
    steps = [step for group in (*rng.choice(THEMES), ENDS, ENDS) for step in group]
    return rng.choices(steps, k=25)


@pytest.fixture(scope="module")
def url(server: EmbeddedPostgres) -> Iterator[str]:
    name = "test_random_sessions"
    server.create_database(name)
    url = server.url(name, "postgresql+psycopg")
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        metadata.create_all(connection)
        connection.exec_driver_sql(SCHEMA)
        connection.exec_driver_sql(f"CREATE ROLE {ROLE}")
        connection.exec_driver_sql(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {ROLE}")
    engine.dispose()
    yield url
    server.drop_database(name)
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(f"DROP ROLE {ROLE}")


def run(engine: sa.Engine, program: list[str]) -> list[Any]:
    """What each step gives: its rows, or the server's error."""
    raw = engine.raw_connection()
    with contextlib.closing(raw), contextlib.closing(raw.cursor()) as cursor:
        return [step_of(raw, cursor, step) for step in program]


def step_of(raw: Any, cursor: Any, step: str) -> Any:
    try:
        if step in {"commit", "rollback"}:
            getattr(raw, step)()
            return "done"
        cursor.execute(step)
        return cursor.fetchall() if cursor.description else "done"
    except psycopg.Error as error:
        if step == "commit":
            raw.rollback()
        return error.sqlstate


def differing(url: str, program: list[str]) -> list[tuple[str, Any, Any]]:
    """The steps of a program, what they gave in production and what in a sandbox, if it differs."""
    production = sa.create_engine(url, poolclass=sa.NullPool)
    expected = run(production, program)
    with production.begin() as connection:
        connection.exec_driver_sql(f"TRUNCATE {TABLES}")

    engine = sa.create_engine(url)
    try:
        with sandbox.sandboxed(engine):
            seen = run(engine, program)
    finally:
        engine.dispose()
        sandbox.stop()
    if seen == expected:
        return []
    return list(zip(program, expected, seen, strict=True))


def shrunk(url: str, program: list[str]) -> list[tuple[str, Any, Any]]:
    """The same difference with as few steps as it takes."""
    position = 0
    while position < len(program):
        shorter = program[:position] + program[position + 1 :]
        if differing(url, shorter):
            program = shorter
        else:
            position += 1
    return differing(url, program)


@pytest.mark.parametrize("batch", range(4))
def test_each_statement_gives_what_it_gives_in_production(url: str, batch: int) -> None:
    for seed in range(batch * 40, batch * 40 + 40):
        if differing(url, program_of(seed)):
            assert shrunk(url, program_of(seed)) == [], f"seed {seed}"

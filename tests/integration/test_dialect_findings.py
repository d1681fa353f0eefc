"""What SQLAlchemy's dialect suite found out when it ran sandboxed (tests/dialects)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event

import sandbox
from tests.fix_db import App


def test_a_table_that_comes_again_with_other_columns_is_read_anew(pg_app: App) -> None:
    """Drivers keep prepared statements; a rollback over DDL must end those of psycopg."""
    engine = pg_app.make_engine()

    def read(column: Any, value: Any) -> None:
        again = sa.Table("again", sa.MetaData(), sa.Column("value", column))
        with engine.connect() as connection:
            again.create(connection)
            connection.execute(again.insert(), {"value": value})
            for _ in range(7):  # psycopg prepares what it has executed five times
                assert connection.scalar(sa.select(again.c.value)) == value
            connection.rollback()

    def case() -> None:
        read(sa.Integer, 1)
        read(sa.String, "one")

    sandboxed = sandbox.checkout(engine, shared=True)
    try:
        pg_app.run(case)
    finally:
        sandbox.checkin(sandboxed)


def test_prepared_statements_are_kept_where_nothing_was_rolled_back(make_app: Any) -> None:
    engine = make_app("psycopg").make_engine()
    with sandbox.sandboxed(engine):
        for _ in range(8):
            with engine.connect() as connection:
                connection.execute(sa.text("SELECT name FROM items"))
                connection.rollback()
        with engine.connect() as connection:
            names = connection.scalars(sa.text("SELECT name FROM pg_prepared_statements")).all()
    assert len(names) == 1


def test_listeners_of_modules_that_are_called_like_sqlalchemys_are_run(pg_app: App) -> None:
    """Only those that create_engine() itself adds are known to do the same for every engine."""
    first, second = pg_app.make_engine(), pg_app.make_engine()
    prepared: list[Any] = []

    def on_connect(connection: Any, record: Any) -> None:
        prepared.append(connection)

    on_connect.__module__ = "sqlalchemy.testing.suite.test_dialect"
    event.listen(second, "connect", on_connect)

    def case() -> None:
        with first.connect() as connection:
            connection.scalar(sa.select(1))
        prepared.clear()
        with second.connect() as connection:
            connection.scalar(sa.select(1))

    sandboxed = sandbox.checkout(first, shared=True)
    try:
        pg_app.run(case)
    finally:
        sandbox.checkin(sandboxed)
    assert len(prepared) >= 1


def _marked(text: str | bytes) -> dict[str, Any]:
    return {"decoded by": "the engine's own", **json.loads(text)}


@pytest.mark.parametrize("driver", ["psycopg", "psycopg_async", "psycopg2", "pysqlite"])
def test_engines_that_decode_json_differently_see_each_others_rows(
    make_app: Callable[[str], App], driver: str
) -> None:
    app = make_app(driver)
    plain = app.make_engine()
    custom = app.make_engine(json_serializer=json.dumps, json_deserializer=_marked)
    documents = sa.Table("documents", sa.MetaData(), sa.Column("document", sa.JSON))

    def read(engine: sa.Engine) -> Any:
        with engine.connect() as connection:
            return connection.scalar(sa.select(documents.c.document))

    def case(first: sa.Engine, second: sa.Engine) -> None:
        with first.begin() as connection:
            documents.create(connection)
            connection.execute(documents.insert(), {"document": {"a": 1}})
        assert read(second)["a"] == 1
        for _ in range(2):
            assert read(custom) == {"decoded by": "the engine's own", "a": 1}
            assert read(plain) == {"a": 1}

    for first, second in ((plain, custom), (custom, plain)):
        sandboxed = sandbox.checkout(plain, shared=True)
        try:
            app.run(case, first, second)
        finally:
            sandbox.checkin(sandboxed)


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_json_functions_are_the_engines_own_also_without_a_sandbox(
    make_app: Callable[[str], App], driver: str
) -> None:
    app = make_app(driver)
    plain = app.make_engine()
    custom = app.make_engine(json_deserializer=_marked)
    sandbox.start()
    sandbox.mode(plain, "auto")
    document = sa.cast(sa.literal('{"a": 1}', sa.String), sa.JSON)
    for engine, expected in ((custom, 2), (plain, 1), (custom, 2), (plain, 1)):
        with engine.connect() as connection:
            assert len(connection.execute(sa.select(document)).scalar_one()) == expected

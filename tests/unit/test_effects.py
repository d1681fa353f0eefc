"""What a text starts that only a COMMIT ends."""

from __future__ import annotations

from typing import Any

import pytest

from sandbox.core.effects import (
    AdvisoryLock,
    Close,
    Constraints,
    Cursor,
    Effect,
    Listen,
    Notify,
    Parameter,
    ReadsClock,
    Setting,
    ShowsIsolation,
    TemporaryTable,
    Unlisten,
    resolved,
)
from sandbox.core.statements import Kind, classify

CASES: list[tuple[str, Effect]] = [
    ("SET LOCAL app.tenant = 'x'", Setting("app.tenant", True, "x")),
    ("set local App.Tenant to 'it''s'", Setting("app.tenant", True, "it's")),
    ('SET search_path = "$user", public', Setting("search_path", False, '"$user", public')),
    ("SET SESSION statement_timeout = 500", Setting("statement_timeout", False, "500")),
    ("SET work_mem = DEFAULT", Setting("work_mem", False, None)),
    ("SET x.y = 'a', 'b'", Setting("x.y", False, None)),
    ("SET LOCAL TIME ZONE 'UTC'", Setting("timezone", True, None)),
    ("SET LOCAL ROLE bob", Setting("role", True, None)),
    ("/* a */ RESET work_mem -- b", Setting("work_mem", False, None)),
    ("RESET ALL", Setting(None, False, everything=True)),
    ("SELECT set_config('a.b', 'c', true)", Setting("a.b", "true", "c")),
    ("SELECT pg_catalog.set_config('A.b', $1, $2)", Setting("a.b", Parameter(1), Parameter(0))),
    ("SELECT 1, set_config(%s, %s, %s)", Setting(Parameter(0), Parameter(2), Parameter(1))),
    (
        "SELECT set_config(%(n)s::VARCHAR, %(v)s::VARCHAR, %(l)s)",
        Setting(Parameter("n"), Parameter("l"), Parameter("v")),
    ),
    ("SELECT set_config(name, value, true) FROM wanted", Setting(None, "true", None)),
    ("SET CONSTRAINTS ALL DEFERRED", Constraints("SET CONSTRAINTS ALL DEFERRED")),
    (
        'CREATE TEMP TABLE "T" (id integer) ON COMMIT DROP',
        TemporaryTable('"T"', drop=True),
    ),
    (
        "CREATE LOCAL TEMPORARY TABLE IF NOT EXISTS pg_temp.t\n(id integer)\nON COMMIT DELETE ROWS",
        TemporaryTable("t", drop=False),
    ),
    ("DECLARE c CURSOR FOR SELECT 1", Cursor("c")),
    ('DECLARE "C" SCROLL CURSOR WITHOUT HOLD FOR SELECT 1', Cursor("C")),
    ("CLOSE c", Close("c")),
    ("CLOSE ALL", Close(None)),
    ("SELECT pg_advisory_xact_lock(1)", AdvisoryLock(session=False)),
    ("SELECT pg_try_advisory_lock_shared(1, 2)", AdvisoryLock(session=True)),
    ("NOTIFY Orders", Notify("orders", "")),
    ("NOTIFY \"Orders\", 'it''s'", Notify("Orders", "it's")),
    ("NOTIFY orders, E'a\\nb'", Notify("orders", "a\nb")),
    ("SELECT pg_notify('orders', $1)", Notify("orders", Parameter(0))),
    ("SELECT pg_notify('orders', upper('pen'))", Notify("orders", None)),
    ("LISTEN Orders", Listen("orders")),
    ("UNLISTEN *", Unlisten(None)),
    ("UNLISTEN orders", Unlisten("orders")),
    ("INSERT INTO t VALUES (CURRENT_TIMESTAMP)", ReadsClock()),
    ("SHOW transaction_isolation", ShowsIsolation()),
    ("show transaction isolation level", ShowsIsolation()),
]


@pytest.mark.parametrize(("sql", "effect"), CASES)
def test_an_effect_is_found_in_its_text(sql: str, effect: Effect) -> None:
    assert classify(sql).effects == (effect,)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 'SET LOCAL x = 1'",
        "SELECT * FROM t WHERE name = 'pg_notify(a, b)'",
        "UPDATE t SET x = 1",
        "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
        "CREATE TEMP TABLE t (id integer) ON COMMIT PRESERVE ROWS",
        "SET TRANSACTION READ ONLY",
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        "SELECT t.current_date, :localtime FROM t",
        "SELECT pg_advisory_unlock(1)",
        "SHOW search_path",
    ],
)
def test_what_looks_like_one_is_none(sql: str) -> None:
    assert classify(sql).effects == ()


def test_of_several_statements_all_are_found_in_order() -> None:
    found = classify("NOTIFY a; INSERT INTO t VALUES (1); SELECT pg_notify('b', 'c'); LISTEN d")
    assert found.effects == (Notify("a", ""), Notify("b", "c"), Listen("d"))
    assert found.kind is Kind.WRITE


@pytest.mark.parametrize(
    ("effect", "parameters", "result"),
    [
        (Setting(Parameter(0), Parameter(1)), ["App.X", False], Setting("app.x", False)),
        (Setting("a", Parameter("l")), {"l": True}, Setting("a", True)),
        (Setting("a", None), None, Setting("a", True)),
        (Setting(Parameter("n"), "false"), {}, Setting(None, False)),
        (Notify("a", Parameter(0)), ("x",), Notify("a", "x")),
        (Notify("a", Parameter(0)), (None,), Notify("a", "")),
        (Notify("a", None), (), Notify("a", None)),
        (Cursor("c"), None, Cursor("c")),
    ],
)
def test_bound_values_are_filled_in(effect: Effect, parameters: Any, result: Effect) -> None:
    assert resolved(effect, parameters) == result


def test_a_setting_is_no_write_and_a_lock_only_reads() -> None:
    assert classify("SET LOCAL a.b = 'c'").kind is Kind.SETTING
    assert classify("SELECT pg_advisory_xact_lock(1)").kind is Kind.READ
    assert classify("SELECT set_config('a.b', 'c', true)").kind is Kind.READ


@pytest.mark.parametrize(
    ("sql", "timed"),
    [
        ("SELECT 1", False),
        ("SELECT now()", True),
        ("SELECT transaction_timestamp()", True),
        ("INSERT INTO t VALUES (1)", True),
        ("SELECT 1; SELECT now()", True),
    ],
)
def test_what_may_look_at_the_clock(sql: str, timed: bool) -> None:
    assert classify(sql).timed is timed

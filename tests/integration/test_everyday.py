"""Everyday code of an application that knows nothing of tests, in production and in a sandbox.

The application of :mod:`tests.fidelity.shop` runs with real commits first. What it saw there it
must see in a sandbox, or be refused by an error that says what to do; and nobody else sees
anything of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

import sandbox
from sandbox import errors
from sandbox.adapters.sqlalchemy.pool import is_adopted
from sandbox.databases.backends import EmbeddedPostgres
from sandbox.databases.clock import REPLACE_SQL
from tests.fidelity.page import compare_table

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "fidelity.md"
SHOP = Path(__file__).parents[1] / "fidelity" / "shop.py"

BEHAVIOURS = {
    "session_commit": "`Session`: add, commit",
    "sessionmaker_begin": "`sessionmaker.begin()`",
    "engine_begin": "`engine.begin()`",
    "connect_and_commit": "`engine.connect()`, `commit()`",
    "raw_connection_and_commit": "`engine.raw_connection()`, `commit()`",
    "autocommit_connection": "AUTOCOMMIT connection",
    "autocommit_engine": "AUTOCOMMIT engine",
    "commit_then_flush_then_rollback": "commit, flush, rollback keeps the commit",
    "integrity_error_rollback_go_on": "`IntegrityError`, rollback, go on",
    "one_thread": "commit in a thread",
    "four_threads": "four threads, ten commits each",
    "a_thread_while_a_session_is_open": "a thread commits while a session has flushed",
    "interleaved_commits": "two sessions interleaved, both commit",
    "async_session_commit": "`AsyncSession` commit",
    "async_engine_begin": "`AsyncEngine.begin()`",
    "async_connect_and_commit": "`AsyncEngine.connect()`, `commit()`",
    "async_autocommit": "asynchronous AUTOCOMMIT connection",
    "async_raw_connection": "the asynchronous driver's own connection",
    "async_integrity_error_go_on": "`AsyncSession`: `IntegrityError`, rollback, go on",
    "gather": "`asyncio.gather` of four times ten commits",
    "gather_with_a_failure": "`asyncio.gather` with one that fails",
    "sync_session_in_to_thread": "a `Session` in `asyncio.to_thread`",
    "loops_of_its_own": "event loops of its own, `asyncio.run` thrice",
    "deferred_foreign_key": "a deferred foreign key fails at `commit()`",
    "async_deferred_foreign_key": "the same with an `AsyncSession`",
    "now_moves": "`now()` moves between transactions",
    "async_now_moves": "the same with an `AsyncSession`",
    "defaults_move": "a column's default `now()` moves",
    "after_commit_event": "`after_commit` and `after_rollback` listeners",
    "notify_reaches_a_listener": "`NOTIFY` reaches a listener",
    "async_notify_reaches_a_listener": "`NOTIFY` reaches an asynchronous listener",
    "serializable_connection": "a `SERIALIZABLE` connection",
    "serializable_engine": "a `SERIALIZABLE` engine",
    "async_serializable": "a `SERIALIZABLE` asynchronous connection",
    "read_only_transaction": "a `READ ONLY` connection",
}

NOT_COVERED = {"the application's own `psycopg.connect()`": "not covered yet: a real connection"}

REFUSED = {
    "interleaved_rollback": (
        "two sessions interleaved, one rolls back over the other's commit",
        errors.InterleavedTransactionError,
        r"(?s)rollback of .*shop\.py.* has also undone what .*shop\.py.*(connections|isolation=)",
    ),
    "serializable_after_others": (
        "a `SERIALIZABLE` connection after other transactions",
        errors.UnsupportedInSandboxError,
        r"(?s)SERIALIZABLE.*isolation_level=",
    ),
}

DRIVERS = (("psycopg", "asyncpg"), ("psycopg2", "psycopg"))


@pytest.fixture(scope="module")
def url(server: EmbeddedPostgres) -> Iterator[str]:
    name = "test_everyday"
    server.create_database(name)
    url = server.url(name)
    # As in the databases that the sandbox makes itself.
    with psycopg.connect(url) as connection:
        connection.execute(REPLACE_SQL)
    yield url
    server.drop_database(name)


@pytest.fixture(params=DRIVERS, ids="+".join)
def shop(
    request: pytest.FixtureRequest, url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ModuleType]:
    """The application's module, as if its process had just begun."""
    for name, value in zip(("DRIVER", "ASYNC_DRIVER"), request.param, strict=True):
        monkeypatch.setenv(f"SHOP_{name}", value)
    monkeypatch.setenv("SHOP_URL", url)
    spec = importlib.util.spec_from_file_location("shop", SHOP)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "shop", module)
    spec.loader.exec_module(module)
    setup = sa.create_engine(module.URL.set(drivername="postgresql+psycopg"))
    module.Base.metadata.create_all(setup)
    setup.dispose()
    yield module
    asyncio.run(module.close())
    sandbox.stop()
    clean(url)


def run(shop: ModuleType, behaviour: str) -> Any:
    """What the application sees; an error that it lets through is what it sees too."""
    work = getattr(shop, behaviour)
    try:
        if inspect.iscoroutinefunction(work):
            return asyncio.run(_run_async(shop, work))
        return work()
    except sa.exc.DBAPIError as error:
        return type(error)


async def _run_async(shop: ModuleType, work: Any) -> Any:
    try:
        return await work()
    finally:
        # A connection of one event loop serves no other.
        await shop.async_engine.dispose()


def outside(url: str) -> list[tuple[str, int]]:
    """What somebody else sees in the database."""
    with contextlib.closing(psycopg.connect(url)) as connection:
        return [
            (table, connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # type: ignore[index]
            for table in ("customers", "orders")
        ]


def clean(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("TRUNCATE customers, orders")


EMPTY = [("customers", 0), ("orders", 0)]


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_the_application_sees_what_it_sees_in_production(
    shop: ModuleType, url: str, behaviour: str
) -> None:
    in_production = run(shop, behaviour)
    assert not is_adopted(shop.engine.pool)
    clean(url)

    with sandbox.sandboxed(shop.engine) as ours:
        sandbox.allow(ours, "worker*")
        in_a_sandbox = run(shop, behaviour)
        assert outside(url) == EMPTY

    assert in_a_sandbox == in_production
    assert outside(url) == EMPTY


@pytest.mark.parametrize("behaviour", REFUSED)
def test_what_cannot_be_as_in_production_is_refused_with_the_remedy(
    shop: ModuleType, url: str, behaviour: str
) -> None:
    run(shop, behaviour)
    assert outside(url) != EMPTY, "in production this works"
    clean(url)
    _, error, message = REFUSED[behaviour]

    with sandbox.sandboxed(shop.engine):
        with pytest.raises(error) as raised:
            run(shop, behaviour)
        assert outside(url) == EMPTY

    assert re.search(message, str(raised.value)), str(raised.value)
    assert outside(url) == EMPTY


def test_a_notification_to_another_process_is_not_sent_and_says_so(
    shop: ModuleType, url: str
) -> None:
    # It is said once for each channel.
    channel = f"elsewhere_{shop.DRIVER}"
    with psycopg.connect(url, autocommit=True) as listener:
        listener.execute(f"LISTEN {channel}")
        shop.notify_another_process()
        assert [n.payload for n in listener.notifies(timeout=5, stop_after=1)] == ["hello"]

        with sandbox.sandboxed(shop.engine):
            with pytest.warns(errors.UndeliveredNotificationWarning, match=f"NOTIFY {channel}"):
                shop.notify_another_process()
        assert list(listener.notifies(timeout=0)) == []


def test_every_behaviour_of_the_application_is_tried(shop: ModuleType) -> None:
    helpers = {"everybody", "async_everybody", "error_of", "threads", "add_some", "close"}
    functions = {
        name
        for name, value in vars(shop).items()
        if inspect.isfunction(value) and value.__module__ == "shop" and not name.startswith("_")
    }
    assert functions - helpers == {*BEHAVIOURS, *REFUSED, "notify_another_process"}


def test_the_page_names_every_behaviour() -> None:
    rows = [(title, "as production") for title in BEHAVIOURS.values()]
    for title, error, _ in REFUSED.values():
        name = error.__name__
        rows.append((title, f"refused: [`{name}`](../reference/errors.md#{name.lower()})"))
    warning = "undeliverednotificationwarning"
    page = "../reference/errors.md"
    rows.append(
        (
            "`NOTIFY` to another process",
            f"not sent, and [`UndeliveredNotificationWarning`]({page}#{warning})",
        )
    )
    rows += NOT_COVERED.items()
    lines = ["| the application | in a sandbox |", "| --- | --- |"]
    lines += [f"| {title} | {outcome} |" for title, outcome in rows]
    begin = "<!-- table everyday: made by tests/integration/test_everyday.py -->"
    compare_table(PAGE, begin, "<!-- end of everyday -->", "\n".join(lines))

"""Tests that stand in each other's way: given up in time, and the error names the other one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util.concurrency import greenlet_spawn

import sandbox
from sandbox.connection.blockers import application_name, opening_statement, timeout_setting
from tests.fix_db import POSTGRESQL, App, items

INSERT = sa.insert(items)
FOR_UPDATE = sa.select(items).where(items.c.name == "row").with_for_update()
OTHER = "tests/test_shop.py::test_that_blocks"
SOON = 0.05


class Blocker:
    """A second test at work in a thread of its own: does things to the database when told to."""

    def __init__(self, app: App, lock_timeout: float) -> None:
        self._app = app
        self._engine = app.make_engine()
        self._lock_timeout = lock_timeout
        self._jobs: list[tuple[Callable[[sa.Connection], Any], Future[Any]]] = []
        self._told = threading.Condition()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with (
            sandbox.run_as(sandbox.Owner(OTHER)),
            sandbox.sandboxed(self._target(), lock_timeout=self._lock_timeout),
        ):
            self._app.run(self._work)

    def _target(self) -> Any:
        return AsyncEngine(self._engine) if self._app.is_async else self._engine

    def _work(self) -> None:
        with self._engine.connect() as connection:
            while True:
                with self._told:
                    self._told.wait_for(lambda: self._jobs, 20)
                    job, future = self._jobs.pop(0)
                try:
                    future.set_result(job(connection))
                except StopIteration as end:
                    connection.rollback()
                    future.set_result(end)
                    return
                except BaseException as error:
                    connection.rollback()
                    future.set_exception(error)

    def starts(self, job: Callable[[sa.Connection], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        with self._told:
            self._jobs.append((job, future))
            self._told.notify()
        return future

    def does(self, statement: Any, *parameters: Any) -> None:
        self.starts(lambda connection: connection.execute(statement, *parameters)).result(20)

    def __enter__(self) -> Blocker:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        def end(connection: sa.Connection) -> None:
            raise StopIteration

        self.starts(end).result(20)
        self._thread.join(20)


@pytest.fixture(params=["psycopg", "psycopg2", "asyncpg"])
def shop(request: pytest.FixtureRequest, make_app: Callable[[str], App]) -> Iterator[App]:
    """A database with one row for real, and a connection from outside."""
    app = make_app(request.param)
    with psycopg.connect(app.outside_url) as connection:
        connection.execute("INSERT INTO items (name) VALUES ('row'), ('other')")
    yield app
    app.dispose()
    app.empty()


def failure(app: App, *statements: Any) -> str:
    """What is said of statements, the last of which fails, in a test of their own."""
    engine = app.make_engine()

    def case() -> str:
        with engine.connect() as connection:
            for statement in statements[:-1]:
                connection.execute(statement)
            with pytest.raises(sa.exc.DBAPIError) as caught:
                connection.execute(statements[-1])
            cause = caught.value.__cause__
            assert cause is caught.value.orig
            with pytest.raises(sa.exc.DBAPIError, match="aborted"):
                connection.execute(sa.text("SELECT 1"))
            connection.rollback()
            assert connection.scalar(sa.text("SELECT 1")) == 1
            return "\n".join(getattr(cause, "__notes__", []))

    with sandbox.sandboxed(AsyncEngine(engine) if app.is_async else engine, lock_timeout=SOON):
        return str(app.run(case))


def test_the_same_unique_key(shop: App) -> None:
    with Blocker(shop, 20) as blocker:
        blocker.does(INSERT, {"name": "new"})
        said = failure(shop, INSERT.values(name="new"))
    assert "waited too long for a key of items (unique index items_name_key)" in said
    assert f"\n  {OTHER}: RowExclusiveLock on items" in said
    assert "test_blocking.py" in said
    assert "(_work)" in said


def test_the_same_row(shop: App) -> None:
    with Blocker(shop, 20) as blocker:
        blocker.does(FOR_UPDATE)
        said = failure(shop, FOR_UPDATE)
    assert "waited too long for a row of items (locking)" in said
    assert f"\n  {OTHER}: RowShareLock on items" in said
    assert "its transaction (open) began at" in said


def test_a_row_that_the_other_has_locked_and_committed(shop: App) -> None:
    def locks(connection: sa.Connection) -> None:
        connection.execute(sa.update(items).where(items.c.name == "row").values(name="mine"))
        connection.commit()

    with Blocker(shop, 20) as blocker:
        blocker.starts(locks).result(20)
        said = failure(shop, sa.delete(items).where(items.c.name == "row"))
    assert "waited too long for a row of items (deleting)" in said
    assert f"\n  {OTHER}: RowExclusiveLock on items" in said
    assert "its transaction (committed; its locks last until check-in) began at" in said


@contextmanager
def another_test(app: App, label: str, *statements: Any) -> Iterator[None]:
    """A third one, which has done this in a transaction that is committed."""
    engine = app.make_engine()

    def do() -> None:
        with engine.begin() as connection:
            for statement in statements:
                connection.execute(statement)

    with (
        sandbox.run_as(sandbox.Owner(label)),
        sandbox.sandboxed(AsyncEngine(engine) if app.is_async else engine),
    ):
        app.run(do)
        with sandbox.run_as(sandbox.Owner("tests/asking")):
            yield


def test_of_several_who_have_written_only_who_has_the_row_is_named(shop: App) -> None:
    """A row says by whom it is locked."""
    with Blocker(shop, 20) as blocker:
        blocker.does(FOR_UPDATE)
        with another_test(shop, "tests/bystander", INSERT.values(name="bystander")):
            said = failure(shop, FOR_UPDATE)
    assert OTHER in said
    assert "bystander" not in said


def test_a_row_that_several_have_locked(shop: App) -> None:
    share = sa.select(items).where(items.c.name == "row").with_for_update(read=True)
    # What has only read lets go of its locks when it commits.
    writes = INSERT.values(name="second")
    with Blocker(shop, 20) as blocker:
        blocker.does(share)
        with (
            another_test(shop, "tests/second", share, writes),
            another_test(shop, "tests/bystander", INSERT.values(name="bystander")),
        ):
            said = failure(shop, sa.delete(items).where(items.c.name == "row"))
    assert "which one of these has" in said
    assert OTHER in said
    assert "tests/second" in said
    assert "bystander" not in said


def test_a_table_lock_names_nobody_whose_lock_is_no_obstacle(shop: App) -> None:
    with Blocker(shop, 20) as blocker:
        blocker.does(sa.text("LOCK TABLE items IN SHARE MODE"))
        reader = sa.select(items), sa.text("CREATE TEMPORARY TABLE of_the_reader ()")
        with another_test(shop, "tests/bystander", *reader):
            said = failure(shop, INSERT.values(name="new"))
    assert f"\n  {OTHER}: ShareLock on items" in said
    assert "bystander" not in said


def test_alter_table_against_a_reader(shop: App) -> None:
    with Blocker(shop, 20) as blocker:
        blocker.does(sa.select(items))
        said = failure(shop, sa.text("ALTER TABLE items ADD COLUMN price integer"))
    assert "waited too long for a lock on items" in said
    assert f"\n  {OTHER}: AccessShareLock on items" in said


def test_a_reader_against_alter_table(shop: App) -> None:
    with Blocker(shop, 20) as blocker:
        blocker.does(sa.text("ALTER TABLE items ADD COLUMN price integer"))
        said = failure(shop, sa.select(items))
    assert "waited too long for a lock on items" in said
    assert f"\n  {OTHER}: AccessExclusiveLock on items" in said


def test_an_advisory_lock(shop: App) -> None:
    lock = sa.text("SELECT pg_advisory_xact_lock(42)")
    with Blocker(shop, 20) as blocker:
        blocker.does(INSERT, {"name": "new"})
        blocker.does(lock)
        said = failure(shop, lock)
    assert "waited too long for an advisory lock" in said
    assert f"\n  {OTHER}: ExclusiveLock 42" in said


def test_who_does_not_wait_is_told_nothing(shop: App) -> None:
    """NOWAIT is the application's own way to ask; the answer costs nothing more."""
    with Blocker(shop, 20) as blocker:
        blocker.does(FOR_UPDATE)
        nowait = sa.select(items).where(items.c.name == "row").with_for_update(nowait=True)
        assert failure(shop, nowait) == ""


def test_a_deadlock_of_two(shop: App) -> None:
    """Both wait for each other; the server ends one of them, which is told about the other."""
    engine = shop.make_engine()
    own = sa.update(items).where(items.c.name == "row").values(name="row")
    others = sa.update(items).where(items.c.name == "other").values(name="other")
    waiting = sa.text(
        "SELECT count(*) FROM pg_locks WHERE NOT granted AND database IS NOT DISTINCT FROM NULL"
    )

    def case(blocker: Blocker) -> list[str]:
        with engine.connect() as connection:
            connection.execute(own)
            blocked = blocker.starts(lambda other: other.execute(own))
            with psycopg.connect(shop.outside_url, autocommit=True) as outside:
                while outside.execute(str(waiting)).fetchone() == (0,):
                    pass
            errors = []
            try:
                connection.execute(others)
            except sa.exc.DBAPIError as error:
                errors.append(error)
            connection.rollback()
        try:
            blocked.result(20)
        except sa.exc.DBAPIError as error:
            errors.append(error)
        return ["\n".join(getattr(error.orig, "__notes__", [])) for error in errors]

    target = AsyncEngine(engine) if shop.is_async else engine
    with Blocker(shop, 20) as blocker, sandbox.run_as(sandbox.Owner("tests/this_one")):
        blocker.does(others)
        with sandbox.sandboxed(target, lock_timeout=20):
            (said,) = shop.run(case, blocker)
    named = {OTHER, "tests/this_one"}
    assert any(said.startswith(f"sandbox: a deadlock with {name}.") for name in named)
    assert "this test waits for ShareLock on transaction" in said
    assert "this test was updating tuple of items" in said


def test_pytest_shows_the_note(shop: App) -> None:
    """It stands on the driver's error, which is the cause of SQLAlchemy's."""
    engine = shop.make_engine()

    def case() -> str:
        with engine.connect() as connection:
            try:
                connection.execute(FOR_UPDATE)
            except sa.exc.DBAPIError:
                return str(pytest.ExceptionInfo.from_current().getrepr(style="short"))
        return ""

    with Blocker(shop, 20) as blocker:
        blocker.does(FOR_UPDATE)
        target = AsyncEngine(engine) if shop.is_async else engine
        with sandbox.sandboxed(target, lock_timeout=SOON):
            shown = shop.run(case)
    assert "sandbox: the statement waited too long for a row of items" in shown
    assert OTHER in shown


def test_who_has_let_go_meanwhile_is_not_made_up() -> None:
    from sandbox.connection.blockers import explain

    class Refused(Exception):
        sqlstate = "55P03"

    said = explain(Refused(), lambda sql: [], "SELECT 1")
    assert said is not None
    assert "has let go of it" in said
    assert explain(ValueError(), lambda sql: [], "SELECT 1") is None


# -- what the outer transaction says of itself -----------------------------------------------------


@pytest.mark.parametrize("driver", POSTGRESQL)
def test_the_server_shows_the_tests_id(
    make_app: Callable[[str], App], driver: str, request: pytest.FixtureRequest
) -> None:
    app = make_app(driver)
    engine = app.make_engine()

    def case() -> list[str]:
        with engine.connect() as connection:
            return [
                str(connection.scalar(sa.text(f"SHOW {name}")))
                for name in ("application_name", "lock_timeout")
            ]

    target = AsyncEngine(engine) if app.is_async else engine
    with sandbox.sandboxed(target, lock_timeout=1.5):
        name, timeout = app.run(case)
    assert timeout == "1500ms"
    assert len(name) <= 63
    assert name.startswith("...")
    assert request.node.nodeid.endswith(name.removeprefix("..."))
    # For this transaction alone.
    with sandbox.sandboxed(target, lock_timeout=0):
        assert app.run(case)[1] == "0"


def test_a_lock_timeout_of_the_applications_own_stays(make_app: Callable[[str], App]) -> None:
    engine = make_app("psycopg").make_engine(connect_args={"options": "-c lock_timeout=777"})
    with sandbox.sandboxed(engine), engine.connect() as connection:
        assert connection.scalar(sa.text("SHOW lock_timeout")) == "777ms"


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("tests/test_a.py::test_b", "tests/test_a.py::test_b"),
        ("x" * 100 + "::test_the_end", "..." + "x" * 46 + "::test_the_end"),
        ("test_é[ß\n'\\]", "test_?[??'\\]"),
    ],
)
def test_any_label_is_a_name_that_the_server_gives_back(
    make_app: Callable[[str], App], label: str, name: str
) -> None:
    assert application_name(label) == name
    with psycopg.connect(make_app("psycopg").outside_url) as connection:
        connection.execute("SET LOCAL standard_conforming_strings = off")
        connection.execute(opening_statement(name))
        assert connection.execute("SHOW application_name").fetchone() == (name,)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.0001, "1ms"), (3, "3s"), (float("inf"), "2147483647ms"), (0, "0")]
)
def test_any_time_is_one_that_the_server_takes(
    make_app: Callable[[str], App], seconds: float, shown: str
) -> None:
    with psycopg.connect(make_app("psycopg").outside_url) as connection:
        connection.execute(f"SET lock_timeout = {timeout_setting(seconds)}")
        assert connection.execute("SHOW lock_timeout").fetchone() == (shown,)


def test_tasks_of_two_tests_on_one_loop(make_app: Callable[[str], App]) -> None:
    """The blocker is found in the same thread, too."""
    engine = AsyncEngine(make_app("asyncpg").make_engine())

    def insert(connection: sa.Connection) -> None:
        connection.execute(INSERT, {"name": "new"})

    async def main() -> str:
        with sandbox.run_as(sandbox.Owner(OTHER)):
            async with sandbox.sandboxed(engine):
                await greenlet_spawn(_begin, engine.sync_engine)
                with sandbox.run_as(sandbox.Owner("tests/second")):
                    async with sandbox.sandboxed(engine, lock_timeout=SOON):
                        async with engine.connect() as connection:
                            with pytest.raises(sa.exc.DBAPIError) as caught:
                                await connection.run_sync(insert)
        await engine.dispose()
        return "\n".join(getattr(caught.value.orig, "__notes__", []))

    said = asyncio.run(main())
    assert OTHER in said
    assert "(_begin)" in said


def _begin(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(INSERT, {"name": "new"})

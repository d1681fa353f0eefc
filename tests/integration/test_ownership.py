"""Threads, tasks and strangers: who reaches a sandbox, and what the others are told."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio.to_thread
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.util.concurrency import greenlet_spawn

import sandbox
from sandbox.errors import (
    AlreadyOwnerError,
    AlreadySharedError,
    NotFoundError,
    NotOwnerError,
    OwnerExitedError,
    OwnershipError,
    SandboxBusyError,
)
from tests.fix_db import App, items

SELECT = sa.select(items.c.name).order_by(items.c.id)


@pytest.fixture
def app(make_app: Callable[[str], App]) -> App:
    return make_app("psycopg")


@pytest.fixture
def engine(app: App) -> Iterator[sa.Engine]:
    """In manual mode: who owns nothing gets nothing."""
    engine = app.make_engine()
    sandbox.mode(engine, "manual")
    yield engine
    sandbox.mode(engine, "auto")


def add(engine: sa.Engine, name: str) -> None:
    with engine.begin() as connection:
        connection.execute(sa.insert(items).values(name=name))


def seen(engine: sa.Engine) -> list[str]:
    with engine.connect() as connection:
        return list(connection.scalars(SELECT))


def in_thread(job: Callable[..., Any], *args: Any, name: str | None = None) -> Any:
    """Run in a plain thread, which inherits nothing; return or raise what it did."""
    result: list[Any] = []
    error: list[BaseException] = []

    def run() -> None:
        try:
            result.append(job(*args))
        except BaseException as caught:
            error.append(caught)

    thread = threading.Thread(target=run, name=name)
    thread.start()
    thread.join(20)
    if error:
        raise error[0]
    return result[0]


def test_nobody_uses_the_database_before_the_checkout_or_after_the_checkin(
    engine: sa.Engine,
) -> None:
    with pytest.raises(OwnershipError):
        add(engine, "a")
    sandbox.checkout(engine)
    add(engine, "a")
    sandbox.checkin(engine)
    with pytest.raises(OwnershipError):
        add(engine, "a")


def test_without_a_mode_strangers_pass_only_while_nobody_is_sandboxed(app: App) -> None:
    engine = app.make_engine()
    with sandbox.sandboxed(engine):
        with pytest.raises(OwnershipError, match=r"sandbox\.mode\(target, \"auto\"\)"):
            in_thread(add, engine, "a")
    assert in_thread(seen, engine) == []
    sandbox.mode(engine, "auto")
    with sandbox.sandboxed(engine):
        add(engine, "a")
        assert in_thread(seen, engine) == []


def test_a_loop_started_before_the_checkout_is_a_stranger(
    make_app: Callable[[str], App],
) -> None:
    """An asyncio.Runner keeps the context that it was first run in."""
    app = make_app("asyncpg")
    engine = app.make_engine()
    with asyncio.Runner() as runner:
        runner.run(asyncio.sleep(0))
        with sandbox.sandboxed(engine):
            with pytest.raises(OwnershipError):
                runner.run(greenlet_spawn(add, engine, "a"))
            runner.run(greenlet_spawn(add, engine, "a"), context=contextvars.copy_context())
    assert app.names() == []


def test_the_refusal_says_who_asked_who_owns_and_what_to_do(engine: sa.Engine) -> None:
    with sandbox.sandboxed(engine) as ours:
        with pytest.raises(OwnershipError) as caught:
            in_thread(add, engine, "a", name="stranger")
    message = str(caught.value)
    assert "'stranger'" in message
    assert ours.label in message
    assert "'manual'" in message
    for remedy in ("sandbox.checkout(", "sandbox.allow(", "sandbox.run_as(", "shared=True"):
        assert remedy in message
    assert "docs/reference/errors.md#ownershiperror" in message


def test_a_plain_thread_is_refused_until_it_is_allowed(app: App, engine: sa.Engine) -> None:
    with sandbox.sandboxed(engine) as ours:
        with pytest.raises(OwnershipError):
            in_thread(add, engine, "a")
        thread = threading.Thread(target=add, args=(engine, "a"))
        sandbox.allow(ours, thread)
        thread.start()
        thread.join()
        assert seen(engine) == ["a"]
    assert app.names() == []


@pytest.mark.parametrize("by", ["pattern", "predicate"])
def test_threads_allowed_by_name_and_by_predicate(engine: sa.Engine, by: str) -> None:
    with sandbox.sandboxed(engine) as ours:
        if by == "pattern":
            sandbox.allow(ours, "jobs-*")
        else:
            sandbox.allow(ours, lambda: threading.current_thread().name.startswith("jobs-"))
        in_thread(add, engine, "a", name="jobs-1")
        with pytest.raises(OwnershipError):
            in_thread(add, engine, "b", name="others-1")
        assert seen(engine) == ["a"]


def test_an_allowed_thread_allows_others_and_all_end_with_the_owner(engine: sa.Engine) -> None:
    go, done = threading.Barrier(2, timeout=20), threading.Barrier(2, timeout=20)
    outcome: list[Any] = []

    def child() -> None:
        sandbox.allow(threading.current_thread(), "grandchild")
        in_thread(add, engine, "a", name="grandchild")
        go.wait()
        done.wait()
        try:
            add(engine, "b")
        except OwnershipError as error:
            outcome.append(error)

    thread = threading.Thread(target=child)
    sandbox.checkout(engine)
    sandbox.allow(sandbox.current_owner(), thread)
    thread.start()
    go.wait()
    assert seen(engine) == ["a"]
    sandbox.checkin(engine)
    done.wait()
    thread.join()
    assert len(outcome) == 1


def test_a_worker_thread_never_sees_the_next_owners_sandbox(engine: sa.Engine) -> None:
    with ThreadPoolExecutor(1) as pool:
        with sandbox.sandboxed(engine) as ours:
            sandbox.allow(ours, pool.submit(threading.current_thread).result())
            pool.submit(add, engine, "a").result()
        with sandbox.sandboxed(engine):
            with pytest.raises(OwnershipError):
                pool.submit(add, engine, "a").result()


def test_inherit_threads(engine: sa.Engine) -> None:
    sandbox.inherit_threads()
    try:
        with ThreadPoolExecutor(1) as pool:
            for _ in range(2):
                with sandbox.sandboxed(engine):
                    in_thread(add, engine, "a")
                    pool.submit(add, engine, "b").result()
                    assert seen(engine) == ["a", "b"]
            with pytest.raises(OwnershipError):
                pool.submit(add, engine, "c").result()
    finally:
        sandbox.inherit_threads(False)


def test_run_as(engine: sa.Engine) -> None:
    with sandbox.sandboxed(engine) as ours:

        def job() -> None:
            with sandbox.run_as(ours.owner):
                add(engine, "a")
            with pytest.raises(OwnershipError):
                add(engine, "b")

        in_thread(job)
        assert seen(engine) == ["a"]


def test_shared_with_every_thread(engine: sa.Engine) -> None:
    with sandbox.sandboxed(engine, shared=True):
        in_thread(add, engine, "a")
        assert seen(engine) == ["a"]
    with pytest.raises(OwnershipError):
        in_thread(add, engine, "a")


def test_a_second_sharer_is_refused_and_told_who_the_first_is(engine: sa.Engine) -> None:
    def second() -> None:
        with sandbox.run_as(sandbox.Owner("the second")):
            with pytest.raises(AlreadySharedError) as caught:
                sandbox.checkout(engine, shared=True)
            assert "the first" in str(caught.value)
            assert "the second" in str(caught.value)
            with pytest.raises(NotOwnerError, match="the first"):
                sandbox.checkin(engine)

    with sandbox.run_as(sandbox.Owner("the first")):
        with sandbox.sandboxed(engine, shared=True):
            in_thread(second)


def test_sharing_by_mode(engine: sa.Engine) -> None:
    with sandbox.sandboxed(engine) as ours:
        sandbox.mode(engine, sandbox.Shared(ours.owner))
        in_thread(add, engine, "a")
        sandbox.mode(engine, "manual")
        with pytest.raises(OwnershipError):
            in_thread(add, engine, "b")


def test_two_owners_at_once_do_not_see_each_other(app: App, engine: sa.Engine) -> None:
    ready, checked = threading.Barrier(2, timeout=20), threading.Barrier(2, timeout=20)

    def test(name: str) -> list[str]:
        with sandbox.sandboxed(engine):
            add(engine, name)
            ready.wait()
            names = seen(engine)
            checked.wait()
            return names

    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(test, ["a", "b"]))
    assert both == [["a"], ["b"]]
    assert app.names() == []


def test_checkout_twice(engine: sa.Engine) -> None:
    with sandbox.sandboxed(engine):
        with pytest.raises(AlreadyOwnerError, match="already checked out"):
            sandbox.checkout(engine)
        add(engine, "a")


def test_checkin_twice(engine: sa.Engine) -> None:
    ours = sandbox.checkout(engine)
    sandbox.checkin(engine)
    with pytest.raises(NotFoundError):
        sandbox.checkin(engine)
    with pytest.raises(NotFoundError):
        sandbox.checkin()
    with pytest.raises(NotFoundError):
        sandbox.checkin(ours)


def test_only_the_owner_checks_in(engine: sa.Engine) -> None:
    with sandbox.sandboxed(engine) as ours:
        sandbox.allow(ours, "helper")
        with pytest.raises(NotOwnerError, match="only the owner"):
            in_thread(sandbox.checkin, engine, name="helper")
        add(engine, "a")


def test_get_conn(engine: sa.Engine) -> None:
    assert sandbox.get_conn(engine) is None
    with sandbox.sandboxed(engine):
        connection = sandbox.get_conn(engine)
        cursor = connection.cursor()
        cursor.execute("INSERT INTO items (name) VALUES ('a')")
        connection.commit()
        connection.close()
        assert seen(engine) == ["a"]
        assert in_thread(sandbox.get_conn, engine) is None


def test_a_straggler_is_told_that_its_test_has_ended(make_app: Callable[[str], App]) -> None:
    app = make_app("psycopg")
    engine = app.make_engine()
    go = threading.Event()

    async def main() -> None:
        sandbox.checkout(engine)
        straggler = asyncio.create_task(asyncio.to_thread(late))
        await asyncio.to_thread(lambda: None)
        sandbox.checkin()
        go.set()
        with pytest.raises(OwnerExitedError, match="has ended"):
            await straggler

    def late() -> None:
        go.wait(20)
        add(engine, "a")

    asyncio.run(main())
    assert app.names() == []


def test_a_transaction_left_open_is_refused_after_the_checkin(app: App, engine: sa.Engine) -> None:
    session = Session(engine)
    with sandbox.sandboxed(engine):
        session.execute(sa.insert(items).values(name="a"))
    with pytest.raises(OwnerExitedError):
        session.execute(sa.insert(items).values(name="b"))
    session.rollback()
    session.close()
    assert app.names() == []


def test_a_session_left_in_a_transaction_that_only_read_goes_on_in_the_next_test(
    app: App, engine: sa.Engine
) -> None:
    session = Session(engine)
    for _ in range(2):
        with sandbox.sandboxed(engine):
            assert session.scalars(SELECT).all() == []
            add(engine, "a")
    with pytest.raises(OwnershipError):
        session.scalars(SELECT)
    session.close()
    assert app.names() == []


# -- asyncio -------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg_async", "aiosqlite"])
def test_tasks_inherit(make_app: Callable[[str], App], driver: str) -> None:
    app = make_app(driver)
    engine = AsyncEngine(app.make_engine())

    async def work(name: str) -> None:
        async with AsyncSession(engine) as session:
            await session.execute(sa.insert(items).values(name=name))
            await session.commit()

    async def main() -> None:
        sandbox.mode(engine, "manual")
        with pytest.raises(OwnershipError):
            await work("nobody")
        async with sandbox.sandboxed(engine):
            await asyncio.gather(*(work(f"{number}") for number in range(8)))
            async with asyncio.TaskGroup() as group:
                group.create_task(work("a"))
            async with AsyncSession(engine) as session:
                assert len((await session.scalars(SELECT)).all()) == 9
        assert sandbox.current_owner() is None
        sandbox.mode(engine, "auto")

    asyncio.run(main())
    assert app.names() == []


def test_worker_threads_of_asyncio_and_anyio_inherit(engine: sa.Engine) -> None:
    async def main() -> None:
        async with sandbox.sandboxed(engine):
            await asyncio.to_thread(add, engine, "a")
            await anyio.to_thread.run_sync(add, engine, "b")
            assert await asyncio.to_thread(seen, engine) == ["a", "b"]

    asyncio.run(main())


def test_a_task_from_outside_is_allowed(make_app: Callable[[str], App]) -> None:
    engine = AsyncEngine(make_app("asyncpg").make_engine())

    async def service(inbox: asyncio.Queue[str], outbox: asyncio.Queue[Any]) -> None:
        while True:
            name = await inbox.get()
            try:
                async with AsyncSession(engine) as session:
                    await session.execute(sa.insert(items).values(name=name))
                    await session.commit()
                await outbox.put(None)
            except Exception as error:
                await outbox.put(error)

    async def main() -> None:
        inbox: asyncio.Queue[str] = asyncio.Queue()
        outbox: asyncio.Queue[Any] = asyncio.Queue()
        sandbox.mode(engine, "manual")
        task = asyncio.create_task(service(inbox, outbox))
        async with sandbox.sandboxed(engine) as ours:
            await inbox.put("a")
            assert isinstance(await outbox.get(), OwnershipError)
            sandbox.allow(ours, task)
            await inbox.put("a")
            assert await outbox.get() is None
            sandbox.unallow(task)
            await inbox.put("b")
            assert isinstance(await outbox.get(), OwnershipError)
        task.cancel()
        sandbox.mode(engine, "auto")

    asyncio.run(main())


def test_a_loop_that_lasts_is_used_directly(make_app: Callable[[str], App]) -> None:
    """From the second test on a session's loop has a connection of its own: no hops."""
    engine = AsyncEngine(make_app("asyncpg").make_engine())

    async def home() -> Any:
        async with AsyncSession(engine) as session:
            await session.execute(sa.insert(items).values(name="a"))
            await session.commit()
            await session.execute(SELECT)
            connection: Any = (await session.connection()).sync_connection
            return connection.connection.dbapi_connection._target.real._connection._loop

    with asyncio.Runner() as runner:
        homes = []
        for _ in range(3):
            sandbox.checkout(engine)
            homes.append(runner.run(home(), context=contextvars.copy_context()))
            sandbox.checkin()
        assert homes[0] is not runner.get_loop()
        assert homes[1:] == [runner.get_loop()] * 2
        sandbox.stop()
        runner.run(engine.dispose())


# -- transactions of several at once -------------------------------------------------------------


def test_a_sibling_waits_for_one_that_has_written(engine: sa.Engine) -> None:
    """The thread's write waits until the main thread's transaction has ended, and both are kept."""
    begun = threading.Event()
    with sandbox.sandboxed(engine) as ours:
        sandbox.allow(ours, "sibling")
        with engine.connect() as connection:
            connection.execute(sa.insert(items).values(name="a"))

            def sibling() -> None:
                begun.set()
                add(engine, "b")

            thread = threading.Thread(target=sibling, name="sibling")
            thread.start()
            begun.wait()
            connection.commit()
            thread.join()
        assert seen(engine) == ["a", "b"]


def test_a_parent_that_joins_its_child_does_not_deadlock(engine: sa.Engine) -> None:
    """The sibling nests after a short wait: the parent may be waiting for it."""
    with sandbox.sandboxed(engine) as ours:
        sandbox.allow(ours, "sibling")
        with engine.connect() as connection:
            connection.execute(sa.insert(items).values(name="a"))
            in_thread(add, engine, "b", name="sibling")
            connection.commit()
        assert seen(engine) == ["a", "b"]
        assert ours.stats.waits > 0


def test_a_write_below_anothers_open_transaction_is_refused_in_the_end(
    engine: sa.Engine,
) -> None:
    with sandbox.sandboxed(engine, busy_after=0.05):
        outer, inner = engine.connect(), engine.connect()
        outer.execute(sa.insert(items).values(name="a"))
        inner.execute(sa.insert(items).values(name="b"))
        assert outer.scalars(SELECT).all() == ["a", "b"]
        with pytest.raises(SandboxBusyError, match="Commit or roll back the inner one first"):
            outer.execute(sa.insert(items).values(name="c"))
        inner.commit()
        outer.execute(sa.insert(items).values(name="c"))
        outer.commit()
        inner.close()
        outer.close()
        assert seen(engine) == ["a", "b", "c"]


def test_a_rollback_that_undoes_anothers_commit_is_not_silent(engine: sa.Engine) -> None:
    from sandbox.errors import InterleavedTransactionError

    with sandbox.sandboxed(engine):
        outer, inner = engine.connect(), engine.connect()
        outer.execute(sa.insert(items).values(name="a"))
        inner.execute(sa.insert(items).values(name="b"))
        inner.commit()
        outer.rollback()
        with pytest.raises(InterleavedTransactionError, match=r"test_ownership\.py"):
            inner.execute(SELECT)
        inner.rollback()
        inner.close()
        outer.close()


def test_a_failed_transaction_hinders_nobody_and_stays_failed(engine: sa.Engine) -> None:
    with sandbox.sandboxed(engine):
        failed, other = engine.connect(), engine.connect()
        with pytest.raises(sa.exc.ProgrammingError):
            failed.exec_driver_sql("SELECT * FROM nowhere")
        other.execute(sa.insert(items).values(name="a"))
        other.commit()
        with pytest.raises(sa.exc.DBAPIError, match="current transaction is aborted"):
            failed.execute(SELECT)
        failed.rollback()
        assert failed.scalars(SELECT).all() == ["a"]
        failed.close()
        other.close()


def test_healing_a_failure_that_undoes_anothers_commit_is_not_silent(engine: sa.Engine) -> None:
    from sandbox.errors import InterleavedTransactionError

    with sandbox.sandboxed(engine):
        failing, other = engine.connect(), engine.connect()
        failing.execute(sa.insert(items).values(name="a"))
        other.execute(sa.insert(items).values(name="b"))
        other.commit()
        with pytest.raises(sa.exc.ProgrammingError):
            failing.exec_driver_sql("SELECT * FROM nowhere")
        with pytest.raises(InterleavedTransactionError):
            other.execute(SELECT)
        other.rollback()
        failing.rollback()
        other.close()
        failing.close()


def test_a_savepoint_in_a_failed_transaction_is_refused_by_the_server(engine: sa.Engine) -> None:
    with sandbox.sandboxed(engine):
        failed, other = engine.connect(), engine.connect()
        failed.exec_driver_sql("SAVEPOINT here")
        with pytest.raises(sa.exc.ProgrammingError):
            failed.exec_driver_sql("SELECT * FROM nowhere")
        for _ in range(2):
            with pytest.raises(sa.exc.DBAPIError, match="current transaction is aborted"):
                failed.exec_driver_sql("SAVEPOINT there")
            # The second time its failure has been healed for the other.
            assert other.scalars(SELECT).all() == []
        failed.exec_driver_sql("ROLLBACK TO SAVEPOINT here")
        failed.execute(sa.insert(items).values(name="a"))
        failed.commit()
        assert other.scalars(SELECT).all() == ["a"]
        failed.close()
        other.close()


def test_the_commit_of_a_failed_transaction_undoes_nobodys_work(engine: sa.Engine) -> None:
    with sandbox.sandboxed(engine):
        failed, other = engine.raw_connection(), engine.connect()
        cursor = failed.cursor()
        cursor.execute("INSERT INTO items (name) VALUES ('lost')")
        with pytest.raises(Exception, match="nowhere"):
            cursor.execute("SELECT * FROM nowhere")
        other.execute(sa.insert(items).values(name="b"))
        failed.commit()
        other.commit()
        assert other.scalars(SELECT).all() == ["b"]
        other.commit()
        failed.close()
        other.close()

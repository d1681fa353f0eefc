"""The same for asyncio: asyncpg's callbacks, psycopg's asynchronous reader."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

import sandbox
from sandbox.connection import channels
from sandbox.errors import OwnerExitedError, UndeliveredNotificationWarning
from tests.fix_db import App

PATIENCE = 20.0
MOMENT = 0.3
"""How long it is listened for what must not come."""

# Some programs notify nobody, on purpose.
pytestmark = pytest.mark.filterwarnings(
    "ignore::sandbox.errors.UndeliveredNotificationWarning",
)


@pytest.fixture(autouse=True)
def nobody_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "_told", set())


async def notify(engine: AsyncEngine, *payloads: str, commit: bool = True) -> None:
    async with engine.connect() as connection:
        for payload in payloads:
            await connection.execute(sa.select(sa.func.pg_notify("orders", payload)))
        if commit:
            await connection.commit()


class Callbacks:
    """What asyncpg's listeners were called with."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[str] = asyncio.Queue()
        self.loop = asyncio.get_running_loop()

    def plain(self, connection: Any, pid: int, channel: str, payload: str) -> None:
        assert asyncio.get_running_loop() is self.loop
        assert (connection.is_closed(), pid > 0) == (False, True)
        self.heard.put_nowait(f"{channel}:{payload}")

    async def coroutine(self, connection: Any, pid: int, channel: str, payload: str) -> None:
        await asyncio.sleep(0)
        self.plain(connection, pid, channel, f"{payload}, awaited")

    async def get(self, many: int) -> list[str]:
        return [await asyncio.wait_for(self.heard.get(), PATIENCE) for _ in range(many)]

    async def nothing(self) -> bool:
        try:
            await asyncio.wait_for(self.heard.get(), MOMENT)
        except TimeoutError:
            return True
        return False


@contextlib.asynccontextmanager
async def native(engine: AsyncEngine, **options: Any) -> Any:
    """A connection of the pool, and the driver's own below it."""
    connection: AsyncConnection
    async with engine.connect() as connection:
        if options:
            connection = await connection.execution_options(**options)
        yield connection, (await connection.get_raw_connection()).driver_connection


async def callbacks_are_called(engine: AsyncEngine) -> Any:
    calls, log = Callbacks(), []
    async with native(engine) as (_, listener):
        await listener.add_listener("orders", calls.plain)
        await notify(engine, "never", commit=False)
        await notify(engine, "one", "two", "one")
        log.append(await calls.get(2))
        await listener.add_listener("orders", calls.coroutine)
        await listener.add_listener("orders", calls.coroutine)
        await notify(engine, "three")
        log.append(sorted(await calls.get(2)))
        await listener.remove_listener("orders", calls.plain)
        await notify(engine, "four")
        log.append(await calls.get(1))
        await listener.remove_listener("orders", calls.coroutine)
        await listener.remove_listener("orders", calls.coroutine)
        await notify(engine, "five")
        log.append([str(await calls.nothing())])
    return log


async def callbacks_wait_for_the_end_of_their_transaction(engine: AsyncEngine) -> Any:
    calls = Callbacks()
    async with native(engine) as (connection, listener):
        await listener.add_listener("orders", calls.plain)
        await connection.execute(sa.text("SELECT 1"))
        await notify(engine, "one")
        inside = await calls.nothing()
        await connection.rollback()
        heard = await calls.get(1)
        await listener.remove_listener("orders", calls.plain)
        return inside, heard


async def listen_in_a_transaction_of_asyncpg(engine: AsyncEngine) -> Any:
    calls = Callbacks()
    async with native(engine) as (connection, listener):
        await connection.execute(sa.text("SELECT 1"))
        await listener.add_listener("orders", calls.plain)
        await connection.commit()
        await notify(engine, "one")
        heard = await calls.get(1)
        await listener.remove_listener("orders", calls.plain)
        return heard


async def sent_through_asyncpg_itself(engine: AsyncEngine) -> Any:
    calls = Callbacks()
    async with native(engine) as (_, listener), native(engine) as (_, sender):
        await listener.add_listener("orders", calls.plain)
        await sender.execute("NOTIFY orders, 'execute'")
        await sender.execute("SELECT pg_notify($1, $2)", "orders", "with values")
        await sender.fetchval("SELECT pg_notify('orders', 'fetchval')")
        heard = await calls.get(3)
        await listener.remove_listener("orders", calls.plain)
        return heard


AUTOCOMMIT = {"isolation_level": "AUTOCOMMIT"}


async def a_reader_reads(engine: AsyncEngine) -> Any:
    async with native(engine, **AUTOCOMMIT) as (_, listener):
        await listener.set_autocommit(True)
        await listener.execute("LISTEN orders")
        await notify(engine, "never", commit=False)
        await notify(engine, "one", "two", "one")
        heard = [n.payload async for n in listener.notifies(timeout=PATIENCE, stop_after=2)]
        await listener.execute("UNLISTEN *")
        await notify(engine, "three")
        return heard, [n.payload async for n in listener.notifies(timeout=MOMENT)]


async def a_reader_waits_in_a_task(engine: AsyncEngine) -> Any:
    ready = asyncio.Event()

    async def listen() -> list[str]:
        async with native(engine, **AUTOCOMMIT) as (connection, listener):
            await connection.execute(sa.text("LISTEN orders"))
            ready.set()
            return [n.payload async for n in listener.notifies(timeout=PATIENCE, stop_after=1)]

    task = asyncio.create_task(listen())
    await asyncio.wait_for(ready.wait(), PATIENCE)
    await notify(engine, "one")
    return await task


async def handlers_are_called(engine: AsyncEngine) -> Any:
    heard: list[str] = []
    async with native(engine, **AUTOCOMMIT) as (connection, listener):
        listener.add_notify_handler(lambda each: heard.append(each.payload))
        await connection.execute(sa.text("LISTEN orders"))
        await connection.execute(sa.text("NOTIFY orders, 'mine'"))
        return heard


ASYNC_PROGRAMS = (
    ("asyncpg", callbacks_are_called),
    ("asyncpg", callbacks_wait_for_the_end_of_their_transaction),
    ("asyncpg", listen_in_a_transaction_of_asyncpg),
    ("asyncpg", sent_through_asyncpg_itself),
    ("psycopg_async", a_reader_reads),
    ("psycopg_async", a_reader_waits_in_a_task),
    ("psycopg_async", handlers_are_called),
)


@pytest.mark.parametrize(("driver", "program"), ASYNC_PROGRAMS)
async def test_it_sees_what_it_sees_on_a_plain_engine_of_asyncio(
    make_app: Callable[[str], App], driver: str, program: Callable[[AsyncEngine], Any]
) -> None:
    url = make_app(driver).url
    plain = create_async_engine(url)
    in_production = await program(plain)
    await plain.dispose()
    engine = create_async_engine(url)
    async with sandbox.sandboxed(engine):
        assert await program(engine) == in_production
    await engine.dispose()


@pytest.mark.parametrize(("driver", "program"), ASYNC_PROGRAMS[:1] + ASYNC_PROGRAMS[4:5])
async def test_outside_of_a_sandbox_they_are_the_real_ones_of_asyncio(
    make_app: Callable[[str], App], driver: str, program: Callable[[AsyncEngine], Any]
) -> None:
    """On an engine that was taken over, where nobody is sandboxed."""
    url = make_app(driver).url
    plain = create_async_engine(url)
    in_production = await program(plain)
    await plain.dispose()
    engine = create_async_engine(url)
    async with sandbox.sandboxed(engine), engine.connect() as connection:
        await connection.execute(sa.text("SELECT 1"))
    sandbox.mode(engine, "auto")
    with ThreadPoolExecutor(1) as pool:
        outside = await asyncio.get_running_loop().run_in_executor(
            pool, asyncio.run, program(engine)
        )
    assert outside == in_production
    await engine.dispose()


async def test_a_listener_outside_of_any_task_of_the_test_is_allowed_like_any_other(
    make_app: Callable[[str], App],
) -> None:
    """A thread with a loop of its own listens; the test commits on its own loop."""
    engine = create_async_engine(make_app("asyncpg").url)
    ready = threading.Event()

    async def listen() -> list[str]:
        calls = Callbacks()
        async with native(engine) as (_, listener):
            await listener.add_listener("orders", calls.plain)
            ready.set()
            heard = await calls.get(1)
            await listener.remove_listener("orders", calls.plain)
            return heard

    async with sandbox.sandboxed(engine) as ours:
        sandbox.allow(ours, "listener*")
        with ThreadPoolExecutor(1, "listener") as pool:
            heard = pool.submit(asyncio.run, listen())
            assert await asyncio.to_thread(ready.wait, PATIENCE)
            await notify(engine, "one")
            assert await asyncio.wrap_future(heard) == ["orders:one"]
    await engine.dispose()


async def test_nobody_listens_when_the_last_callback_is_removed(
    make_app: Callable[[str], App],
) -> None:
    engine = create_async_engine(make_app("asyncpg").url)
    calls = Callbacks()
    async with sandbox.sandboxed(engine), native(engine) as (_, listener):
        await listener.add_listener("orders", calls.plain)
        await notify(engine, "one")
        await listener.remove_listener("orders", calls.plain)
        with pytest.warns(UndeliveredNotificationWarning):
            await notify(engine, "two")
        assert await calls.get(1) == ["orders:one"]
    await engine.dispose()


async def test_the_check_in_ends_an_asynchronous_reader(make_app: Callable[[str], App]) -> None:
    engine = create_async_engine(make_app("psycopg_async").url)
    ready = asyncio.Event()

    async def listen() -> None:
        async with native(engine, **AUTOCOMMIT) as (connection, listener):
            await connection.execute(sa.text("LISTEN orders"))
            ready.set()
            async for _ in listener.notifies():
                pass

    async with sandbox.sandboxed(engine):
        task = asyncio.create_task(listen())
        await asyncio.wait_for(ready.wait(), PATIENCE)
        await notify(engine)
    with pytest.raises(OwnerExitedError):
        await asyncio.wait_for(task, PATIENCE)
    await engine.dispose()


async def test_drivers_of_one_sandbox_hear_each_other(make_app: Callable[[str], App]) -> None:
    """The test commits with one driver, and its background task listens with another."""
    app = make_app("asyncpg")
    engine = create_async_engine(app.url)
    sync = sa.create_engine(app.url.replace("+asyncpg", "+psycopg"))
    calls = Callbacks()
    async with sandbox.sandboxed(engine), native(engine) as (_, listener):
        await listener.add_listener("orders", calls.plain)

        def send() -> None:
            with sync.begin() as connection:
                connection.execute(sa.text("NOTIFY orders, 'from a thread'"))

        await asyncio.to_thread(send)
        assert await calls.get(1) == ["orders:from a thread"]
        await listener.remove_listener("orders", calls.plain)
    await engine.dispose()
    sync.dispose()

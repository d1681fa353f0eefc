"""An application that knows nothing of tests: engines and session makers of its module, and code.

Loaded anew for each use, from its file, as a process of its own would load it; where its database
is and which drivers it has stand in the environment. Each function does something that
applications do every day, and returns what it saw.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import threading
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event, orm
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

URL = sa.make_url(os.environ["SHOP_URL"])
DRIVER = os.environ["SHOP_DRIVER"]
ASYNC_DRIVER = os.environ["SHOP_ASYNC_DRIVER"]
PATIENCE = 5.0

engine = sa.create_engine(URL.set(drivername=f"postgresql+{DRIVER}"))
Session = orm.sessionmaker(engine)
strict_engine = sa.create_engine(
    URL.set(drivername=f"postgresql+{DRIVER}"), isolation_level="SERIALIZABLE"
)
async_engine = create_async_engine(URL.set(drivername=f"postgresql+{ASYNC_DRIVER}"))
AsyncSession = async_sessionmaker(async_engine, expire_on_commit=False)


class Base(DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(50), unique=True)


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int] = mapped_column(
        sa.ForeignKey(
            "customers.id", name="orders_customer_fkey", deferrable=True, initially="DEFERRED"
        )
    )
    made: Mapped[Any] = mapped_column(sa.DateTime(timezone=True), server_default=sa.func.now())


async def close() -> None:
    """Close every connection, as at the end of the process."""
    engine.dispose()
    strict_engine.dispose()
    await async_engine.dispose()


INSERT = "INSERT INTO customers (name) VALUES ('{}')"
NAMES = sa.select(Customer.name).order_by(Customer.name)


def everybody() -> list[str]:
    with Session() as session:
        return list(session.scalars(NAMES))


async def async_everybody() -> list[str]:
    async with AsyncSession() as session:
        return list(await session.scalars(NAMES))


def error_of(error: sa.exc.DBAPIError) -> list[str]:
    code = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
    return [type(error).__name__, str(code)]


# -- sessions, connections, AUTOCOMMIT -------------------------------------------------------------


def session_commit() -> Any:
    with Session() as session:
        session.add(Customer(name="ann"))
        session.commit()
        inside = list(session.scalars(NAMES))
    return inside, everybody()


def sessionmaker_begin() -> Any:
    with Session.begin() as session:
        session.add(Customer(name="ann"))
    with contextlib.suppress(ZeroDivisionError), Session.begin() as session:
        session.add(Customer(name="bob"))
        session.flush()
        _ = 1 / 0
    return everybody()


def engine_begin() -> Any:
    with engine.begin() as connection:
        connection.execute(sa.insert(Customer).values(name="ann"))
    with contextlib.suppress(ZeroDivisionError), engine.begin() as connection:
        connection.execute(sa.insert(Customer).values(name="bob"))
        _ = 1 / 0
    return everybody()


def connect_and_commit() -> Any:
    with engine.connect() as connection:
        connection.execute(sa.insert(Customer).values(name="ann"))
        connection.commit()
        connection.execute(sa.insert(Customer).values(name="bob"))
        inside = list(connection.scalars(NAMES))
    return inside, everybody()


def raw_connection_and_commit() -> Any:
    raw = engine.raw_connection()
    with contextlib.closing(raw):
        cursor = raw.cursor()
        cursor.execute(INSERT.format("ann"))
        raw.commit()
        cursor.execute(INSERT.format("bob"))
        raw.rollback()
        cursor.execute("SELECT name FROM customers")
        return cursor.fetchall(), cursor.rowcount, everybody()


def autocommit_connection() -> Any:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.insert(Customer).values(name="ann"))
        failed = None
        try:
            connection.execute(sa.insert(Customer).values(name="ann"))
        except sa.exc.IntegrityError as error:
            failed = error_of(error)
        connection.execute(sa.insert(Customer).values(name="bob"))
        connection.rollback()
        level = connection.get_isolation_level()
    return failed, level, everybody()


def autocommit_engine() -> Any:
    automatic = engine.execution_options(isolation_level="AUTOCOMMIT")
    with automatic.connect() as connection:
        connection.execute(sa.insert(Customer).values(name="ann"))
    with orm.Session(automatic) as session:
        session.add(Customer(name="bob"))
        session.commit()
    return everybody()


# -- what comes after a commit ---------------------------------------------------------------------


def commit_then_flush_then_rollback() -> Any:
    with Session() as session:
        session.add(Customer(name="ann"))
        session.commit()
        session.add(Customer(name="bob"))
        session.flush()
        before = list(session.scalars(NAMES))
        session.rollback()
        return before, list(session.scalars(NAMES)), everybody()


def integrity_error_rollback_go_on() -> Any:
    with Session() as session:
        session.add(Customer(name="ann"))
        session.commit()
        session.add(Customer(name="ann"))
        failed = []
        try:
            session.commit()
        except sa.exc.IntegrityError as error:
            failed = error_of(error)
        session.rollback()
        session.add(Customer(name="bob"))
        session.commit()
    return failed, everybody()


def deferred_foreign_key() -> Any:
    with Session() as session:
        session.add(Customer(name="ann"))
        session.add(Order(customer_id=-1))
        session.flush()
        failed = ["nothing"]
        try:
            session.commit()
        except sa.exc.IntegrityError as error:
            failed = [*error_of(error), str("orders_customer_fkey" in str(error))]
        session.rollback()
        session.add(Customer(name="bob"))
        session.commit()
    return failed, everybody()


def now_moves() -> Any:
    with Session() as session:
        first = session.scalar(sa.select(sa.func.now()))
        again = session.scalar(sa.select(sa.func.now()))
        session.commit()
        second = session.scalar(sa.select(sa.func.now()))
    assert first is not None
    assert second is not None
    return first == again, second > first


def defaults_move() -> Any:
    with Session() as session:
        customer = Customer(name="ann")
        session.add(customer)
        session.commit()
        orders = [Order(customer_id=customer.id) for _ in range(2)]
        for order in orders:
            session.add(order)
            session.commit()
        return orders[0].made < orders[1].made


def after_commit_event() -> Any:
    log: list[str] = []
    with Session() as session:
        for name in ("before_commit", "after_commit", "after_rollback"):
            event.listen(session, name, lambda session, name=name: log.append(name))
        session.add(Customer(name="ann"))
        session.commit()
        session.add(Customer(name="bob"))
        session.flush()
        session.rollback()
    return log, everybody()


# -- several at once -------------------------------------------------------------------------------


def interleaved_commits() -> Any:
    with Session() as first, Session() as second:
        first.add(Customer(name="ann"))
        first.flush()
        second.add(Customer(name="bob"))
        second.commit()
        first.commit()
    return everybody()


def interleaved_rollback() -> Any:
    with Session() as first, Session() as second:
        first.add(Customer(name="ann"))
        first.flush()
        second.add(Customer(name="bob"))
        second.commit()
        first.rollback()
    return everybody()


def threads(jobs: list[Callable[[], None]]) -> None:
    errors: list[BaseException] = []

    def guarded(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            errors.append(error)

    started = [threading.Thread(target=guarded, args=(job,), name="worker") for job in jobs]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join(30)
    if errors:
        raise errors[0]


def add_some(who: str, count: int) -> None:
    for number in range(count):
        with Session() as session:
            session.add(Customer(name=f"{who} {number}"))
            session.commit()


def one_thread() -> Any:
    threads([lambda: add_some("ann", 1)])
    return everybody()


def four_threads() -> Any:
    threads([lambda who=who: add_some(who, 10) for who in "abcd"])  # type: ignore[misc]
    return everybody()


def a_thread_while_a_session_is_open() -> Any:
    with Session() as session:
        session.add(Customer(name="ann"))
        session.flush()
        threads([lambda: add_some("bob", 2)])
        session.commit()
    return everybody()


# -- asyncio ---------------------------------------------------------------------------------------


async def async_session_commit() -> Any:
    async with AsyncSession() as session:
        session.add(Customer(name="ann"))
        await session.commit()
        session.add(Customer(name="bob"))
        await session.flush()
        await session.rollback()
        inside = list(await session.scalars(NAMES))
    return inside, await async_everybody()


async def async_engine_begin() -> Any:
    async with async_engine.begin() as connection:
        await connection.execute(sa.insert(Customer).values(name="ann"))
    with contextlib.suppress(ZeroDivisionError):
        async with async_engine.begin() as connection:
            await connection.execute(sa.insert(Customer).values(name="bob"))
            _ = 1 / 0
    return await async_everybody()


async def async_connect_and_commit() -> Any:
    async with async_engine.connect() as connection:
        await connection.execute(sa.insert(Customer).values(name="ann"))
        await connection.commit()
        await connection.execute(sa.insert(Customer).values(name="bob"))
    return await async_everybody()


async def async_autocommit() -> Any:
    async with async_engine.connect() as connection:
        automatic = await connection.execution_options(isolation_level="AUTOCOMMIT")
        await automatic.execute(sa.insert(Customer).values(name="ann"))
        await automatic.rollback()
    return await async_everybody()


async def async_raw_connection() -> Any:
    """The driver's own connection: asyncpg commits each statement by itself, psycopg does not."""
    async with async_engine.connect() as connection:
        raw = await connection.get_raw_connection()
        driver: Any = raw.driver_connection
        await driver.execute(INSERT.format("ann"))
        if ASYNC_DRIVER != "asyncpg":
            await driver.commit()
            return await async_everybody()
        rows = await driver.fetch("SELECT name FROM customers")
    return [row["name"] for row in rows], await async_everybody()


async def async_integrity_error_go_on() -> Any:
    async with AsyncSession() as session:
        session.add(Customer(name="ann"))
        await session.commit()
        session.add(Customer(name="ann"))
        failed = []
        try:
            await session.commit()
        except sa.exc.IntegrityError as error:
            failed = error_of(error)
        await session.rollback()
        session.add(Customer(name="bob"))
        await session.commit()
    return failed, await async_everybody()


async def async_deferred_foreign_key() -> Any:
    async with AsyncSession() as session:
        session.add(Order(customer_id=-1))
        await session.flush()
        failed = ["nothing"]
        try:
            await session.commit()
        except sa.exc.IntegrityError as error:
            failed = error_of(error)
        await session.rollback()
    return failed, await async_everybody()


async def async_now_moves() -> Any:
    async with AsyncSession() as session:
        first: Any = await session.scalar(sa.select(sa.func.now()))
        await session.commit()
        second: Any = await session.scalar(sa.select(sa.func.now()))
    return second > first


async def gather() -> Any:
    async def work(who: str) -> None:
        for number in range(10):
            async with AsyncSession() as session:
                session.add(Customer(name=f"{who} {number}"))
                await session.commit()

    await asyncio.gather(*(work(who) for who in "abcd"))
    return await async_everybody()


async def gather_with_a_failure() -> Any:
    async def work(name: str) -> None:
        async with AsyncSession() as session:
            session.add(Customer(name=name))
            await session.commit()

    await work("ann")
    results = await asyncio.gather(
        *(work(name) for name in ("ann", "bob", "cid")), return_exceptions=True
    )
    return [type(result).__name__ for result in results], await async_everybody()


async def sync_session_in_to_thread() -> Any:
    await asyncio.to_thread(add_some, "ann", 3)
    return await asyncio.to_thread(everybody)


def loops_of_its_own() -> Any:
    async def add(name: str) -> None:
        async with AsyncSession() as session:
            session.add(Customer(name=name))
            await session.commit()
        # A connection of one loop serves no other.
        await async_engine.dispose()

    async def read() -> list[str]:
        found = await async_everybody()
        await async_engine.dispose()
        return found

    asyncio.run(add("ann"))
    asyncio.run(add("bob"))
    return asyncio.run(read())


# -- what needs more than one real connection ------------------------------------------------------


def notify_reaches_a_listener() -> Any:
    raw = engine.raw_connection()
    listener: Any = raw.driver_connection
    try:
        listener.autocommit = True
        listener.cursor().execute("LISTEN orders")
        with Session() as session:
            session.execute(sa.text("NOTIFY orders, 'rolled back'"))
            session.rollback()
            session.execute(sa.text("NOTIFY orders, 'one'"))
            session.execute(sa.select(sa.func.pg_notify("orders", "two")))
            session.commit()
        return _payloads(listener)
    finally:
        raw.invalidate()


def notify_another_process() -> Any:
    """Whoever listens there is no part of this application."""
    with Session() as session:
        session.execute(sa.text(f"NOTIFY elsewhere_{DRIVER}, 'hello'"))
        session.commit()
    return everybody()


def _payloads(listener: Any) -> list[str]:
    if DRIVER == "psycopg":
        found = listener.notifies(timeout=PATIENCE, stop_after=2)
        return [notification.payload for notification in found]
    while len(listener.notifies) < 2 and select.select([listener], [], [], PATIENCE)[0]:
        listener.poll()
    return [notification.payload for notification in listener.notifies]


async def async_notify_reaches_a_listener() -> Any:
    async with async_engine.connect() as connection:
        automatic = await connection.execution_options(isolation_level="AUTOCOMMIT")
        listener: Any = (await automatic.get_raw_connection()).driver_connection
        heard: asyncio.Queue[str] = asyncio.Queue()

        def note(_: Any, __: int, ___: str, payload: str) -> None:
            heard.put_nowait(payload)

        if ASYNC_DRIVER == "asyncpg":
            await listener.add_listener("orders", note)
        else:
            await listener.set_autocommit(True)
            await listener.execute("LISTEN orders")
        async with AsyncSession() as session:
            await session.execute(sa.text("NOTIFY orders, 'rolled back'"))
            await session.rollback()
            await session.execute(sa.text("NOTIFY orders, 'one'"))
            await session.execute(sa.select(sa.func.pg_notify("orders", "two")))
            await session.commit()
        if ASYNC_DRIVER == "asyncpg":
            found = [await asyncio.wait_for(heard.get(), PATIENCE) for _ in range(2)]
            await listener.remove_listener("orders", note)
            return found
        return [n.payload async for n in listener.notifies(timeout=PATIENCE, stop_after=2)]


def serializable_connection() -> Any:
    with engine.connect().execution_options(isolation_level="SERIALIZABLE") as connection:
        connection.execute(sa.insert(Customer).values(name="ann"))
        shown = connection.exec_driver_sql("SHOW transaction_isolation").scalar()
        level = connection.get_isolation_level()
        connection.commit()
    return shown, level, everybody()


def serializable_engine() -> Any:
    with orm.Session(strict_engine) as session:
        session.add(Customer(name="ann"))
        shown = session.execute(sa.text("SHOW transaction_isolation")).scalar()
        session.commit()
        return shown, list(session.scalars(NAMES))


def serializable_after_others() -> Any:
    add_some("ann", 1)
    return serializable_connection()


async def async_serializable() -> Any:
    async with async_engine.connect() as connection:
        strict = await connection.execution_options(isolation_level="SERIALIZABLE")
        await strict.execute(sa.insert(Customer).values(name="ann"))
        shown = (await strict.exec_driver_sql("SHOW transaction_isolation")).scalar()
        level = await strict.get_isolation_level()
        await strict.commit()
    return shown, level, await async_everybody()


def read_only_transaction() -> Any:
    with engine.connect().execution_options(postgresql_readonly=True) as connection:
        seen = list(connection.scalars(NAMES))
        failed = ["nothing"]
        try:
            connection.execute(sa.insert(Customer).values(name="ann"))
        except sa.exc.DBAPIError as error:
            failed = error_of(error)
        connection.rollback()
    add_some("bob", 1)
    return seen, failed, everybody()

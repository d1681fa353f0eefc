"""SQLAlchemy's events fire in a sandbox as they do in production: which, in what order, with what.

Each program runs twice on engines of the application's making, on a real database and in a
sandbox, with a listener on every event that tells of transactions. The two logs must be equal.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, registry, sessionmaker
from sqlalchemy.pool import Pool

import sandbox
from sandbox.errors import UnsupportedInSandboxError
from tests.fix_db import ASYNC, POSTGRESQL, App, items

DRIVERS = (*POSTGRESQL, "pysqlite", "aiosqlite")


class Item:
    name: str

    def __init__(self, name: str) -> None:
        self.name = name


registry().map_imperatively(Item, items)


@dataclass
class Log:
    """What happened, in order; ``on`` tells where the listener stands."""

    entries: list[tuple[Any, ...]] = field(default_factory=list)

    def note(self, name: str, *arguments: Any) -> None:
        self.entries.append((name, *arguments))


Listeners = list[tuple[Any, str, Any]]


def session_listeners(log: Log, target: Any) -> Listeners:
    def simple(name: str) -> Any:
        return lambda session: log.note(name, session.in_transaction(), len(session.new))

    found: Listeners = [
        (target, name, simple(name)) for name in ("before_commit", "after_commit", "after_rollback")
    ]

    def after_soft_rollback(session: Session, previous: Any) -> None:
        log.note("after_soft_rollback", previous.nested, previous.parent is None, session.is_active)

    def after_begin(session: Session, transaction: Any, connection: sa.Connection) -> None:
        log.note("after_begin", transaction.nested, connection.in_nested_transaction())

    def after_transaction_create(session: Session, transaction: Any) -> None:
        log.note("after_transaction_create", transaction.nested, transaction.parent is None)

    def after_transaction_end(session: Session, transaction: Any) -> None:
        log.note("after_transaction_end", transaction.nested, transaction.parent is None)

    def before_flush(session: Session, context: Any, instances: Any) -> None:
        log.note("before_flush", sorted(item.name for item in session.new))

    def after_flush(session: Session, context: Any) -> None:
        log.note("after_flush", sorted(item.name for item in session.new))

    def after_flush_postexec(session: Session, context: Any) -> None:
        log.note("after_flush_postexec", len(session.new))

    def state(name: str) -> Any:
        return lambda session, instance: log.note(name)

    found += [(target, fn.__name__, fn) for fn in (after_soft_rollback, after_begin)]
    found += [(target, fn.__name__, fn) for fn in (after_transaction_create, after_transaction_end)]
    found += [(target, fn.__name__, fn) for fn in (before_flush, after_flush, after_flush_postexec)]
    found += [
        (target, name, state(name))
        for name in (
            "transient_to_pending",
            "pending_to_persistent",
            "pending_to_transient",
            "persistent_to_transient",
            "persistent_to_detached",
        )
    ]
    return found


def core_listeners(log: Log, target: Any, where: str) -> Listeners:
    """Listeners on an engine, on the class or on one connection."""

    def begin(connection: sa.Connection) -> None:
        log.note(f"{where} begin", connection.in_transaction())

    def commit(connection: sa.Connection) -> None:
        log.note(f"{where} commit")

    def rollback(connection: sa.Connection) -> None:
        log.note(f"{where} rollback")

    def savepoint(connection: sa.Connection, name: str) -> None:
        log.note(f"{where} savepoint", name)

    def rollback_savepoint(connection: sa.Connection, name: str, context: Any) -> None:
        log.note(f"{where} rollback_savepoint", name)

    def release_savepoint(connection: sa.Connection, name: str, context: Any) -> None:
        log.note(f"{where} release_savepoint", name)

    def begin_twophase(connection: sa.Connection, xid: Any) -> None:
        log.note(f"{where} begin_twophase")

    def prepare_twophase(connection: sa.Connection, xid: Any) -> None:
        log.note(f"{where} prepare_twophase")

    def rollback_twophase(connection: sa.Connection, xid: Any, is_prepared: bool) -> None:
        log.note(f"{where} rollback_twophase", is_prepared)

    def before_cursor_execute(
        connection: sa.Connection, cursor: Any, text: str, *rest: Any
    ) -> None:
        log.note(f"{where} before_cursor_execute", text)

    def after_cursor_execute(connection: sa.Connection, cursor: Any, text: str, *rest: Any) -> None:
        log.note(f"{where} after_cursor_execute", cursor.rowcount)

    functions = [
        begin,
        commit,
        rollback,
        savepoint,
        rollback_savepoint,
        release_savepoint,
        begin_twophase,
        prepare_twophase,
        rollback_twophase,
        before_cursor_execute,
        after_cursor_execute,
    ]
    return [(target, fn.__name__, fn) for fn in functions]


def engine_listeners(log: Log, target: Any) -> Listeners:
    """What only an engine has: its errors, and how its connections are taken and set."""

    def engine_connect(connection: sa.Connection) -> None:
        log.note("engine_connect", connection.in_transaction())

    def set_connection_execution_options(connection: sa.Connection, options: Any) -> None:
        log.note("set_connection_execution_options", dict(options))

    def handle_error(context: Any) -> None:
        log.note(
            "handle_error",
            type(context.sqlalchemy_exception).__name__,
            context.statement,
            context.is_disconnect,
        )

    return [
        (target, fn.__name__, fn)
        for fn in (engine_connect, set_connection_execution_options, handle_error)
    ]


def pool_listeners(log: Log, target: Any, where: str) -> Listeners:
    def checkout(dbapi: Any, record: Any, proxy: Any) -> None:
        log.note(f"{where} checkout", dbapi is record.dbapi_connection, proxy.is_valid)

    def checkin(dbapi: Any, record: Any) -> None:
        log.note(f"{where} checkin", dbapi is None)

    def reset(dbapi: Any, record: Any, state: Any) -> None:
        log.note(
            f"{where} reset", state.transaction_was_reset, state.terminate_only, state.asyncio_safe
        )

    def invalidate(dbapi: Any, record: Any, exception: Any) -> None:
        log.note(f"{where} invalidate", type(exception).__name__)

    def soft_invalidate(dbapi: Any, record: Any, exception: Any) -> None:
        log.note(f"{where} soft_invalidate", type(exception).__name__)

    def detach(dbapi: Any, record: Any) -> None:
        log.note(f"{where} detach")

    return [
        (target, fn.__name__, fn)
        for fn in (checkout, checkin, reset, invalidate, soft_invalidate, detach)
    ]


@contextlib.contextmanager
def listening(listeners: Listeners) -> Iterator[None]:
    for listener in listeners:
        event.listen(*listener)
    try:
        yield
    finally:
        for listener in listeners:
            event.remove(*listener)


# -- the programs ----------------------------------------------------------------------------------

Program = Callable[[sa.Engine, Log], None]


def insert(name: str) -> sa.Insert:
    return sa.insert(items).values(name=name)


def orm_commit(engine: sa.Engine, log: Log) -> None:
    with Session(engine) as session:
        session.add(Item("a"))
        session.commit()
        log.note("=", session.scalars(sa.select(items.c.name)).all())
        session.commit()


def orm_rollback(engine: sa.Engine, log: Log) -> None:
    with Session(engine) as session:
        session.add(Item("a"))
        session.flush()
        session.rollback()
        session.rollback()
        session.add(Item("b"))
        session.commit()


def orm_close_without_an_end(engine: sa.Engine, log: Log) -> None:
    with Session(engine) as session:
        session.add(Item("a"))
        session.flush()
    with Session(engine) as session:
        log.note("=", session.scalars(sa.select(items.c.name)).all())


def orm_commit_of_nothing(engine: sa.Engine, log: Log) -> None:
    with Session(engine) as session:
        session.commit()
        session.begin()
        session.commit()
        session.begin()
        session.rollback()


def orm_begin_blocks(engine: sa.Engine, log: Log) -> None:
    with Session(engine) as session, session.begin():
        session.add(Item("a"))
    with contextlib.suppress(ZeroDivisionError), sessionmaker(engine).begin() as session:
        session.add(Item("b"))
        session.flush()
        _ = 1 / 0


def orm_nested(engine: sa.Engine, log: Log) -> None:
    with Session(engine) as session:
        session.add(Item("a"))
        with session.begin_nested():
            session.add(Item("b"))
        with contextlib.suppress(ZeroDivisionError), session.begin_nested():
            session.add(Item("c"))
            session.flush()
            _ = 1 / 0
        outer = session.begin_nested()
        session.add(Item("d"))
        with session.begin_nested():
            session.add(Item("e"))
        outer.rollback()
        session.commit()
        log.note("=", session.scalars(sa.select(items.c.name).order_by(items.c.name)).all())


def orm_failing_flush(engine: sa.Engine, log: Log) -> None:
    with Session(engine) as session:
        session.add(Item("a"))
        session.commit()
        session.add(Item("a"))
        with contextlib.suppress(sa.exc.IntegrityError):
            session.flush()
        log.note("=", session.is_active)
        session.rollback()
        session.add(Item("b"))
        session.commit()


def orm_failing_flush_in_a_savepoint(engine: sa.Engine, log: Log) -> None:
    with Session(engine) as session:
        session.add(Item("a"))
        session.flush()
        with contextlib.suppress(sa.exc.IntegrityError), session.begin_nested():
            session.add(Item("a"))
        session.add(Item("b"))
        session.commit()


def orm_failing_commit(engine: sa.Engine, log: Log) -> None:
    with Session(engine) as session:
        session.add(Item("a"))
        session.commit()
        session.add(Item("a"))
        with contextlib.suppress(sa.exc.IntegrityError):
            session.commit()
        with contextlib.suppress(sa.exc.PendingRollbackError):
            session.scalars(sa.select(items.c.name))
        session.rollback()
        log.note("=", session.scalars(sa.select(items.c.name)).all())


def a_listener_that_refuses_the_commit(engine: sa.Engine, log: Log) -> None:
    def refuse(session: Session) -> None:
        raise ZeroDivisionError

    with Session(engine) as session:
        event.listen(session, "before_commit", refuse)
        session.add(Item("a"))
        with contextlib.suppress(ZeroDivisionError):
            session.commit()
        session.rollback()


def a_listener_that_writes_after_the_commit(engine: sa.Engine, log: Log) -> None:
    """What is told to others at a commit goes through a session of its own."""

    def write(session: Session) -> None:
        with engine.begin() as connection:
            seen = connection.scalars(sa.select(items.c.name)).all()
            log.note("=", list(seen))
            connection.execute(insert("told"))

    with Session(engine) as session:
        event.listen(session, "after_commit", write, once=True)
        session.add(Item("a"))
        session.commit()
        log.note("=", len(session.scalars(sa.select(items.c.name)).all()))


def core_commit_and_rollback(engine: sa.Engine, log: Log) -> None:
    with engine.connect() as connection:
        connection.execute(insert("a"))
        connection.commit()
        connection.execute(insert("b"))
        connection.rollback()
        log.note("=", connection.scalars(sa.select(items.c.name)).all())


def core_autobegin_and_close(engine: sa.Engine, log: Log) -> None:
    with engine.connect() as connection:
        connection.execute(insert("a"))
    with engine.connect():
        pass


def engine_begin(engine: sa.Engine, log: Log) -> None:
    with engine.begin() as connection:
        connection.execute(insert("a"))
    with contextlib.suppress(ZeroDivisionError), engine.begin() as connection:
        connection.execute(insert("b"))
        _ = 1 / 0
    with contextlib.suppress(sa.exc.IntegrityError), engine.begin() as connection:
        connection.execute(insert("a"))


def core_savepoints(engine: sa.Engine, log: Log) -> None:
    with engine.begin() as connection:
        connection.execute(insert("a"))
        with connection.begin_nested():
            connection.execute(insert("b"))
        nested = connection.begin_nested()
        connection.execute(insert("c"))
        nested.rollback()
        with contextlib.suppress(sa.exc.IntegrityError), connection.begin_nested():
            connection.execute(insert("a"))
        log.note("=", connection.scalars(sa.select(items.c.name).order_by(items.c.name)).all())


def autocommit(engine: sa.Engine, log: Log) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(insert("a"))
        with contextlib.suppress(sa.exc.IntegrityError):
            connection.execute(insert("a"))
        connection.commit()
        connection.execute(insert("b"))
        connection.rollback()
        log.note("=", len(connection.scalars(sa.select(items.c.name)).all()))


def listeners_on_one_connection(engine: sa.Engine, log: Log) -> None:
    with engine.connect() as connection:
        for listener in core_listeners(log, connection, "connection"):
            event.listen(*listener)
        connection.execute(insert("a"))
        with connection.begin_nested():
            connection.execute(insert("b"))
        connection.commit()
        connection.execute(insert("c"))


def two_connections(engine: sa.Engine, log: Log) -> None:
    """One reads while the other writes: on every database production can do that."""
    with engine.connect() as reader, Session(engine) as session:
        log.note("=", list(reader.scalars(sa.select(items.c.name)).all()))
        reader.rollback()
        session.add(Item("a"))
        session.commit()
        log.note("=", list(reader.scalars(sa.select(items.c.name)).all()))


def raw_connection(engine: sa.Engine, log: Log) -> None:
    raw = engine.raw_connection()
    cursor = raw.cursor()
    cursor.execute("INSERT INTO items (name) VALUES ('a')")
    cursor.close()
    raw.commit()
    raw.close()
    raw = engine.raw_connection()
    raw.detach()
    dbapi = raw.dbapi_connection
    raw.close()
    # SQLAlchemy does not close asynchronous ones that were detached.
    assert dbapi is not None
    dbapi.close()


def invalidated(engine: sa.Engine, log: Log) -> None:
    with engine.connect() as connection:
        connection.execute(insert("a"))
        connection.commit()
        connection.invalidate()
        log.note("=", connection.invalidated)
        connection.execute(insert("b"))
        connection.commit()


def two_binds(engine: sa.Engine, log: Log) -> None:
    """A session on a connection that the application has begun itself."""
    with engine.connect() as connection, connection.begin() as outer:
        for mode in ("create_savepoint", "rollback_only", "control_fully"):
            with Session(connection, join_transaction_mode=mode) as session:
                session.add(Item(mode))
                session.commit()
        log.note("=", outer.is_active)


PROGRAMS: tuple[Program, ...] = (
    orm_commit,
    orm_rollback,
    orm_close_without_an_end,
    orm_commit_of_nothing,
    orm_begin_blocks,
    orm_nested,
    orm_failing_flush,
    orm_failing_flush_in_a_savepoint,
    orm_failing_commit,
    a_listener_that_refuses_the_commit,
    a_listener_that_writes_after_the_commit,
    core_commit_and_rollback,
    core_autobegin_and_close,
    engine_begin,
    core_savepoints,
    autocommit,
    listeners_on_one_connection,
    two_connections,
    raw_connection,
    invalidated,
    two_binds,
)


def listeners(log: Log, engine: sa.Engine) -> Listeners:
    """On the classes and on this engine alike; Session's are on the class."""
    return [
        *session_listeners(log, Session),
        *core_listeners(log, sa.Engine, "class"),
        *core_listeners(log, engine, "engine"),
        *engine_listeners(log, engine),
        *pool_listeners(log, Pool, "class"),
        *pool_listeners(log, engine, "engine"),
    ]


def record(app: App, engine: sa.Engine, program: Callable[[sa.Engine, Log], Any]) -> list[Any]:
    log = Log()

    def listened() -> None:
        # One connection before: what an engine does first of all is not the program's.
        with engine.connect():
            pass
        with listening(listeners(log, engine)):
            program(engine, log)
        # Connections of an asynchronous driver end with the loop that they were made on.
        engine.dispose()

    app.run(listened)
    return log.entries


@pytest.fixture(params=DRIVERS)
def app(request: pytest.FixtureRequest, make_app: Callable[[str], App]) -> App:
    return make_app(request.param)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_the_same_events_as_in_production(app: App, program: Program) -> None:
    in_production = record(app, app.make_engine(), program)
    assert in_production
    app.dispose()
    app.empty()

    engine = app.make_engine()
    with sandbox.sandboxed(engine):
        in_a_sandbox = record(app, engine, program)

    assert in_a_sandbox == in_production
    assert app.names() == []


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_listeners_from_before_the_sandbox_go_on(
    make_app: Callable[[str], App], program: Program
) -> None:
    """Those that an application puts on its engine at import, long before there is a sandbox."""
    app = make_app("psycopg")
    engine = app.make_engine()
    log = Log()
    with listening(listeners(log, engine)):
        program(engine, log)
        in_production, log.entries = log.entries, []
        app.empty()
        with sandbox.sandboxed(engine):
            log.entries.clear()
            program(engine, log)
        in_a_sandbox = log.entries

    assert in_a_sandbox == in_production


def session_of_asyncio(log: Log, url: str) -> Callable[[], Any]:
    async def program() -> None:
        engine = create_async_engine(url)
        async with engine.connect():
            pass
        with listening(listeners(log, engine.sync_engine)):
            async with AsyncSession(engine) as session:
                session.add(Item("a"))
                await session.commit()
                session.add(Item("b"))
                async with session.begin_nested():
                    session.add(Item("c"))
                session.add(Item("a"))
                with contextlib.suppress(sa.exc.IntegrityError):
                    await session.commit()
                await session.rollback()
                session.add(Item("d"))
                await session.flush()
            async with engine.begin() as connection:
                names = (await connection.scalars(sa.select(items.c.name))).all()
                log.note("=", sorted(names))
            with contextlib.suppress(ZeroDivisionError):
                async with AsyncSession(engine) as session, session.begin():
                    session.add(Item("e"))
                    await session.flush()
                    _ = 1 / 0
        await engine.dispose()

    return program


@pytest.mark.parametrize("driver", ASYNC)
async def test_the_events_of_an_async_session(make_app: Callable[[str], App], driver: str) -> None:
    app = make_app(driver)
    in_production, in_a_sandbox = Log(), Log()
    await session_of_asyncio(in_production, app.url)()
    app.empty()

    target = create_async_engine(app.url)
    async with sandbox.sandboxed(target):
        await session_of_asyncio(in_a_sandbox, app.url)()

    await target.dispose()
    assert in_production.entries
    assert in_a_sandbox.entries == in_production.entries


def test_a_failing_deferred_constraint_fires_what_a_failing_commit_does(pg_app: App) -> None:
    """The one failure that only a COMMIT can have."""

    def program(engine: sa.Engine, log: Log) -> None:
        with Session(engine) as session:
            session.execute(
                sa.text(
                    "CREATE TEMPORARY TABLE late (id integer UNIQUE DEFERRABLE INITIALLY DEFERRED)"
                )
            )
            session.commit()
            session.add(Item("a"))
            session.execute(sa.text("INSERT INTO late VALUES (1), (1)"))
            with pytest.raises(sa.exc.IntegrityError):
                session.commit()
            session.rollback()
            session.add(Item("b"))
            session.commit()
            log.note("=", session.scalars(sa.select(items.c.name)).all())

    in_production = record(pg_app, pg_app.make_engine(), program)
    pg_app.dispose()
    pg_app.empty()

    engine = pg_app.make_engine()
    with sandbox.sandboxed(engine):
        assert record(pg_app, engine, program) == in_production


def test_two_phase_commit_is_announced_and_then_refused(make_app: Callable[[str], App]) -> None:
    """In production it goes on to PREPARE TRANSACTION; a sandbox stops before that."""
    app = make_app("psycopg")

    def program(engine: sa.Engine, log: Log) -> None:
        with engine.connect() as connection:
            transaction = connection.begin_twophase("x")
            connection.execute(insert("a"))
            log.note("began")
            with contextlib.suppress(sa.exc.DBAPIError):
                transaction.prepare()
            with contextlib.suppress(sa.exc.DBAPIError):
                transaction.rollback()

    in_production = record(app, app.make_engine(), program)
    began = in_production.index(("began",))
    app.dispose()
    app.empty()

    engine = app.make_engine()
    log: list[Any] = []
    with sandbox.sandboxed(engine):

        def refused(engine: sa.Engine, noted: Log) -> None:
            noted_to = noted
            with pytest.raises(UnsupportedInSandboxError, match="two-phase"):
                program(engine, noted_to)

        log = record(app, engine, refused)
    announced = ("engine begin_twophase",)
    assert announced in in_production[:began]
    assert announced in log
    assert ("engine prepare_twophase",) not in log


# -- connect and first_connect ---------------------------------------------------------------------
#
# These tell of real connections, and must differ: an application that opens two connections at
# once has two real ones in production and one in a sandbox, and a later sandbox uses that of an
# earlier one again. So the law is another: they fire once for each real connection, before its
# first use, with a connection on which listeners may run statements.


def connect_log(engine: sa.Engine) -> list[str]:
    log: list[str] = []

    def first_connect(dbapi: Any, record: Any) -> None:
        log.append("first_connect")

    def connect(dbapi: Any, record: Any) -> None:
        cursor = dbapi.cursor()
        cursor.execute("SELECT 1")
        row = cursor.fetchone()
        cursor.close()
        dbapi.rollback()
        log.append(f"connect {tuple(row)}")

    event.listen(engine, "first_connect", first_connect)
    event.listen(engine, "connect", connect)
    return log


def use(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(insert("a"))


def use_once(engine: sa.Engine) -> None:
    use(engine)
    engine.dispose()


def test_connect_events_are_those_of_the_one_real_connection(app: App) -> None:
    plain = app.make_engine()
    in_production = connect_log(plain)
    app.run(use_once, plain)
    app.empty()

    engine = app.make_engine()
    in_a_sandbox = connect_log(engine)
    with sandbox.sandboxed(engine):
        app.run(use, engine)

    assert in_a_sandbox == in_production


def test_listeners_that_come_during_a_sandbox_hear_of_its_connection(app: App) -> None:
    engine = app.make_engine()
    with sandbox.sandboxed(engine):
        log = connect_log(engine)
        app.run(use, engine)

    assert log == ["first_connect", "connect (1,)"]


def test_two_connections_at_once_are_one_real_one(make_app: Callable[[str], App]) -> None:
    app = make_app("psycopg")

    def both(engine: sa.Engine) -> None:
        with engine.connect() as first, engine.connect() as second:
            first.execute(sa.select(1))
            second.execute(sa.select(1))

    plain, engine = app.make_engine(), app.make_engine()
    in_production, in_a_sandbox = connect_log(plain), connect_log(engine)
    both(plain)
    with sandbox.sandboxed(engine):
        both(engine)

    assert in_production == ["first_connect", "connect (1,)", "connect (1,)"]
    assert in_a_sandbox == ["first_connect", "connect (1,)"]

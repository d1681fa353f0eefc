"""The same test under each way of isolation: what is timed, and what is counted.

Each contender has a database of its own, with the same schema on the same server. Only that of
the sandboxed one is ever checked out, so that nothing of ours lies under the others' engines.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

import sandbox
from sandbox.adapters.sqlalchemy.pool import is_adopted
from tests.benchmarks.application import DELETE_ALL, body, body_async

__all__ = (
    "DELETE",
    "PLAIN",
    "RECIPE",
    "SANDBOXED",
    "Contender",
    "each_loop_contenders",
    "one_loop_contenders",
    "sync_contenders",
)

SANDBOXED: Final = "sandboxed"
RECIPE: Final = "recipe"
PLAIN: Final = "plain commits"
DELETE: Final = "DELETE all tables"

MakeUrl = Callable[[str], str]
JOIN: Final[dict[str, Any]] = {"join_transaction_mode": "create_savepoint"}


@dataclass(frozen=True)
class Contender:
    """One way of isolation. ``run`` is one whole test, from its set-up to its end."""

    name: str
    run: Callable[[], None]
    pool: Callable[[], sa.Pool]

    def check(self) -> None:
        """Run it once; what is under whose engine is as it should be."""
        self.run()
        assert is_adopted(self.pool()) is (self.name.startswith(SANDBOXED)), self.name


@contextlib.contextmanager
def sync_contenders(make_url: MakeUrl, **options: Any) -> Iterator[list[Contender]]:
    """Blocking drivers."""
    engines = {
        name: sa.create_engine(make_url(name), **options)
        for name in (SANDBOXED, RECIPE, PLAIN, DELETE)
    }
    if engines[RECIPE].dialect.name == "sqlite":
        _let_sqlalchemy_begin(engines[RECIPE])

    def sandboxed() -> None:
        with sandbox.sandboxed(engines[SANDBOXED]), Session(engines[SANDBOXED]) as session:
            body(session)

    def recipe() -> None:
        # SQLAlchemy's documentation, "Joining a Session into an External Transaction".
        with engines[RECIPE].connect() as connection:
            transaction = connection.begin()
            with Session(bind=connection, **JOIN) as session:
                body(session)
            transaction.rollback()

    def plain() -> None:
        with Session(engines[PLAIN]) as session:
            body(session)

    # An engine of its own: a connection that changes its level pays for changing back.
    cleaner = sa.create_engine(engines[DELETE].url, isolation_level="AUTOCOMMIT", **options)

    def delete() -> None:
        with Session(engines[DELETE]) as session:
            body(session)
        with cleaner.connect() as connection:
            if cleaner.dialect.name == "sqlite":
                connection.connection.driver_connection.executescript(DELETE_ALL)  # type: ignore[union-attr]
            else:
                connection.exec_driver_sql(DELETE_ALL)

    runs = {SANDBOXED: sandboxed, RECIPE: recipe, PLAIN: plain, DELETE: delete}
    try:
        yield _checked(runs, engines)
    finally:
        for engine in [*engines.values(), cleaner]:
            engine.dispose()


@contextlib.contextmanager
def one_loop_contenders(make_url: MakeUrl) -> Iterator[list[Contender]]:
    """asyncpg on one event loop for all tests, each coroutine run by it to its end."""
    engines = {
        name: create_async_engine(make_url(name)) for name in (SANDBOXED, RECIPE, PLAIN, DELETE)
    }

    async def sandboxed() -> None:
        async with sandbox.sandboxed(engines[SANDBOXED]):
            await _application(engines[SANDBOXED])

    cleaner = create_async_engine(engines[DELETE].url, isolation_level="AUTOCOMMIT")

    async def delete() -> None:
        await _application(engines[DELETE])
        async with cleaner.connect() as connection:
            raw = await connection.get_raw_connection()
            await raw.driver_connection.execute(DELETE_ALL)  # type: ignore[union-attr]

    tests: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
        SANDBOXED: sandboxed,
        RECIPE: lambda: _recipe_async(engines[RECIPE]),
        PLAIN: lambda: _application(engines[PLAIN]),
        DELETE: delete,
    }
    loop = asyncio.new_event_loop()

    def on_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
        return lambda: loop.run_until_complete(test())

    try:
        yield _checked({name: on_loop(test) for name, test in tests.items()}, engines)
    finally:
        for engine in [*engines.values(), cleaner]:
            loop.run_until_complete(engine.dispose())
        # Real connections that live on this loop go before it does.
        sandbox.stop()
        loop.close()


@contextlib.contextmanager
def each_loop_contenders(make_url: MakeUrl) -> Iterator[list[Contender]]:
    """asyncpg with a new event loop for each test, as pytest-asyncio has it unless told.

    The peers cannot keep connections then: they have to use NullPool, or an engine for each test.
    The application under the sandbox has the engine that it would have in production.
    """
    new_engine = f"{RECIPE}, an engine each"
    null = {"poolclass": sa.NullPool}
    engines = {
        SANDBOXED: create_async_engine(make_url(SANDBOXED)),
        RECIPE: create_async_engine(make_url(RECIPE), **null),
        PLAIN: create_async_engine(make_url(PLAIN), **null),
    }
    own_url = make_url(new_engine)
    engines[new_engine] = create_async_engine(own_url, **null)

    def sandboxed() -> None:
        with sandbox.sandboxed(engines[SANDBOXED]), asyncio.Runner() as runner:
            runner.run(_application(engines[SANDBOXED]))

    def recipe() -> None:
        with asyncio.Runner() as runner:
            runner.run(_recipe_async(engines[RECIPE]))

    def plain() -> None:
        with asyncio.Runner() as runner:
            runner.run(_application(engines[PLAIN]))

    def recipe_of_its_own() -> None:
        async def test() -> None:
            engine = engines[new_engine] = create_async_engine(own_url)
            await _recipe_async(engine)
            await engine.dispose()

        with asyncio.Runner() as runner:
            runner.run(test())

    runs = {SANDBOXED: sandboxed, RECIPE: recipe, PLAIN: plain, new_engine: recipe_of_its_own}
    try:
        yield _checked(runs, engines)
    finally:
        asyncio.run(engines[SANDBOXED].dispose())
        sandbox.stop()


async def _application(engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session:
        await body_async(session)


async def _recipe_async(engine: AsyncEngine) -> None:
    # As SQLAlchemy's maintainer has it for AsyncSession, in its discussion of the recipe.
    async with engine.connect() as connection:
        transaction = await connection.begin()
        async with AsyncSession(bind=connection, **JOIN) as session:
            await body_async(session)
        await transaction.rollback()


def _checked(runs: dict[str, Callable[[], Any]], engines: dict[str, Any]) -> list[Contender]:
    def pool_of(name: str) -> Callable[[], sa.Pool]:
        # Asked for later: adoption exchanges the pool, and some contenders make a new engine.
        return lambda: engines[name].pool

    contenders = [Contender(name, run, pool_of(name)) for name, run in runs.items()]
    for contender in contenders:
        contender.check()
    return contenders


def _let_sqlalchemy_begin(engine: sa.Engine) -> None:
    """What SQLAlchemy's documentation asks for where savepoints are used on pysqlite."""

    @sa.event.listens_for(engine, "connect")
    def do_connect(connection: Any, record: Any) -> None:
        connection.isolation_level = None

    @sa.event.listens_for(engine, "begin")
    def do_begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN")

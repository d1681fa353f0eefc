"""Random programs on real databases: what was committed stays, what was rolled back is gone."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.util.concurrency import await_only, greenlet_spawn

import sandbox
from sandbox.connection.virtual import VirtualConnection
from sandbox.errors import InterleavedTransactionError
from tests.fix_db import App, items
from tests.programs import ACTIONS, KINDS, Program, Run, Worker, random_program

EXAMPLES = 20
SEEDED = 25

# SQLAlchemy's, for connections that a program has lost.
pytestmark = pytest.mark.filterwarnings("ignore:The garbage collector is trying to clean up")

_steps = st.tuples(st.integers(0, 4), st.sampled_from(ACTIONS), st.integers(0, 9))
_programs: st.SearchStrategy[Program] = st.tuples(
    st.lists(st.sampled_from(KINDS), min_size=1, max_size=5).map(tuple),
    st.lists(_steps, min_size=1, max_size=30),
)


# There is one thread: whoever would have to wait would wait in vain.
NOBODY_WAITS: Any = {"nest_after": 0.0, "busy_after": 0.0}


@pytest.fixture(autouse=True)
def no_virtual_connection_is_left() -> Iterator[None]:
    yield
    gc.collect()
    left = [o for o in gc.get_objects() if issubclass(type(o), VirtualConnection)]
    assert [o for o in left if o._target is not None] == []


def play(app: App, engine: sa.Engine, program: Program) -> Counter[str]:
    """One program in a sandbox of its own, and what the next one and the outside see."""
    kinds, steps = program
    run = Run(engine, kinds, aborts=not app.is_sqlite)
    with sandbox.sandboxed(engine, **NOBODY_WAITS):
        run.play(steps)
    with sandbox.sandboxed(engine, **NOBODY_WAITS):
        with engine.begin() as connection:
            connection.execute(sa.insert(items).values(name="the next"))
        with engine.connect() as connection:
            assert connection.scalars(sa.select(items.c.name)).all() == ["the next"]
    assert app.names() == [], "something was committed for good"
    return run.outcomes


def test_shrinking_programs_keep_the_law(app: App) -> None:
    engine = app.make_engine()

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(_programs)
    def law(program: Program) -> None:
        play(app, engine, program)

    app.run(law)


def test_random_programs_keep_the_law(app: App) -> None:
    engine = app.make_engine()
    outcomes: Counter[str] = Counter()

    def law() -> None:
        chance = random.Random(1)
        for _ in range(SEEDED):
            outcomes.update(play(app, engine, random_program(chance, 40)))

    app.run(law)
    # They do get somewhere.
    assert outcomes["completed"] > SEEDED / 4, outcomes
    assert {action for action in ACTIONS if not outcomes[action]} == set()


# -- at once -------------------------------------------------------------------------------------

# How long siblings wait before they nest, and whether anybody rolls back. Who nests in a
# transaction that is rolled back is told so; without rollbacks nobody may be told anything.
CONCURRENCY = [(5.0, True), (0.001, False), (0.001, True)]


def look(engine: sa.Engine) -> set[str]:
    with engine.connect() as connection:
        return set(connection.scalars(sa.select(items.c.name)))


def check(engine: sa.Engine, workers: list[Worker]) -> None:
    gc.collect()  # what was lost or cancelled
    try:
        seen = look(engine)
    except InterleavedTransactionError:
        assert any(worker.may_undo for worker in workers)
        return
    for worker in workers:
        assert worker.kept <= seen, "lost"
        assert not worker.undone & seen, "undone, and still there"
    assert any(worker.kept for worker in workers)


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "pysqlite"])
@pytest.mark.parametrize(("nest_after", "may_undo"), CONCURRENCY)
def test_threads_at_once_keep_the_law(
    make_app: Callable[[str], App],
    driver: str,
    nest_after: float,
    may_undo: bool,
) -> None:
    engine = make_app(driver).make_engine()
    for seed in range(3):
        workers = [
            Worker(engine, f"{n}", random.Random(f"{seed} {n}"), lambda: time.sleep(0), may_undo)
            for n in range(4)
        ]
        with sandbox.sandboxed(engine, shared=True, nest_after=nest_after) as ours:
            threads = [threading.Thread(target=worker.run, args=(15,)) for worker in workers]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert [worker.error for worker in workers if worker.error is not None] == []
            check(engine, workers)
            assert ours.stats.waits > 0


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg_async", "aiosqlite"])
@pytest.mark.parametrize(("nest_after", "may_undo"), CONCURRENCY)
def test_tasks_at_once_keep_the_law(
    make_app: Callable[[str], App],
    driver: str,
    nest_after: float,
    may_undo: bool,
) -> None:
    app = make_app(driver)
    engine = app.make_engine(pool_size=10)

    async def main(seed: int) -> None:
        chance = random.Random(seed)
        workers = [
            Worker(
                engine,
                f"{n}",
                random.Random(f"{seed} {n}"),
                lambda: await_only(asyncio.sleep(0)),
                may_undo,
            )
            for n in range(8)
        ]
        async with sandbox.sandboxed(engine, nest_after=nest_after):
            # aiosqlite leaves a thread behind when it is cancelled while it connects.
            await greenlet_spawn(look, engine)
            tasks = [asyncio.create_task(greenlet_spawn(worker.run, 6)) for worker in workers]
            # To be cancelled is to roll back.
            for task in chance.sample(tasks, 3 if may_undo else 0):
                for _ in range(chance.randrange(60)):
                    await asyncio.sleep(0)
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert [worker.error for worker in workers if worker.error is not None] == []
            await greenlet_spawn(check, engine, workers)

    for seed in range(3):
        asyncio.run(main(seed))
    sandbox.stop()

"""MySQL and MariaDB: random programs keep the law, on every driver, in turn and at once."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from sqlalchemy.util.concurrency import await_only, greenlet_spawn

import sandbox
from tests.fix_db import items
from tests.fix_mariadb import ASYNC_MYSQL, MySQLApp
from tests.integration.test_random_programs import (
    CONCURRENCY,
    EXAMPLES,
    NOBODY_WAITS,
    SEEDED,
    _programs,
    check,
    look,
    no_virtual_connection_is_left,
)
from tests.programs import ACTIONS, Client, Handle, Program, Run, Worker, random_program

__all__ = ("no_virtual_connection_is_left",)

# SQLAlchemy's, for connections that a program has lost.
pytestmark = pytest.mark.filterwarnings("ignore:The garbage collector is trying to clean up")


class MySQLRun(Run):
    """The model with MySQL's rule for savepoints: a new one replaces one of the same name."""

    def savepoint(self, client: Client, handle: Handle, more: int) -> bool | None:
        before = list(client.marks)
        done = super().savepoint(client, handle, more)
        if handle.plain and len(client.marks) > len(before):
            label = client.marks[-1][0]
            client.marks[:-1] = [mark for mark in before if mark[0] != label]
        return done


def play(app: MySQLApp, engine: sa.Engine, program: Program) -> Counter[str]:
    """One program in a sandbox of its own, and what the next one and the outside see."""
    kinds, steps = program
    run = MySQLRun(engine, kinds, aborts=False)
    with sandbox.sandboxed(engine, **NOBODY_WAITS):
        run.play(steps)
    with sandbox.sandboxed(engine, **NOBODY_WAITS):
        with engine.begin() as connection:
            connection.execute(sa.insert(items).values(name="the next"))
        with engine.connect() as connection:
            assert connection.scalars(sa.select(items.c.name)).all() == ["the next"]
    assert app.names() == [], "something was committed for good"
    return run.outcomes


def test_shrinking_programs_keep_the_law(my_app: MySQLApp) -> None:
    engine = my_app.make_engine()

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(_programs)
    def law(program: Program) -> None:
        play(my_app, engine, program)

    my_app.run(law)


def test_random_programs_keep_the_law(my_app: MySQLApp) -> None:
    engine = my_app.make_engine()
    outcomes: Counter[str] = Counter()

    def law() -> None:
        chance = random.Random(1)
        for _ in range(SEEDED):
            outcomes.update(play(my_app, engine, random_program(chance, 40)))

    my_app.run(law)
    # They do get somewhere.
    assert outcomes["completed"] > SEEDED / 4, outcomes
    assert {action for action in ACTIONS if not outcomes[action]} == set()


@pytest.mark.parametrize(("nest_after", "may_undo"), CONCURRENCY)
def test_threads_at_once_keep_the_law(
    make_my_app: Callable[[str], MySQLApp], nest_after: float, may_undo: bool
) -> None:
    engine = make_my_app("pymysql").make_engine()
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


@pytest.mark.parametrize("driver", ASYNC_MYSQL)
@pytest.mark.parametrize(("nest_after", "may_undo"), CONCURRENCY)
def test_tasks_at_once_keep_the_law(
    make_my_app: Callable[[str], MySQLApp], driver: str, nest_after: float, may_undo: bool
) -> None:
    engine = make_my_app(driver).make_engine(pool_size=10)

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
            await greenlet_spawn(look, engine)
            tasks: list[asyncio.Task[Any]] = [
                asyncio.create_task(greenlet_spawn(worker.run, 6)) for worker in workers
            ]
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

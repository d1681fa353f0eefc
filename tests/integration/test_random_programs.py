"""Random programs on real databases: what was committed stays, what was rolled back is gone."""

from __future__ import annotations

import gc
import random
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sandbox
from sandbox.connection.virtual import VirtualConnection
from tests.fix_db import App, items
from tests.programs import ACTIONS, KINDS, Program, Run, random_program

EXAMPLES = 40
SEEDED = 40

_steps = st.tuples(st.integers(0, 3), st.sampled_from(ACTIONS), st.integers(0, 9))
_programs: st.SearchStrategy[Program] = st.tuples(
    st.lists(st.sampled_from(KINDS), min_size=1, max_size=4).map(tuple),
    st.lists(_steps, min_size=1, max_size=30),
)


@pytest.fixture(autouse=True)
def nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is one thread: whoever would have to wait would wait in vain."""
    monkeypatch.setattr("sandbox.connection.shared.NEST_AFTER", 0.0)
    monkeypatch.setattr("sandbox.connection.shared.BUSY_AFTER", 0.0)


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
    with sandbox.sandboxed(engine):
        run.play(steps)
    with sandbox.sandboxed(engine):
        with engine.begin() as connection:
            connection.execute(sa.insert(items).values(name="the next"))
        with engine.connect() as connection:
            assert connection.scalars(sa.select(items.c.name)).all() == ["the next"]
    assert app.names() == [], "something was committed for good"
    return run.outcomes


def test_shrinking_programs_keep_the_law(app: App) -> None:
    engine = app.make_engine()
    engine.echo = False

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


@pytest.mark.parametrize("seed", [1, 2])
def test_random_programs_keep_the_law(app: App, seed: int) -> None:
    engine = app.make_engine()
    outcomes: Counter[str] = Counter()

    def law() -> None:
        chance = random.Random(seed)
        for _ in range(SEEDED):
            outcomes.update(play(app, engine, random_program(chance, 40)))

    app.run(law)
    # They do get somewhere.
    assert outcomes["completed"] > SEEDED / 4, outcomes
    assert {action for action in ACTIONS if not outcomes[action]} == set()

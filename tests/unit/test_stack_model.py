"""Random schedules of interleaved transactions hold the law of ``tests/stack_model.py``."""

from __future__ import annotations

import random
import sqlite3
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.stack_model import ACTIONS, Outcome, Step, play, random_schedule
from tests.stack_servers import Simulated, Sqlite

schedules = st.lists(
    st.tuples(
        st.integers(0, 4),
        st.sampled_from(ACTIONS),
        st.integers(0, 13),
        st.sampled_from((True, True, False)),
    ),
    max_size=60,
)


@settings(max_examples=500, deadline=None, database=None, derandomize=True)
@given(schedules)
def test_nothing_is_lost_and_nothing_undone_survives(schedule: list[Step]) -> None:
    play(Simulated(), schedule)


def test_a_hundred_thousand_random_steps_hold_the_law() -> None:
    chance = random.Random(19)
    outcomes: Counter[str] = Counter()
    lost = steps = 0
    while steps < 150_000:
        schedule = random_schedule(chance, 40)
        run = play(Simulated(), schedule)
        outcomes += run.outcomes
        lost += run.poisoned
        steps += len(schedule)
    # It went everywhere: a schedule that only waits would hold any law.
    assert set(outcomes) == {*ACTIONS, *(o.value for o in Outcome)} - {
        Outcome.DONE.value,
        "fail",
        "fail reading",
        "autocommit fails",
    }
    assert min(outcomes.values()) > 100
    assert lost > 100


@pytest.mark.parametrize("seed", range(4))
def test_sqlite_holds_the_law(seed: int) -> None:
    chance = random.Random(seed)
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        connection.execute("CREATE TABLE work (row INTEGER NOT NULL)")
        for _ in range(100):
            play(Sqlite(connection), random_schedule(chance, 40))
    finally:
        connection.close()

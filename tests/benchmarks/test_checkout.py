"""Checkout and checkin alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

import sandbox
from tests.benchmarks.contenders import PLAIN, SANDBOXED, Contender

GROUP = "checkout and checkin, psycopg"
SELECT = sa.select(sa.literal(1))


@pytest.fixture(scope="module")
def contenders(make_url: Any) -> Iterator[list[Contender]]:
    engine = sa.create_engine(make_url("psycopg")(SANDBOXED))
    outside = sa.create_engine(make_url("psycopg")(PLAIN))

    def idle() -> None:
        sandbox.checkout(engine)
        sandbox.checkin(engine)

    def used() -> None:
        sandbox.checkout(engine)
        with engine.connect() as connection:
            connection.execute(SELECT)
        sandbox.checkin(engine)

    def without() -> None:
        with outside.connect() as connection:
            connection.execute(SELECT)

    found = [
        Contender("sandboxed, idle", idle, lambda: engine.pool),
        Contender("sandboxed, one SELECT", used, lambda: engine.pool),
        Contender("one SELECT, not sandboxed", without, lambda: outside.pool),
    ]
    for contender in found:
        contender.check()
    yield found
    engine.dispose()
    outside.dispose()


@pytest.mark.parametrize("number", range(3))
def test_alone(contenders: list[Contender], number: int, measure: Any) -> None:
    measure(GROUP, contenders[number])


def test_side_by_side(contenders: list[Contender], compare: Any) -> None:
    compare(GROUP, contenders)

"""Transactions that are open at once: a fixture that has flushed while the application commits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

import sandbox
from tests.benchmarks.application import Author
from tests.benchmarks.contenders import PLAIN, SANDBOXED, Contender

ANY = sa.select(Author.name).limit(1)
Pattern = Callable[[sa.Engine], None]


def nested_commit(engine: sa.Engine) -> None:
    """The inner one begins, commits and ends inside the outer."""
    with Session(engine) as outer:
        outer.add(Author(name="outer"))
        outer.flush()
        with Session(engine) as inner:
            inner.add(Author(name="inner"))
            inner.commit()
        outer.commit()


def reads_below(engine: sa.Engine) -> None:
    """The outer one reads while the inner has written."""
    with Session(engine) as outer, Session(engine) as inner:
        outer.add(Author(name="outer"))
        outer.flush()
        inner.add(Author(name="inner"))
        inner.flush()
        for _ in range(3):
            outer.scalar(ANY)
        inner.commit()
        outer.commit()


def readers_in_turn(engine: sa.Engine) -> None:
    """Two that only read, one statement each in turn."""
    with Session(engine) as one, Session(engine) as other:
        for _ in range(3):
            for session in (one, other):
                session.scalar(ANY)


@pytest.mark.parametrize("pattern", [nested_commit, reads_below, readers_in_turn])
@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_side_by_side(driver: str, pattern: Pattern, make_url: Any, compare: Any) -> None:
    make = make_url(driver)
    ours, plain = sa.create_engine(make(SANDBOXED)), sa.create_engine(make(PLAIN))

    def sandboxed() -> None:
        with sandbox.sandboxed(ours):
            pattern(ours)

    def commits() -> None:
        pattern(plain)

    contenders = [
        Contender(SANDBOXED, sandboxed, lambda: ours.pool),
        Contender(PLAIN, commits, lambda: plain.pool),
    ]
    try:
        compare(f"{pattern.__name__}, {driver}", contenders)
    finally:
        ours.dispose()
        plain.dispose()

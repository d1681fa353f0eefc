"""A whole test: isolation, three inserts, commit, select, rollback, and the end of isolation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.benchmarks.contenders import (
    Contender,
    each_loop_contenders,
    one_loop_contenders,
    sync_contenders,
)

GROUPS = {
    "psycopg": "body, psycopg",
    "psycopg2": "body, psycopg2",
    "asyncpg": "body, asyncpg, one event loop",
    "asyncpg-each": "body, asyncpg, an event loop for each test",
    "sqlite": "body, SQLite file",
}


@pytest.fixture(scope="module", params=GROUPS)
def contest(
    request: pytest.FixtureRequest, make_url: Any, make_sqlite_url: Callable[[str], str]
) -> Iterator[tuple[str, list[Contender]]]:
    which = request.param
    if which == "asyncpg":
        context = one_loop_contenders(make_url("asyncpg"))
    elif which == "asyncpg-each":
        context = each_loop_contenders(make_url("asyncpg"))
    elif which == "sqlite":
        context = sync_contenders(make_sqlite_url)
    else:
        context = sync_contenders(make_url(which))
    with context as contenders:
        yield GROUPS[which], contenders


@pytest.mark.parametrize("number", range(4))
def test_alone(contest: tuple[str, list[Contender]], number: int, measure: Any) -> None:
    group, contenders = contest
    measure(group, contenders[number])


def test_side_by_side(contest: tuple[str, list[Contender]], compare: Any) -> None:
    compare(*contest)

"""How often the server is asked, counted on the wire and not by ourselves."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from urllib.parse import quote

import pytest
import sqlalchemy as sa

import sandbox
from sandbox.databases.backends import EmbeddedPostgres
from tests.benchmarks.application import Base
from tests.benchmarks.contenders import (
    DELETE,
    PLAIN,
    RECIPE,
    SANDBOXED,
    Contender,
    one_loop_contenders,
    sync_contenders,
)
from tests.benchmarks.wire import Wire
from tests.fix_db import App, items, metadata

DRIVERS = ("psycopg", "psycopg2", "asyncpg")

OURS = ("BEGIN", "SAVEPOINT", "RELEASE", "ROLLBACK")

SELECT = sa.select(items.c.name)

WARM_UP = 8
"""psycopg prepares at the fifth execution, the others' caches fill at the first."""


@pytest.fixture(scope="module")
def make_database(server: EmbeddedPostgres) -> Callable[[str, sa.MetaData], str]:
    """A database with these tables, made once."""

    def make(name: str, tables: sa.MetaData) -> str:
        if not server.database_exists(name):
            server.create_database(name)
        engine = sa.create_engine(server.url(name, "postgresql+psycopg"), poolclass=sa.NullPool)
        tables.create_all(engine)
        return name

    return make


@pytest.fixture
def wire(server: EmbeddedPostgres) -> Iterator[Wire]:
    with Wire(server.host, server.port) as running:
        yield running


def through(wire: Wire, server: EmbeddedPostgres, driver: str, database: str) -> str:
    return (
        f"postgresql+{driver}://{server.user}@/{database}?host={quote(wire.host)}&port={wire.port}"
    )


@pytest.fixture(params=DRIVERS)
def app(
    request: pytest.FixtureRequest,
    server: EmbeddedPostgres,
    wire: Wire,
    make_database: Callable[[str, sa.MetaData], str],
) -> Iterator[App]:
    driver = request.param
    database = make_database(f"round_trips_{driver}", metadata)
    url = through(wire, server, driver, database)
    application = App(driver, url, server.url(database, "postgresql+psycopg"))
    yield application
    sandbox.stop()
    application.dispose()


class Requests:
    """What reached the server, and what the sandbox says of itself."""

    def __init__(self, sent: list[str], stats: sandbox.Stats) -> None:
        self.sent = sent
        self.stats = stats

    @property
    def control(self) -> list[str]:
        """The requests that are the sandbox's own."""
        return [text for text in self.sent if text.startswith(OURS)]


BEGIN, END = "BEGIN; SET", "ROLLBACK"


def steady(app: App, wire: Wire, work: Callable[[sa.Engine], None]) -> Requests:
    """The requests of a test whose engine, connection and prepared statements are warm."""
    engine = app.make_engine()

    def test() -> sandbox.Stats:
        with sandbox.sandboxed(engine) as box:
            work(engine)
        return box.stats

    for _ in range(WARM_UP):
        app.run(test)
    before = len(wire.requests)
    stats = app.run(test)
    return Requests(wire.requests[before:], stats)


def write(engine: sa.Engine, name: str) -> None:
    with engine.begin() as connection:
        connection.execute(sa.insert(items).values(name=name))


def read(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        connection.execute(SELECT)


def test_an_idle_sandbox_sends_nothing(app: App, wire: Wire) -> None:
    requests = steady(app, wire, lambda engine: None)

    assert requests.sent == []
    assert requests.stats.round_trips == 0


def test_one_committed_transaction_costs_at_most_two_round_trips(app: App, wire: Wire) -> None:
    requests = steady(app, wire, lambda engine: write(engine, "a"))

    assert shapes(requests.sent) == [BEGIN, "INSERT", END]
    assert requests.stats.round_trips == 2


def shapes(sent: list[str]) -> list[str]:
    """The first word of each statement of each request."""
    return ["; ".join(part.split()[0] for part in text.split(";") if part.strip()) for text in sent]


@pytest.mark.parametrize("transactions", [2, 5])
def test_each_further_transaction_costs_one(app: App, wire: Wire, transactions: int) -> None:
    def work(engine: sa.Engine) -> None:
        for number in range(transactions):
            write(engine, f"a{number}")

    first = steady(app, wire, lambda engine: write(engine, "a"))
    several = steady(app, wire, work)

    # An INSERT each, and one more.
    assert len(several.sent) == len(first.sent) + 2 * (transactions - 1)
    further = shapes(several.control)[len(first.control) - 1 : -1]
    # The first is the outer transaction itself; there is nothing of it to release.
    assert further == ["SAVEPOINT"] + ["RELEASE; SAVEPOINT"] * (transactions - 2)


def test_transactions_that_only_read_share_one_savepoint(app: App, wire: Wire) -> None:
    def work(engine: sa.Engine) -> None:
        for _ in range(5):
            read(engine)  # and roll back, as the pool does

    once = steady(app, wire, read)
    often = steady(app, wire, work)

    assert shapes(often.control) == shapes(once.control)
    assert len(often.sent) == len(once.sent) + 4


def test_the_rollback_of_what_was_written_costs_one(app: App, wire: Wire) -> None:
    def work(engine: sa.Engine) -> None:
        with engine.connect() as connection:
            for name in "ab":
                connection.execute(sa.insert(items).values(name=name))
                connection.commit() if name == "a" else connection.rollback()

    requests = steady(app, wire, work)

    assert shapes(requests.sent)[-3:] == ["INSERT", "ROLLBACK", END]
    assert requests.sent[-2].startswith("ROLLBACK TO SAVEPOINT")


def test_the_rollback_of_the_first_transaction_is_all_that_the_end_needs(
    app: App, wire: Wire
) -> None:
    def work(engine: sa.Engine) -> None:
        with engine.connect() as connection:
            connection.execute(sa.insert(items).values(name="a"))
            connection.rollback()

    assert shapes(steady(app, wire, work).sent) == [BEGIN, "INSERT", END]


def test_what_the_sandbox_counts_is_what_was_sent(app: App, wire: Wire) -> None:
    def work(engine: sa.Engine) -> None:
        write(engine, "a")
        read(engine)
        with engine.connect() as connection:
            connection.execute(sa.insert(items).values(name="b"))
            connection.rollback()
        with engine.connect() as connection, connection.begin_nested():
            connection.execute(sa.insert(items).values(name="c"))
        read(engine)

    requests = steady(app, wire, work)
    # SAVEPOINT and RELEASE of begin_nested() are the application's own statements.
    nested = 2

    assert requests.stats.round_trips == len(requests.control) - nested
    assert requests.stats.statements == len(requests.sent) - requests.stats.round_trips


EXPECTED = {
    # Sandboxed, SQLAlchemy's recipe, plain commits without isolation, and DELETEs after those.
    "psycopg": (7, 10, 8, 9),
    "psycopg2": (7, 10, 8, 9),
    "asyncpg": (7, 10, 8, 9),
}


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_whole_test_takes_no_more_round_trips_than_plain_commits_or_the_recipe(
    driver: str,
    server: EmbeddedPostgres,
    wire: Wire,
    make_database: Callable[[str, sa.MetaData], str],
) -> None:
    def make_url(name: str) -> str:
        database = f"round_trips_{driver}_{name.replace(' ', '_')}"
        return through(wire, server, driver, make_database(database, Base.metadata))

    def count(contender: Contender) -> list[str]:
        for _ in range(WARM_UP):
            contender.run()
        before = len(wire.requests)
        contender.run()
        return wire.requests[before:]

    contest: contextlib.AbstractContextManager[list[Contender]]
    contest = one_loop_contenders(make_url) if driver == "asyncpg" else sync_contenders(make_url)
    with contest as contenders:
        sent = {contender.name: count(contender) for contender in contenders}
    sandbox.stop()

    counts = {name: len(requests) for name, requests in sent.items()}
    assert counts[SANDBOXED] <= counts[PLAIN] <= counts[RECIPE], sent
    assert tuple(counts[name] for name in (SANDBOXED, RECIPE, PLAIN, DELETE)) == EXPECTED[driver]

"""Fixtures of the benchmarks, and the tables at the end of their run."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

import sandbox
from sandbox.databases.backends import EmbeddedPostgres
from tests.benchmarks.application import Base
from tests.benchmarks.comparison import COMPARISONS, Comparison
from tests.benchmarks.contenders import Contender

if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter

ROUNDS = 300
WARM_UP = 20


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Timings beside other tests, or in two processes at once, would tell nothing."""
    if config.getoption("benchmark_only", default=False):
        return None
    return collection_path.name.startswith("test_") or None


def pytest_terminal_summary(terminalreporter: TerminalReporter, config: pytest.Config) -> None:
    """Print the comparisons after pytest-benchmark's own tables."""
    comparisons = config.stash.get(COMPARISONS, [])
    if comparisons:
        terminalreporter.section("side by side")
    for comparison in comparisons:
        terminalreporter.write_line("")
        for line in comparison.lines():
            terminalreporter.write_line(line)


_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def make_url(server: EmbeddedPostgres) -> Callable[[str], Callable[[str], str]]:
    """For a driver, a function that makes a database with the tables and returns its URL."""

    def of_driver(driver: str) -> Callable[[str], str]:
        def make(name: str) -> str:
            database = f"bench_{next(_numbers)}"
            server.create_database(database)
            _create_tables(server.url(database, "postgresql+psycopg"))
            return server.url(database, f"postgresql+{driver}")

        return make

    return of_driver


@pytest.fixture(scope="module")
def make_sqlite_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """The same for files, in memory if there is such a place: a disk is not what we measure."""
    memory = Path("/dev/shm")
    base = memory if memory.is_dir() else tmp_path_factory.getbasetemp()
    with tempfile.TemporaryDirectory(prefix="sandbox-bench-", dir=base) as directory:

        def make(name: str) -> str:
            url = f"sqlite:///{directory}/{next(_numbers)}.db"
            _create_tables(url)
            return url

        yield make


def _create_tables(url: str) -> None:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    Base.metadata.create_all(engine)


@pytest.fixture
def compare(
    benchmark: Any, request: pytest.FixtureRequest
) -> Callable[[str, list[Contender]], None]:
    """Run contenders in alternation and show them side by side when all is over."""

    def run(group: str, contenders: list[Contender], rounds: int = ROUNDS) -> None:
        for contender in contenders * WARM_UP:
            contender.run()
        comparison = Comparison(group, contenders)
        request.config.stash.setdefault(COMPARISONS, []).append(comparison)
        benchmark.group = group
        benchmark.name = "all of them, in alternation"
        benchmark.pedantic(comparison.alternate, rounds=rounds)
        benchmark.extra_info["median_ms"] = comparison.medians

    return run


@pytest.fixture
def measure(benchmark: Any) -> Callable[[str, Contender], None]:
    """One contender by itself, in the table of pytest-benchmark."""

    def run(group: str, contender: Contender, rounds: int = ROUNDS) -> None:
        benchmark.group = group
        benchmark.name = contender.name
        benchmark.pedantic(contender.run, rounds=rounds, warmup_rounds=WARM_UP)

    return run


@pytest.fixture(scope="module", autouse=True)
def stopped() -> Iterator[None]:
    yield
    sandbox.stop()

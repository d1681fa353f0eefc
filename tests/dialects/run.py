"""Run SQLAlchemy's dialect suite plain and sandboxed, and compare: ``./dev dialects [driver …]``.

Ends with 1 if a case that passes plain does not pass sandboxed and is not in exceptions.py, or is
there without need. Each run is a process, with a database and a directory of its own, and no pytest
plugin but those it needs; two go on at a time.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psycopg

from sandbox.databases.backends import EmbeddedPostgres
from tests.dialects.comparison import Comparison, read
from tests.dialects.exceptions import EXCEPTIONS

HERE = Path(__file__).parent
DEFAULT = ("psycopg", "asyncpg", "pysqlite")
DRIVERS = (*DEFAULT, "psycopg2", "psycopg_async", "aiosqlite")
SQLITE = ("pysqlite", "aiosqlite")
TIMEOUT = 600
"""Seconds for one run, which takes 20 to 70, on a busy machine four times that."""

# What the suite expects of a PostgreSQL database (its README.unittests).
PREPARE = (
    "CREATE SCHEMA test_schema",
    "CREATE SCHEMA test_schema_2",
    "CREATE EXTENSION citext",
    "CREATE EXTENSION hstore",
)


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the suite."""

    driver: str
    sandboxed: bool
    outcomes: Path
    seconds: float
    problem: str | None

    @property
    def title(self) -> str:
        """What it is called in messages."""
        return f"{self.driver}, {'sandboxed' if self.sandboxed else 'plain'}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev dialects", description=__doc__)
    parser.add_argument("drivers", nargs="*", metavar="driver", help=", ".join(DRIVERS))
    parser.add_argument("-k", dest="only", help="only these cases, as for pytest")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    arguments = parser.parse_args()
    drivers = tuple(arguments.drivers) or DEFAULT
    if unknown := [driver for driver in drivers if driver not in DRIVERS]:
        parser.error(f"no such driver: {', '.join(unknown)}; there are {', '.join(DRIVERS)}")
    with tempfile.TemporaryDirectory(prefix="dialects") as directory:
        runs = _run_all(drivers, Path(directory), arguments.only, arguments.jobs)
        return _report(drivers, runs, partial=arguments.only is not None)


def _run_all(drivers: tuple[str, ...], directory: Path, only: str | None, jobs: int) -> list[Run]:
    with EmbeddedPostgres.start() as server, ThreadPoolExecutor(jobs) as executor:
        futures = [
            executor.submit(_run, server, driver, sandboxed, directory, only)
            for driver in drivers
            for sandboxed in (True, False)  # the longer one first
        ]
        return [future.result() for future in futures]


def _run(
    server: EmbeddedPostgres, driver: str, sandboxed: bool, directory: Path, only: str | None
) -> Run:
    name = f"{driver}-{'sandboxed' if sandboxed else 'plain'}"
    cwd = directory / name
    cwd.mkdir()
    outcomes = directory / f"{name}.jsonl"
    command = [sys.executable, "-m", "pytest", "-c", str(HERE / "suite.ini")]
    command += ["--rootdir", str(HERE), "--confcutdir", str(HERE)]
    for plugin in ("pytest_timeout", "sqlalchemy.testing.plugin.pytestplugin"):
        command += ["-p", plugin]
    command += ["-p", "tests.dialects.plugin", "--dburi", _url(server, driver, name)]
    command += ["--outcomes", str(outcomes), str(HERE / "suite.py")]
    command += ["--sandboxed"] if sandboxed else []
    command += ["-k", only] if only is not None else []
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")},
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONPATH": str(HERE.parent.parent),
        # The suite takes isolation levels out of sets: the same ones in both runs.
        "PYTHONHASHSEED": "0",
    }
    began = time.perf_counter()
    problem = None
    try:
        done = subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=TIMEOUT
        )
        # 1: some cases failed, which is for the comparison to judge.
        if done.returncode not in {0, 1} or not outcomes.exists():
            problem = f"ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}"
    except subprocess.TimeoutExpired:
        problem = f"was not done after {TIMEOUT} s"
    return Run(driver, sandboxed, outcomes, time.perf_counter() - began, problem)


def _url(server: EmbeddedPostgres, driver: str, database: str) -> str:
    if driver in SQLITE:
        # Relative: the suite makes a file's name of the words in it.
        return f"sqlite+{driver}:///suite.db"
    server.create_database(database)
    with psycopg.connect(server.url(database), autocommit=True) as connection:
        for statement in PREPARE:
            connection.execute(statement)
    return server.url(database, f"postgresql+{driver}")


def _report(drivers: tuple[str, ...], runs: list[Run], *, partial: bool) -> int:
    found = {(run.driver, run.sandboxed): run for run in runs}
    problems = [f"{run.title}: {run.problem}" for run in runs if run.problem is not None]
    print(f"{'driver':15}{'passed plain':>14}{'sandboxed':>11}{'exceptions':>12}{'seconds':>15}")
    for driver in drivers:
        plain, sandboxed = found[driver, False], found[driver, True]
        if plain.problem is not None or sandboxed.problem is not None:
            continue
        cases = read(plain.outcomes)
        excuses = [e for e in EXCEPTIONS if not partial or e.case in cases]
        result = Comparison.of(driver, cases, read(sandboxed.outcomes), excuses)
        seconds = f"{plain.seconds:.0f} + {sandboxed.seconds:.0f}"
        print(
            f"{driver:15}{result.passed_plain:14}{result.passed_sandboxed:11}"
            f"{len(result.excused):12}{seconds:>15}"
        )
        for excused in result.excused:
            print(f"    {excused}")
        problems += [f"{driver}: {complaint}" for complaint in result.complaints]
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

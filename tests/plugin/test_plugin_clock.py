"""How the database's clock is arranged, by the settings of a run."""

from __future__ import annotations

import re
from pathlib import Path

import psycopg
import pytest

from tests.plugin.conftest import Project

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "clock.md"

MOVES = """
    import datetime as dt
    import sqlalchemy as sa
    import sandbox
    from app import add, engine

    def now():
        with engine.begin() as connection:
            return connection.scalar(sa.text("SELECT now()"))

    def test_it_moves():
        add("Ada")
        first = now()
        add("Grace")
        assert now() > first

    def test_it_is_set():
        at = dt.datetime(2001, 2, 3, tzinfo=dt.UTC)
        with sandbox.clock(at):
            assert now() == at
"""

STANDS = """
    import datetime as dt
    import pytest
    import sandbox
    from app import add, engine

    def test_it_cannot_be_set():
        add("Ada")
        with pytest.raises(sandbox.errors.UnsupportedInSandboxError, match="sandbox_clock"):
            sandbox.clock(dt.datetime(2001, 2, 3, tzinfo=dt.UTC)).__enter__()
"""


def test_the_database_of_a_run_follows(project: Project) -> None:
    project.passes(MOVES, 2)


def test_each_worker_has_one_that_follows(project: Project) -> None:
    project.passes(MOVES, 2, "-n2")


def test_it_can_be_turned_off(project: Project) -> None:
    project.passes(STANDS, 1, "--sandbox-clock=off")


def test_a_named_database_is_left_as_it_is(project: Project, named_database: str) -> None:
    project.passes(STANDS, 1, f"--sandbox-url={named_database}")
    assert installed(named_database) == (False, False)


@pytest.mark.parametrize(("choice", "workers"), [("replace", ()), ("shadow", ("-n2",))])
def test_a_named_database_follows_if_it_is_asked_to(
    project: Project, named_database: str, choice: str, workers: tuple[str, ...]
) -> None:
    url = f"--sandbox-url={named_database}"
    project.passes(MOVES, 2, url, f"--sandbox-clock={choice}", *workers)
    assert installed(named_database) == (choice == "replace", choice == "shadow")
    project.passes(MOVES, 2, url)
    project.passes(STANDS, 1, url, "--sandbox-clock=off")
    assert installed(named_database) == (False, False)


def installed(url: str) -> tuple[bool, bool]:
    """Whether now() is replaced, and whether there is a shadow."""
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        (row,) = connection.execute(
            "SELECT prolang <> 12, to_regnamespace('sandbox_clock') IS NOT NULL"
            " FROM pg_proc WHERE oid = 'pg_catalog.now()'::regprocedure"
        ).fetchall()
    return row


def test_a_choice_that_is_not_known_is_refused(project: Project) -> None:
    project.write("test_it.py", MOVES)
    result = project.run("--sandbox-clock=sundial")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*sandbox_clock: 'sundial' is not known*'shadow'*"])


@pytest.mark.parametrize("choice", ["replace", "shadow"])
def test_sqlite_is_refused(project: Project, choice: str) -> None:
    project.write("test_it.py", MOVES)
    result = project.run("--sandbox-backend=sqlite", f"--sandbox-clock={choice}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*SQLite's functions for the time cannot be replaced*"])


def test_the_example_of_the_documentation(project: Project) -> None:
    page, flags = PAGE.read_text(), re.MULTILINE | re.DOTALL
    for name, text in re.findall(r'^```\w+ title="(\S+)"\n(.*?)^```', page, flags):
        project.write(name, text)
    frozen = re.findall(r"^    ```python\n(.*?)^    ```", page, flags)
    assert len(frozen) == 1
    project.write(
        "test_frozen.py",
        "import sandbox\nfrom freezegun import freeze_time\n"
        "from subscriptions import expired, subscribe\n\ndef test_it():\n" + frozen[0],
    )
    result = project.run()
    result.assert_outcomes(passed=3)

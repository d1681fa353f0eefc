"""The comparison in ``docs/explanation/fidelity.md``: every cell is a run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

import sandbox
from sandbox.databases.backends import EmbeddedPostgres
from sandbox.databases.clock import REPLACE_SQL
from tests.fidelity import schema
from tests.fidelity.page import compare_table
from tests.fidelity.rows import SAME, Row
from tests.fidelity.scenarios import COMMIT, INTERLEAVING, ROWS
from tests.fidelity.worlds import Ours, Production, Recipe, outcome_of

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "explanation" / "fidelity.md"

DJANGO = "Django TestCase"
PEERS = {Recipe.name: "recipe", DJANGO: "django"}
WORLDS = (Production.name, Recipe.name, DJANGO, Ours.name)

Outcome = Callable[[str, Row], str]


def _database(server: EmbeddedPostgres, world: str) -> str:
    name = f"test_fidelity_{world.split(maxsplit=1)[0].lower()}"
    server.create_database(name)
    url = server.url(name)
    if world == Ours.name:
        # As in the databases that the sandbox makes itself.
        with psycopg.connect(url) as connection:
            connection.execute(REPLACE_SQL)
    schema.create(url)
    return name


@pytest.fixture(scope="module")
def databases(server: EmbeddedPostgres) -> Iterator[dict[str, str]]:
    """A scratch database for each world, dropped afterwards."""
    names = {world: _database(server, world) for world in WORLDS}
    yield {world: server.url(name) for world, name in names.items()}
    for name in names.values():
        server.drop_database(name)


def _column(peer: str, url: str) -> dict[str, str]:
    # Whatever a peer leaves behind would be reported as this process's.
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.fidelity.peers", peer, url],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert ran.returncode == 0, ran.stderr
    column: dict[str, str] = json.loads(ran.stdout)
    return column


@pytest.fixture(scope="module")
def outcome(databases: dict[str, str]) -> Outcome:
    """What came of a row in a world; run once, when it is first asked for."""
    columns: dict[str, dict[str, str]] = {world: {} for world in WORLDS}

    def get(world: str, row: Row) -> str:
        column, url = columns[world], databases[world]
        if world in PEERS and not column:
            column.update(_column(PEERS[world], url))
        elif row.name not in column:
            here = Ours(url) if world == Ours.name else Production(url)
            try:
                column[row.name] = outcome_of(here, row.scenario)
            finally:
                here.close()
                sandbox.stop()
        return column[row.name]

    return get


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_what_comes_of_it(row: Row, world: str, outcome: Outcome) -> None:
    assert outcome(world, row) == row.expected(world)


def test_a_sandbox_never_leaks_and_is_never_wrong_in_silence() -> None:
    """The differences that are left have to be named on the page."""
    silent = {
        row.name for row in ROWS if row.ours != SAME and not row.ours.endswith(("Error", "Warning"))
    }
    page = PAGE.read_text()
    named = page[page.index("## What remains different") :]
    assert {name for name in silent if f"<!-- {name} -->" not in named} == set()
    assert not any("LEAK" in row.ours for row in ROWS)


# -- the page --------------------------------------------------------------------------------------


def _cell(text: str, production: str) -> str:
    if text == production:
        return SAME
    text = re.sub(r"\bLEAK\b", "**LEAK**", text)
    if text.endswith("Error") and hasattr(sandbox.errors, text):
        return f"refused: [`{text}`](../reference/errors.md#{text.lower()})"
    return re.sub(
        r"\b[A-Z]\w+(?:Violation|Transaction|Error|Specification|Termination)\b", r"`\g<0>`", text
    )


def _table(rows: tuple[Row, ...], outcome: Outcome) -> str:
    lines = [
        f"| the application | {' | '.join(WORLDS)} |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        production = outcome(Production.name, row)
        cells = [_cell(production, "")]
        cells += [_cell(outcome(world, row), production) for world in WORLDS[1:]]
        lines.append(f"| {row.title} | {' | '.join(cells)} |")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("name", "rows"), [("commit", COMMIT), ("interleaving", INTERLEAVING)], ids=lambda p: p
)
def test_the_page_has_what_the_runs_gave(
    name: str, rows: tuple[Row, ...], outcome: Outcome
) -> None:
    begin = f"<!-- table {name}: made by tests/fidelity -->"
    compare_table(PAGE, begin, f"<!-- end of {name} -->", _table(rows, outcome))


def test_the_comparison_is_with_a_django_that_is_supported() -> None:
    import django

    assert django.VERSION >= (5, 2)

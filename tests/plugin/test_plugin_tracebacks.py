"""Failing tests show the application's code, not ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.plugin.conftest import Project

FAILING = """
import threading

import pytest
import sandbox
import sqlalchemy as sa
import app

@pytest.fixture(scope="session")
def seeds():
    app.add("seed")

def test_of_the_database():
    with app.engine.begin() as connection:
        connection.execute(sa.text("SELECT * FROM nowhere"))

def test_of_a_fixture(seeds):
    pass

def test_of_a_thread(monkeypatch):
    said = []
    monkeypatch.setattr(threading, "excepthook", said.append)
    thread = threading.Thread(target=app.add, args=["Emma"])
    thread.start()
    thread.join()
    raise said[0].exc_value

def test_of_ownership():
    sandbox.checkout(app.engine)
"""

MARK = "sandbox/"
"""What the place of our own frames has in its path, and no file of the project."""


def _frames(result: pytest.RunResult) -> list[str]:
    """Places in files of ours, as pytest writes them: ``path:line: …``."""
    return [line for line in result.outlines if MARK in line and ".py:" in line]


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_a_traceback_shows_no_frame_of_the_sandbox(project: Project, driver: str) -> None:
    """psycopg raises from Python, psycopg2 from C: its innermost frame is one of ours."""
    project.settings(
        f"""
        sandbox_env = "DATABASE_URL=postgresql+{driver}"
        sandbox_migrations = "metadata:models:Base"
        sandbox_autouse = true
        """
    )
    project.write("test_it.py", FAILING)
    result = project.run("-p", "no:randomly")
    result.assert_outcomes(failed=3, errors=1)
    result.stdout.fnmatch_lines(["E *UndefinedTable*"])
    result.stdout.fnmatch_lines(["E *AlreadyOwnerError*"])
    assert len([line for line in result.outlines if "OwnershipError: thread" in line]) >= 2
    assert _frames(result) == []
    assert "def _find_for_others" not in result.stdout.str()


def test_the_full_trace_shows_them(project: Project) -> None:
    project.write("test_it.py", FAILING)
    result = project.run("--full-trace", "-k", "of_the_database")
    assert any("connection/cursor.py" in line for line in _frames(result))


def test_an_error_inside_the_sandbox_itself_is_shown(project: Project) -> None:
    """One that neither the database nor the application can have made is a bug of ours."""
    project.write(
        "test_it.py",
        """
        from sandbox.connection import virtual
        import app

        def test_it(monkeypatch):
            app.add("Emma")
            monkeypatch.setattr(virtual.VirtualConnection, "_bind", None)
            app.add("Persuasion")
        """,
    )
    result = project.run()
    result.assert_outcomes(failed=1)
    assert any("connection/cursor.py" in line for line in _frames(result))

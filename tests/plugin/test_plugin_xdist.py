from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.plugin.conftest import COUNTS_CALLS, Project, summary
from tests.plugin.test_plugin_application import TWICE

MANY = """
import os, app, pytest, pathlib

@pytest.mark.parametrize("n", range(10))
def test_alone(n):
    assert app.names() == []
    app.add("ann")
    name = os.environ["DATABASE_URL"].partition("?")[0].rpartition("/")[2]
    with open(os.environ["PYTEST_XDIST_WORKER"], "a") as seen:
        seen.write(name + "\\n")
"""


def _eventually_gone(path: Path) -> None:
    deadline = time.monotonic() + 10
    while path.exists():
        assert time.monotonic() < deadline, f"{path} is still there"
        time.sleep(0.005)


def test_each_worker_has_a_database_on_one_server(project: Project) -> None:
    result = project.passes(MANY, 10, "-n2")
    result.stdout.fnmatch_lines(["sandbox: PostgreSQL *a database for each worker*"])
    assert summary(result)["tests"] == 10
    assert summary(result)["statements"] == 20
    used = [set((project.path / name).read_text().split()) for name in ("gw0", "gw1")]
    assert [len(names) for names in used] == [1, 1]
    assert used[0] != used[1]


@pytest.mark.parametrize("mode", ["loadscope", "worksteal"])
def test_the_mode_of_distribution_does_not_matter(project: Project, mode: str) -> None:
    project.passes(TWICE, 2, "-n2", f"--dist={mode}")


def test_no_workers_is_one_process(project: Project) -> None:
    result = project.passes(TWICE, 2, "-n0")
    result.stdout.fnmatch_lines(["sandbox: PostgreSQL *database sandbox_run_*"])


def test_it_runs_where_xdist_is_switched_off(project: Project) -> None:
    project.passes(TWICE, 2, "-p", "no:xdist")


def test_sqlite_workers_have_a_file_each_and_leave_none(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = project.path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    result = project.passes(MANY, 10, "-n2", "--sandbox-backend=sqlite")
    assert summary(result)["tests"] == 10
    assert list(temporary.glob("sandbox-*")) == []


def test_workers_that_start_late_need_no_server_from_the_controller(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SANDBOX_SERVER")
    project.settings("sandbox_autouse = true")
    project.passes(
        """
        import sqlalchemy as sa

        def test_connection(sandbox_connection):
            assert sandbox_connection.execute(sa.text("SELECT 1")).scalar() == 1
        """,
        1,
        "-n1",
    )


CRASH = """
import os, app, pathlib, pytest, urllib.parse

@pytest.mark.parametrize("n", range(4))
def test_crash(n):
    query = os.environ["DATABASE_URL"].partition("?")[2]
    pathlib.Path("socket").write_text(urllib.parse.parse_qs(query)["host"][0])
    assert app.names() == []
    app.add("ann")
    if n == 1:
        os._exit(1)
"""


def test_a_worker_that_crashes_is_replaced_and_nothing_stays(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SANDBOX_SERVER")
    project.write("test_it.py", CRASH)
    result = project.run("-n1", "-p", "no:randomly")
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(
        ["sandbox: PostgreSQL*started in *", "*worker 'gw0' crashed*", "sandbox: * isolated*"]
    )
    _eventually_gone(Path((project.path / "socket").read_text()))


def test_a_crash_without_workers_leaves_nothing_either(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SANDBOX_SERVER")
    project.write("test_it.py", CRASH)
    assert project.run("-p", "no:randomly").ret == 1
    _eventually_gone(Path((project.path / "socket").read_text()))


def test_files_of_a_run_that_was_killed_go_with_the_next(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = project.path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    project.write("test_it.py", "import os\n\ndef test_crash():\n    os._exit(1)\n")
    project.run("--sandbox-backend=sqlite")
    assert len(list(temporary.glob("sandbox-*"))) == 1
    project.passes(TWICE, 2, "--sandbox-backend=sqlite")
    assert list(temporary.glob("sandbox-*")) == []


def test_a_migration_that_fails_ends_the_run_with_one_message(project: Project) -> None:
    project.write("schema.sql", "CREATE TABLE users (id int);\nCREATE TALBE other (id int);\n")
    project.write("test_it.py", MANY)
    result = project.run("-n2", "-o", "sandbox_migrations=sql:schema.sql")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    said = result.stderr.str()
    assert said.count("migrations 'sql:schema.sql' failed") == 1
    assert "TALBE" in said
    assert "Traceback" not in said + result.stdout.str()


def test_workers_build_the_schema_of_one_named_database_once(
    project: Project, named_database: str
) -> None:
    project.write("seed.py", COUNTS_CALLS)
    project.write("test_it.py", MANY)
    result = project.run(
        "-n2", "--sandbox-url", named_database, "-o",
        "sandbox_migrations=metadata:models:Base\ncall:seed:build",
    )  # fmt: skip
    result.assert_outcomes(passed=10)
    assert (project.path / "built").read_text() == "x"
    assert os.environ.get("SANDBOX_FILES") is None

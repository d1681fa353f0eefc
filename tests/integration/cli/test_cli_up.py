from __future__ import annotations

import json
import os
import shlex
import signal

import psycopg
import pytest

SCHEMA = "CREATE TABLE book (id integer);"


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_migrated_database_is_there_until_a_signal_and_then_nothing_is(cli, socket_of, how):
    (cli.directory / "schema.sql").write_text(SCHEMA)
    process, facts = cli.up("--migrations", "sql:schema.sql", "--database", "shop_test")
    with psycopg.connect(facts["libpq_url"]) as connection:
        row = connection.execute("SELECT current_database(), count(*) FROM book").fetchone()
    assert row == ("shop_test", 0)
    assert facts["url"].startswith("postgresql+psycopg://")
    assert facts["migrations"] == ["sql:schema.sql"]
    assert alive(facts["pid"])

    process.send_signal(how)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "", "")
    assert not alive(facts["pid"])
    assert not socket_of(facts["libpq_url"]).exists()


def test_for_people_it_prints_lines_to_copy(cli):
    process = cli.start("up", "--driver", "asyncpg", "--env", "SHOP_DATABASE")
    url, psql, export = (process.stdout.readline() for _ in range(3))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert url.startswith("url     postgresql+asyncpg://")
    assert shlex.split(psql)[:2] == ["psql", "psql"]
    assert shlex.split(psql)[2].startswith("postgresql://")
    name, _, value = shlex.split(export)[1].partition("=")
    assert (name, value) == ("SHOP_DATABASE", url.split()[1])
    assert "Ctrl-C" in err


def test_by_tcp_the_url_has_a_password(cli):
    _, facts = cli.up("--tcp")
    assert "@127.0.0.1:" in facts["url"]
    with psycopg.connect(facts["libpq_url"]) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_failing_migration_is_shown_and_its_server_is_gone(cli, socket_of):
    (cli.directory / "schema.py").write_text(
        "import pathlib\n"
        "def build(url):\n"
        "    pathlib.Path('url').write_text(url)\n"
        "    raise LookupError('no seeds here')\n"
    )
    done = cli.run("up", "--migrations", "call:schema:build")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "LookupError: no seeds here" in done.stderr
    assert "schema.py:4" in done.stderr
    assert "Traceback" not in done.stderr
    assert not socket_of((cli.directory / "url").read_text()).exists()


def test_a_signal_in_the_middle_of_a_migration_leaves_nothing(cli, socket_of, eventually):
    (cli.directory / "schema.py").write_text(
        "import os, pathlib, threading\n"
        "def build(url):\n"
        "    pathlib.Path('part').write_text(url)\n"
        "    os.rename('part', 'url')\n"
        "    threading.Event().wait(60)\n"
    )
    process = cli.start("up", "--migrations", "call:schema:build")
    eventually((cli.directory / "url").exists)
    socket = socket_of((cli.directory / "url").read_text())
    assert socket.exists()
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, "")
    assert not socket.exists()


def test_what_takes_long_is_said_and_what_does_not_is_not(cli):
    (cli.directory / "schema.py").write_text(
        "import threading\ndef build(url): threading.Event().wait(1.2)\n"
    )
    process, _ = cli.up("--migrations", "call:schema:build")
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20)[1] == "migrating: call:schema:build …\n"


def test_migrations_find_the_database_in_the_environment_whatever_the_shell_says(cli):
    (cli.directory / "schema.py").write_text(
        "import os\ndef build(url):\n    assert os.environ['DATABASE_URL'] == url\n"
    )
    cli.up("--migrations", "call:schema:build", DATABASE_URL="postgresql://prod/shop")


def test_specs_are_checked_before_anything_starts(cli):
    done = cli.run("up", "--migrations", "alembic:nowhere.ini", "--bindir", "/nonexistent")
    assert done.returncode == 1
    assert "there is no file" in done.stderr
    assert "nowhere.ini" in done.stderr


def test_a_directory_without_a_server_is_refused(cli):
    done = cli.run("up", "--bindir", str(cli.directory))
    assert done.returncode == 1
    assert "holds no PostgreSQL server" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_that_ends_by_itself_is_told(cli):
    process, facts = cli.up()
    os.kill(facts["pid"], signal.SIGQUIT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert out == ""
    assert "ended by itself" in err


def test_options_that_do_not_exist_are_a_usage_error(cli):
    done = cli.run("up", "--no-such-option")
    assert done.returncode == 2
    assert json.dumps("--no-such-option").strip('"') in done.stderr

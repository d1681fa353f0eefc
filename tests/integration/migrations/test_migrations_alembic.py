from __future__ import annotations

import asyncio
import logging
import logging.config
import os
import sqlite3

import pytest
from sqlalchemy.exc import DBAPIError

from sandbox.databases.migrations import parse_source
from sandbox.errors import ConfigurationError, MigrationError


@pytest.fixture
def source(project):
    def parse(spec="alembic:alembic.ini"):
        return parse_source(spec, root=project.root)

    return parse


@pytest.mark.parametrize("env", ["sync", "async"])
@pytest.mark.parametrize("driver", ["", "+pysqlite", "+aiosqlite"])
def test_the_projects_own_env_runs_whatever_the_driver(
    project, source, sqlite_url, tables, env, driver
):
    project.alembic(env)
    project.revision("a1", None, "CREATE TABLE shop (id INTEGER)")
    project.revision("b2", "a1", "CREATE TABLE book (id INTEGER)")
    source("alembic").run(sqlite_url.replace("sqlite", f"sqlite{driver}", 1))
    assert tables(sqlite_url) == {"alembic_version", "shop", "book"}


async def test_an_async_env_runs_inside_a_running_loop(project, source, sqlite_url, tables):
    project.alembic("async")
    project.revision("a1", None, "CREATE TABLE shop (id INTEGER)")
    source().run(sqlite_url)
    assert "shop" in tables(sqlite_url)
    assert asyncio.get_running_loop().is_running()


def test_the_working_directory_does_not_matter(
    project, source, sqlite_url, tables, tmp_path, monkeypatch
):
    project.alembic(before="import shop_settings\n")
    project.write("shop_settings.py", "")
    project.revision("a1", None, "CREATE TABLE shop (id INTEGER)")
    monkeypatch.chdir(tmp_path)
    source().run(sqlite_url)
    assert "shop" in tables(sqlite_url)


def test_a_percent_sign_in_the_url_arrives(project, source, tmp_path, tables):
    url = f"sqlite:///{tmp_path}/50%25.db"
    project.alembic()
    project.revision("a1", None, "CREATE TABLE shop (id INTEGER)")
    source().run(url)
    # SQLAlchemy 2.1 decodes the name of the database, 2.0 takes it as it stands.
    assert [path.name for path in tmp_path.glob("50*.db")] in (["50%.db"], ["50%25.db"])


def test_a_configuration_in_pyproject_is_read(project, source, sqlite_url, tables):
    project.alembic()
    (project.root / "alembic.ini").unlink()
    project.write("pyproject.toml", '[tool.alembic]\nscript_location = "migrations"\n')
    project.revision("a1", None, "CREATE TABLE shop (id INTEGER)")
    source("alembic:pyproject.toml").run(sqlite_url)
    assert "shop" in tables(sqlite_url)


def test_a_target_is_upgraded_to_and_no_further(project, source, sqlite_url, tables):
    project.alembic()
    project.revision("a1", None, "CREATE TABLE shop (id INTEGER)")
    project.revision("b2", "a1", "CREATE TABLE book (id INTEGER)")
    source("alembic:alembic.ini@a1").run(sqlite_url)
    assert tables(sqlite_url) == {"alembic_version", "shop"}


def test_several_heads_are_named_unless_all_are_wanted(project, source, sqlite_url, tables):
    project.alembic()
    project.revision("a1", None, "CREATE TABLE shop (id INTEGER)")
    project.revision("b2", "a1", "CREATE TABLE book (id INTEGER)")
    project.revision("c3", "a1", "CREATE TABLE pen (id INTEGER)")
    with pytest.raises(MigrationError, match="have 2 heads") as caught:
        source().run(sqlite_url)
    text = str(caught.value)
    assert "b2 (step b2)" in text
    assert "c3 (step c3)" in text
    assert "alembic:alembic.ini@heads" in text

    source("alembic:alembic.ini@heads").run(sqlite_url)
    assert {"book", "pen"} < tables(sqlite_url)


def test_a_failing_revision_is_named_with_its_own_error(project, source, sqlite_url):
    project.alembic()
    project.revision("a1", None, "CREATE TABLE shop (id INTEGER)")
    bad = project.revision("b2", "a1", "CREATE TABLE shop (id INTEGER)")
    with pytest.raises(MigrationError) as caught:
        source().run(sqlite_url)
    text = str(caught.value)
    assert f"in revision b2 (step b2), {bad}" in text
    assert "after a1:" in text
    assert "sqlite3.OperationalError: table shop already exists" in text
    assert "CREATE TABLE shop (id INTEGER)" in text
    assert isinstance(caught.value.__cause__, DBAPIError)
    assert isinstance(caught.value.__cause__.orig, sqlite3.OperationalError)


def test_a_failing_env_is_no_revisions_fault(project, source, sqlite_url):
    project.alembic(before="1 / 0\n")
    project.revision("a1", None)
    with pytest.raises(MigrationError, match="outside any revision") as caught:
        source().run(sqlite_url)
    assert "ZeroDivisionError: division by zero" in str(caught.value)


def test_an_env_that_exits_does_not_end_the_process(project, source, sqlite_url):
    project.alembic(before="import sys; sys.exit('DATABASE_URL is not set')\n")
    project.revision("a1", None)
    with pytest.raises(MigrationError, match="DATABASE_URL is not set"):
        source().run(sqlite_url)


def test_an_env_that_migrates_another_database_is_found_out(project, source, sqlite_url, tmp_path):
    project.alembic(
        before='from alembic import context\ncontext.config.set_main_option("sqlalchemy.url", '
        f'"sqlite:///{tmp_path}/other.db")\n'
    )
    project.revision("a1", None, "CREATE TABLE shop (id INTEGER)")
    with pytest.raises(MigrationError, match="takes its URL from somewhere else"):
        source().run(sqlite_url)


def test_an_env_that_reads_the_environment_is_served(
    project, source, sqlite_url, tables, monkeypatch
):
    project.alembic(
        before="import os\nfrom alembic import context\n"
        'context.config.set_main_option("sqlalchemy.url", os.environ["SHOP_DATABASE"])\n'
    )
    project.revision("a1", None, "CREATE TABLE shop (id INTEGER)")
    monkeypatch.setenv("SHOP_DATABASE", sqlite_url)
    source().run(sqlite_url)
    assert "shop" in tables(sqlite_url)


def test_a_revision_that_does_not_exist_is_alembics_own_message(project, source, sqlite_url):
    project.alembic()
    project.revision("a1", None)
    with pytest.raises(MigrationError, match="Can't locate revision identified by 'zz'"):
        source("alembic:alembic.ini@zz").run(sqlite_url)


def test_a_missing_configuration_says_where_it_was_looked_for(project, source):
    with pytest.raises(ConfigurationError, match=r"there is no file .*db.alembic\.ini"):
        source("alembic:db/alembic.ini")


LOGGING = """
[loggers]
keys = root
[handlers]
keys = console
[formatters]
keys =
[logger_root]
level = DEBUG
handlers = console
[handler_console]
class = StreamHandler
args = (sys.stderr,)
level = NOTSET
"""


def test_logging_is_as_before(project, source, sqlite_url, tmp_path):
    project.alembic(
        before="from alembic import context\n"
        "import logging\nfrom logging.config import fileConfig\n"
        "logging.getLogger('shop.born_in_env')\n"
        "fileConfig(context.config.config_file_name)\n",
        ini=LOGGING,
    )
    project.revision("a1", None, "CREATE TABLE shop (id INTEGER)")
    logger = logging.getLogger("shop.service")
    handler = logging.FileHandler(tmp_path / "shop.log", mode="w")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    root = (list(logging.root.handlers), logging.root.level)
    try:
        source().run(sqlite_url)
        logger.info("still here")
        assert (logging.root.handlers, logging.root.level) == root
        assert not logger.disabled
        assert not logging.getLogger("shop.born_in_env").disabled
        assert (tmp_path / "shop.log").read_text() == "still here\n"
        assert "close" not in vars(handler)
    finally:
        logger.removeHandler(handler)
        handler.close()


def test_without_alembic_the_install_command_is_given(project, source, sqlite_url, monkeypatch):
    project.alembic()
    monkeypatch.setitem(__import__("sys").modules, "alembic", None)
    with pytest.raises(ConfigurationError, match=r'pip install "sandbox-orm\[migrations\]"'):
        source().run(sqlite_url)


def test_the_environment_is_left_alone(project, source, sqlite_url):
    project.alembic()
    project.revision("a1", None, "CREATE TABLE shop (id INTEGER)")
    before = dict(os.environ)
    source().run(sqlite_url)
    assert dict(os.environ) == before

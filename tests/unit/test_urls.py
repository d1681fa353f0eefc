from __future__ import annotations

import importlib.util
import tempfile
from typing import TYPE_CHECKING

import pytest

from sandbox.databases import urls
from sandbox.errors import ConfigurationError, UnsafeDatabaseError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://localhost/test",
        "postgresql+psycopg://me:pw@localhost:5433/app_test",
        "postgresql://localhost/test_app",
        "postgresql://localhost/app-ci-42",
        "postgresql://localhost/appTest",
        "postgresql://localhost/testdb2",
        "postgresql://localhost/sandbox_main",
        "postgresql:///?host=/run/pg&dbname=app_tmp",
        "postgresql://test@localhost",
        "mysql+pymysql://root@localhost/app%5Ftest",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite+aiosqlite:///file:shared?mode=memory&cache=shared&uri=true",
        "sqlite:///test.db",
        f"sqlite:///{tempfile.gettempdir()}/app.db",
    ],
)
def test_a_database_for_tests_is_recognised_by_its_name(url):
    assert urls.looks_like_test_database(url)
    urls.refuse_unless_test_database(url)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://localhost/app",
        "postgresql://localhost/latest",
        "postgresql://localhost/precision",
        "postgresql://localhost/testimonials",
        "postgresql://test.example.org/app",
        "postgresql://test:test@localhost/app",
        "postgresql://localhost",
        "postgresql://localhost/test?dbname=app",
        "sqlite:////srv/app.db",
        f"sqlite:///{tempfile.gettempdir()}/../srv/app.db",
    ],
)
def test_a_database_that_may_be_real_is_refused(url):
    assert not urls.looks_like_test_database(url)
    with pytest.raises(UnsafeDatabaseError):
        urls.refuse_unless_test_database(url)
    urls.refuse_unless_test_database(url, allow_any=True)


def test_the_refusal_names_the_database_and_the_way_round_but_never_the_password():
    with pytest.raises(UnsafeDatabaseError) as caught:
        urls.refuse_unless_test_database("postgresql://app:s3cret@db.example.org/shop")
    text = str(caught.value)
    assert "postgresql://app:***@db.example.org/shop" in text
    assert "sandbox_allow_any_database = true" in text
    assert "shop_test" in text
    assert "s3cret" not in text


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:secret@h/d", "postgresql://me:***@h/d"),
        ("postgresql://me:se@cret@h/d", "postgresql://me:***@h/d"),
        ("postgresql://me:se/cret@h/d", "postgresql://me:***@h/d"),
        ("postgresql://me@h:5432/d", "postgresql://me@h:5432/d"),
        ("postgresql://h:5432/d", "postgresql://h:5432/d"),
        ("postgresql://h/d?user=me&password=secret", "postgresql://h/d?user=me&password=***"),
        ("postgresql://h/d?password=secret&x=1", "postgresql://h/d?password=***&x=1"),
        ("not a url", "not a url"),
    ],
)
def test_passwords_are_hidden(url, shown):
    assert urls.hide_password(url) == shown


@pytest.mark.parametrize("url", ["", "app_test", "postgresql:/localhost/x", "://me:secret@h/d"])
def test_what_is_no_url_says_so_without_the_password(url):
    with pytest.raises(ConfigurationError, match="is no database URL") as caught:
        urls.with_driver(url, "psycopg")
    assert "secret" not in str(caught.value)


def test_the_driver_and_the_database_are_exchanged_and_nothing_else():
    url = "postgresql+asyncpg://m%40e:p%2Fw@[::1]:5433/app%20x?host=/run/pg&application_name=a%20b"
    assert urls.with_driver(url, "psycopg") == url.replace("asyncpg", "psycopg")
    assert urls.with_driver(url, None) == url.replace("+asyncpg", "")
    assert urls.with_database(url, "other") == url.replace("app%20x", "other")
    assert urls.driver_of(url) == "asyncpg"
    assert urls.database_name(url) == "app x"


def test_a_database_name_of_any_characters_comes_back():
    url = urls.with_database("postgresql://localhost", "a/b?c%d@e ü+")
    assert urls.database_name(url) == "a/b?c%d@e ü+"


def test_sqlalchemy_reads_the_same_parts():
    make_url = pytest.importorskip("sqlalchemy", "2.1").engine.make_url
    url = urls.with_database("postgresql+psycopg://m%40e:p%2Fw@h:5433/x?host=/run/pg", "a/b?c %")
    read = make_url(url)
    assert (read.database, read.drivername, read.port) == ("a/b?c %", "postgresql+psycopg", 5433)
    assert (read.username, read.password) == ("m@e", "p/w")


def test_the_old_name_of_postgresql_is_understood():
    assert urls.with_driver("postgres://h/d", "psycopg") == "postgresql+psycopg://h/d"


def test_a_synchronous_url_is_made_for_what_is_installed(monkeypatch):
    assert urls.sync_url("sqlite+aiosqlite:///a.db") == "sqlite+pysqlite:///a.db"
    assert urls.sync_url("postgresql+psycopg2://h/d") == "postgresql+psycopg2://h/d"
    assert urls.sync_url("postgresql+asyncpg://h/d") == "postgresql+psycopg://h/d"

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "psycopg" else find(name)
    )
    assert urls.sync_url("postgresql+asyncpg://h/d") == "postgresql+psycopg2://h/d"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r'pip install "psycopg\[binary\]"'):
        urls.sync_url("postgresql+asyncpg://h/d")


def test_options_of_asyncpg_do_not_reach_libpq():
    url = "postgresql+asyncpg://h/d?ssl=require&prepared_statement_cache_size=0&host=/run/pg"
    assert urls.sync_url(url) == "postgresql+psycopg://h/d?sslmode=require&host=/run/pg"
    assert urls.libpq_url(url) == "postgresql://h/d?sslmode=require&host=/run/pg"


def test_an_asyncio_url_keeps_psycopg_which_serves_both():
    assert urls.async_url("postgresql+psycopg://h/d") == "postgresql+psycopg://h/d"
    assert urls.async_url("postgresql+psycopg2://h/d") == "postgresql+asyncpg://h/d"
    assert urls.async_url("sqlite:///a.db") == "sqlite+aiosqlite:///a.db"


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite://", None),
        ("sqlite:///:memory:", None),
        ("sqlite:///file:x?mode=memory&uri=true", None),
        ("sqlite:///rel.db", "rel.db"),
        ("sqlite:////abs.db", "/abs.db"),
        ("sqlite:///file:/abs.db?uri=true", "/abs.db"),
    ],
)
def test_the_file_of_an_sqlite_url(url, path):
    assert urls.sqlite_path(url) == path


def test_a_link_out_of_the_temporary_directory_is_followed(tmp_path: Path):
    link = tmp_path / "link"
    link.symlink_to("/srv")
    assert not urls.looks_like_test_database(f"sqlite:///{link}/app.db")

"""A started server: how it is reached, what it is set to, what it does with databases."""

from __future__ import annotations

import os
import signal
import stat
import sys
from pathlib import Path

import asyncpg
import psycopg
import psycopg2
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from sandbox.databases.backends import EmbeddedPostgres
from sandbox.databases.backends.cluster import ServerInfo
from sandbox.errors import ConfigurationError, SandboxError, ServerStartError

# SQLAlchemy 2.0 takes the database of a URL as it stands; 2.1 decodes it, as libpq does.
DECODES = tuple(map(int, sa.__version__.split(".")[:2])) >= (2, 1)
ODD = "odd näme %/?#&'\"" if DECODES else "plain"
DATABASE = sa.text("SELECT current_database()")


@pytest.fixture(scope="module")
def tcp_server():
    with EmbeddedPostgres.start(tcp=True) as running:
        yield running


@pytest.fixture(params=["socket", "tcp"])
def either(request, server, tcp_server):
    return server if request.param == "socket" else tcp_server


@pytest.fixture
def deep(place):
    """A root whose path is longer than that of a socket may be."""
    path = place / ("d" * 60) / ("e" * 60)
    path.mkdir(parents=True)
    path.parent.chmod(0o711)
    path.chmod(0o711)
    yield path
    path.rmdir()
    path.parent.rmdir()


@pytest.fixture
def odd_database(either):
    either.create_database(ODD)
    yield ODD
    either.drop_database(ODD)


def show(server: EmbeddedPostgres, *names: str) -> list[str]:
    with psycopg.connect(server.url(), autocommit=True) as connection:
        return [connection.execute(f"SHOW {name}").fetchone()[0] for name in names]  # type: ignore[index]


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_sqlalchemy_connects_with_every_sync_driver(either, odd_database, driver):
    engine = sa.create_engine(either.url(odd_database, f"postgresql+{driver}"))
    try:
        with engine.connect() as connection:
            assert connection.scalar(DATABASE) == ODD
    finally:
        engine.dispose()


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_sqlalchemy_connects_with_every_async_driver(either, odd_database, driver):
    engine = create_async_engine(either.url(odd_database, f"postgresql+{driver}"))
    try:
        async with engine.connect() as connection:
            assert await connection.scalar(DATABASE) == ODD
    finally:
        await engine.dispose()


async def test_the_plain_url_is_one_for_every_driver(either, odd_database):
    with psycopg.connect(either.url(odd_database)) as connection:
        assert connection.info.dbname == ODD
    old = psycopg2.connect(either.url(odd_database))
    assert old.info.dbname == ODD
    old.close()
    other = await asyncpg.connect(either.url(odd_database))
    assert await other.fetchval("SELECT current_database()") == ODD
    await other.close()


def test_it_says_what_it_is(server):
    assert show(server, "server_version")[0].split()[0] == server.version
    assert (server.bindir / "postgres").is_file()
    assert Path(f"/proc/{server.pid}").exists()
    assert 0 < server.started_in < 60
    assert server.host == str(server.run_dir / "sock")


def test_nothing_waits_for_a_disk(server):
    names = ("fsync", "synchronous_commit", "full_page_writes", "autovacuum", "jit")
    assert show(server, *names) == ["off"] * 5
    if int(server.version.split(".")[0]) >= 18:
        assert show(server, "io_method", "data_checksums") == ["sync", "off"]


def test_shared_memory_goes_with_the_directory(server):
    assert show(server, "dynamic_shared_memory_type") == ["mmap"]


def test_results_are_the_same_on_every_machine(server):
    assert show(server, "server_encoding", "timezone", "lc_messages") == ["UTF8", "UTC", "C"]
    with psycopg.connect(server.url()) as connection:
        ordered = connection.execute(
            "SELECT string_agg(w, '' ORDER BY w) FROM (VALUES ('b'), ('B'), ('a')) v(w)"
        ).fetchone()
        assert ordered == ("Bab",)


def test_the_settings_of_the_user_go_over_ours(place):
    mine = {
        "jit": "on",
        "Work_Mem": "77MB",
        "app.odd": "it's \\ 1\n2",
        "max_prepared_transactions": "5",
    }
    with EmbeddedPostgres.start(root=place, settings=mine) as server:
        assert show(server, "jit", "work_mem", "app.odd", "max_prepared_transactions") == [
            "on",
            "77MB",
            "it's \\ 1\n2",
            "5",
        ]


def test_alter_system_has_its_say(place):
    with EmbeddedPostgres.start(root=place) as server:
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET jit = on")
            connection.execute("SELECT pg_reload_conf()")
        assert show(server, "jit") == ["on"]


def test_the_callers_environment_does_not_reach_the_server(place, monkeypatch):
    foreign = {
        "PGPORT": "1",
        "PGDATA": "/nowhere",
        "TZ": "Asia/Tokyo",
        "PGCLIENTENCODING": "LATIN1",
    }
    for name, value in foreign.items():
        monkeypatch.setenv(name, value)
    with EmbeddedPostgres.start(root=place) as server:
        monkeypatch.undo()
        assert show(server, "port", "timezone", "client_encoding") == ["5432", "UTC", "UTF8"]


def test_only_its_user_reaches_the_socket(server):
    assert stat.S_IMODE(Path(server.host).stat().st_mode) == 0o700
    assert show(server, "listen_addresses") == [""]


def test_the_port_needs_the_password_of_the_run(tcp_server):
    assert tcp_server.host == "127.0.0.1"
    assert show(tcp_server, "listen_addresses") == ["127.0.0.1"]
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(host="127.0.0.1", port=tcp_server.port, user="sandbox", dbname="postgres")


def test_the_server_is_not_root(server):
    owner = Path(f"/proc/{server.pid}").stat().st_uid
    assert owner != 0
    groups = Path(f"/proc/{server.pid}/status").read_text().split("Groups:")[1].split("\n")[0]
    assert "0" not in groups.split()
    if os.geteuid():
        assert owner == os.geteuid()


def test_a_long_path_has_a_short_socket(deep):
    with EmbeddedPostgres.start(root=deep) as server:
        assert server.run_dir.is_relative_to(deep)
        assert len(server.host) < 80
        assert show(server, "fsync") == ["off"]
    assert not Path(server.host).exists()


def test_a_short_socket_goes_with_a_run_that_is_swept(deep):
    server = EmbeddedPostgres.start(root=deep)
    os.kill(ServerInfo.read(server.run_dir / "info.json").keeper, signal.SIGKILL)
    server.close()
    assert not Path(server.host).exists()
    assert not server.run_dir.exists()


def test_a_database_is_made_found_and_dropped(server):
    assert not server.database_exists("one")
    server.create_database("one")
    assert server.database_exists("one")
    server.drop_database("one")
    assert not server.database_exists("one")
    server.drop_database("one")


def test_a_database_is_a_copy_of_its_template(server):
    server.create_database("original")
    with psycopg.connect(server.url("original")) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    server.create_database("copy", template="original")
    with psycopg.connect(server.url("copy")) as connection:
        assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)
    server.drop_database("original")
    server.drop_database("copy")


def test_a_database_in_use_is_dropped_without_force(server):
    server.create_database("busy")
    user = psycopg.connect(server.url("busy"), autocommit=True)
    with psycopg.connect(server.url(), autocommit=True) as other:
        other.execute("ALTER DATABASE busy IS_TEMPLATE true")
    server.drop_database("busy")
    assert not server.database_exists("busy")
    with pytest.raises(psycopg.OperationalError):
        user.execute("SELECT 1")
    user.close()


def test_what_cannot_be_made_says_why(server):
    server.create_database("taken")
    with pytest.raises(SandboxError, match=r"'taken' exists already"):
        server.create_database("taken")
    with pytest.raises(SandboxError, match=r"no template 'nowhere'"):
        server.create_database("other", template="nowhere")
    with pytest.raises(ConfigurationError, match="1 to 63 bytes"):
        server.create_database("ä" * 32)
    with pytest.raises(ConfigurationError, match="belongs to the server"):
        server.drop_database("postgres")
    server.drop_database("taken")


def test_the_admin_connection_survives_its_own_end(server):
    assert server.database_exists("postgres")
    with psycopg.connect(server.url(), autocommit=True) as other:
        other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = 'postgres' AND pid <> pg_backend_pid()"
        )
    assert server.database_exists("postgres")


def test_without_psycopg_it_runs_and_says_what_it_lacks(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with EmbeddedPostgres.start(root=place) as server:
        for manage in (server.create_database, server.drop_database, server.database_exists):
            with pytest.raises(SandboxError, match=r'psycopg.*pip install "sandbox-orm\[postgres'):
                manage("any")
    with pytest.raises(ServerStartError, match=r'psycopg.*pip install "sandbox-orm\[postgres'):
        EmbeddedPostgres.start(root=place, tcp=True)


def test_closing_twice_is_closing_once(place):
    server = EmbeddedPostgres.start(root=place)
    server.close()
    assert not server.run_dir.exists()
    server.close()
    with pytest.raises(ServerStartError, match="no embedded server"):
        EmbeddedPostgres.attach(server.run_dir)

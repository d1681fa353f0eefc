"""The first start on a machine, and what is kept of it for the others."""

from __future__ import annotations

import os
import shutil

import psycopg
import pytest

from sandbox.databases.backends import EmbeddedPostgres, binaries, cluster, relocation, storage


@pytest.fixture
def counted(programs, place):
    """The real programs, by way of scripts that note every initdb."""
    real = binaries.find()
    if os.geteuid() == 0:
        real = relocation.reachable_binaries(real, storage.server_user(), print)
    bindir = programs(
        postgres=f'exec {real.postgres} "$@"',
        initdb=f'echo run >> "$(dirname "$0")/count"\nexec {real.initdb} "$@"',
    )
    count = bindir / "count"
    count.touch()
    count.chmod(0o666)
    return bindir


def test_two_processes_initialise_once(own_cache, counted, place, helper):
    first, second = helper(), helper()
    first.send(f"start-from {place} {counted}")
    second.send(f"start-from {place} {counted}")
    directories = {first.read(), second.read()}
    assert len(directories) == 2
    assert all(place.name in directory for directory in directories)
    assert (counted / "count").read_text() == "run\n"
    assert first.ask("exists postgres") == second.ask("exists postgres") == "True"


def test_what_is_kept_is_used_until_the_binaries_change(own_cache, counted, place):
    said: list[str] = []
    for _ in range(2):
        with EmbeddedPostgres.start(root=place, bindir=counted, progress=said.append) as server:
            server.create_database("one")  # as new as the first time
    assert said == ["Initialising PostgreSQL (once per installation)"]
    assert (counted / "count").read_text() == "run\n"
    kept = sorted(path.suffix for path in (own_cache / "pg").iterdir())
    assert kept == [".golden", ".lock"]

    (counted / "postgres").write_text((counted / "postgres").read_text() + "# another build\n")
    EmbeddedPostgres.start(root=place, bindir=counted).close()
    assert (counted / "count").read_text() == "run\nrun\n"


def test_a_cold_server_and_a_warm_one_are_the_same(own_cache, place):
    described = []
    for _ in range(2):
        with (
            EmbeddedPostgres.start(root=place) as server,
            psycopg.connect(server.url()) as connection,
        ):
            files = {
                str(path.relative_to(server.run_dir))
                for path in (server.run_dir / "data" / "base").rglob("*")
                if "pg_internal" not in path.name
            }
            databases = connection.execute(
                "SELECT datname, pg_encoding_to_char(encoding), datcollate FROM pg_database"
            ).fetchall()
            described.append((files, databases))
    assert described[0] == described[1]


@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign"])
def test_a_damaged_cache_is_made_again(cache, counted, place, damage, own_cache):
    with pytest.MonkeyPatch.context() as other:
        other.setenv("SANDBOX_CACHE_DIR", str(cache))
        EmbeddedPostgres.start(root=place).close()
    whole = next((cache / "pg").glob("*.golden")).read_bytes()
    name = relocation.identity(binaries.find(counted))
    golden = own_cache / "pg" / f"{name}-{cluster._RECIPE}.golden"
    golden.parent.mkdir(parents=True, mode=0o700)
    golden.write_bytes({"truncated": whole[:-1], "empty": b"", "foreign": b"x" * 4096}[damage])
    golden.with_suffix(".new").write_bytes(b"of a builder that was killed")
    with EmbeddedPostgres.start(root=place, bindir=counted) as server:
        assert server.database_exists("postgres")
    assert (counted / "count").read_text() == "run\n"
    assert golden.stat().st_size > 1_000_000
    assert not golden.with_suffix(".new").exists()


def test_without_a_place_for_a_cache_it_starts_all_the_same(place, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SANDBOX_CACHE_DIR", str(tmp_path / "file" / "cache"))
    said: list[str] = []
    with EmbeddedPostgres.start(root=place, progress=said.append) as server:
        assert server.database_exists("postgres")
    assert "no directory to keep the result in" in said[0]


def test_a_killed_builder_leaves_nothing_and_blocks_nobody(
    own_cache, programs, place, helper, eventually
):
    real = binaries.version_of(binaries.find().postgres)
    bindir = programs(
        postgres=f'echo "postgres (PostgreSQL) {real}"',
        initdb='echo begun > "$(dirname "$0")/begun/flag"; exec sleep 60',
    )
    (bindir / "begun").mkdir()
    (bindir / "begun").chmod(0o777)
    starter = helper()
    starter.send(f"start-from {place} {bindir}")
    eventually((bindir / "begun" / "flag").exists)
    starter.kill()
    eventually(lambda: list(place.iterdir()) == [])
    shutil.rmtree(bindir / "begun")
    EmbeddedPostgres.start(root=place).close()

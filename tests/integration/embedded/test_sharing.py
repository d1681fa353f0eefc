"""The processes of a run: the server lives as long as one of them, however they end."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from sandbox.databases.backends import EmbeddedPostgres, storage
from sandbox.databases.backends.cluster import ServerInfo
from sandbox.databases.backends.rundir import Hold, RunDirectory, sweep

from .conftest import processes_in


def lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_two_processes_share_one_server(place, helper):
    with EmbeddedPostgres.start(root=place) as server:
        other = helper()
        assert other.ask(f"attach {server.run_dir}") == str(server.pid)
        assert other.ask("create shared") == "ok"
        assert server.database_exists("shared")


def test_the_server_outlives_a_killed_starter(place, helper):
    starter, other = helper(), helper()
    run_dir = starter.ask(f"start {place}")
    other.ask(f"attach {run_dir}")
    starter.kill()
    assert other.ask("create after") == "ok"
    with EmbeddedPostgres.attach(Path(run_dir)) as late:
        assert late.database_exists("after")
    assert other.ask("exists after") == "True"


@pytest.mark.parametrize("end", ["kill", "exit", "leave"])
def test_the_last_process_takes_the_server_along(place, helper, eventually, end):
    starter, other = helper(), helper()
    run_dir = Path(starter.ask(f"start {place}"))
    pid = int(other.ask(f"attach {run_dir}"))
    starter.kill()
    assert lives(pid)
    assert run_dir.exists()
    if end == "kill":
        other.kill()
    elif end == "exit":
        other.send("exit")  # os._exit: no handler runs
    else:
        assert other.end() == 0
        assert not run_dir.exists()  # its exit has waited
    eventually(lambda: not run_dir.exists() and not lives(pid))


def test_closing_leaves_the_server_to_the_others(place, helper):
    server = EmbeddedPostgres.start(root=place)
    other = helper()
    other.ask(f"attach {server.run_dir}")
    server.close()
    assert other.ask("create later") == "ok"
    assert other.ask("close") == "ok"
    assert not server.run_dir.exists()


def test_two_shares_of_one_process_are_two(place):
    first = EmbeddedPostgres.start(root=place)
    second = EmbeddedPostgres.attach(first.run_dir)
    first.close()
    assert second.database_exists("postgres")
    second.close()
    assert not first.run_dir.exists()


def test_a_forked_child_keeps_nothing_alive(place, helper, eventually):
    starter = helper()
    run_dir = Path(starter.ask(f"start {place}"))
    child = int(starter.ask("fork"))
    try:
        starter.kill()
        eventually(lambda: not run_dir.exists())
        assert lives(child)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_forked_child_that_closes_does_not_close_its_parents(place, helper):
    starter = helper()
    starter.ask(f"start {place}")
    session = starter.ask("session")
    assert starter.ask("fork-close") == "7"
    assert starter.ask("session") == session


def test_another_program_inherits_no_share(place, eventually):
    import subprocess

    server = EmbeddedPostgres.start(root=place)
    other = subprocess.Popen(["sleep", "30"], close_fds=False)
    try:
        server.close()
        assert not server.run_dir.exists()
    finally:
        other.kill()
        other.wait()


def test_a_server_whose_keeper_was_killed_goes_with_the_next_start(place, helper, eventually):
    starter = helper()
    run_dir = Path(starter.ask(f"start {place}"))
    info = ServerInfo.read(run_dir / "info.json")
    os.kill(info.keeper, signal.SIGKILL)
    eventually(lambda: not lives(info.keeper))
    starter.kill()
    assert lives(info.pid)
    EmbeddedPostgres.start(root=place).close()
    assert not run_dir.exists()
    assert not lives(info.pid)


def test_closing_does_the_work_of_a_killed_keeper(place, eventually):
    server = EmbeddedPostgres.start(root=place)
    keeper = ServerInfo.read(server.run_dir / "info.json").keeper
    os.kill(keeper, signal.SIGKILL)
    eventually(lambda: not lives(keeper))
    server.close()
    assert not server.run_dir.exists()
    assert not lives(server.pid)


def test_a_terminated_keeper_takes_the_server_along(place, eventually):
    server = EmbeddedPostgres.start(root=place)
    os.kill(ServerInfo.read(server.run_dir / "info.json").keeper, signal.SIGTERM)
    eventually(lambda: not server.run_dir.exists() and not lives(server.pid))
    server.close()


def test_a_server_that_dies_leaves_nothing_when_its_users_go(place, eventually):
    server = EmbeddedPostgres.start(root=place)
    os.kill(server.pid, signal.SIGQUIT)
    eventually(lambda: not lives(server.pid))
    server.close()
    assert not server.run_dir.exists()


def test_a_sweep_takes_what_nobody_holds_and_nothing_else(place):
    base = place / f"sandbox-{os.geteuid()}"
    held = RunDirectory.create(base, storage.server_user())
    free = RunDirectory.create(base, storage.server_user())
    free.hold.forget()
    (base / "pg-unborn").mkdir()
    (base / "somebody").mkdir()
    (base / "pg-file").write_text("not ours")
    (place / "elsewhere").mkdir()
    (base / "pg-link").symlink_to(place / "elsewhere")

    swept = sweep(base)

    assert sorted(swept) == sorted([free.path, base / "pg-unborn"])
    assert held.path.exists()
    assert {path.name for path in base.iterdir()} == {
        held.path.name,
        "somebody",
        "pg-file",
        "pg-link",
    }
    for path in ("pg-file", "pg-link"):
        (base / path).unlink()
    (base / "somebody").rmdir()
    (place / "elsewhere").rmdir()
    held.hold.forget()
    sweep(base)


@pytest.mark.usefixtures("needs_root")
def test_a_sweep_leaves_the_directories_of_others_alone(place):
    base = place / "sandbox-0"
    base.mkdir(mode=0o711)
    (base / "pg-theirs").mkdir()
    os.chown(base / "pg-theirs", 65534, 65534)
    assert sweep(base) == []
    assert (base / "pg-theirs").exists()
    (base / "pg-theirs").rmdir()
    base.rmdir()


def test_a_share_is_refused_while_the_end_is_under_way(place):
    import fcntl

    run = RunDirectory.create(place / f"sandbox-{os.geteuid()}", storage.server_user())
    run.hold.forget()
    descriptor = os.open(run.path / "alive", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert Hold.take(run.path) is None
    os.close(descriptor)
    assert sweep(run.path.parent) == [run.path]
    assert processes_in(place) == []

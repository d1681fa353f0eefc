"""Servers of these tests' own: their cache and their run directories are nobody else's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sandbox.databases.backends import EmbeddedPostgres, storage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

collect_ignore_glob = [] if os.name == "posix" else ["test_*.py"]


def _open_directory(prefix: str) -> Path:
    """Make a directory that the server's user can walk through, and that is quick."""
    memory = Path("/dev/shm")
    where = memory if memory.is_dir() else Path(tempfile.gettempdir())
    path = Path(tempfile.mkdtemp(prefix=prefix, dir=where))
    path.chmod(0o711)
    return path


def processes_in(directory: Path) -> list[str]:
    """The command lines that name the directory: servers, keepers, initdb."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        # The tests' own helper processes are told about the directory too.
        if any(str(directory) in word for word in words) and "helper" not in words:
            found.append(f"{entry.name}: {' '.join(words)}")
    return found


@pytest.fixture(scope="package", autouse=True)
def cache() -> Iterator[Path]:
    """One cache for all of these tests, so that initdb runs once."""
    path = _open_directory("sandbox-tests-cache-")
    before = os.environ.get("SANDBOX_CACHE_DIR")
    os.environ["SANDBOX_CACHE_DIR"] = str(path)
    yield path
    if before is None:
        del os.environ["SANDBOX_CACHE_DIR"]
    else:
        os.environ["SANDBOX_CACHE_DIR"] = before
    shutil.rmtree(path)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for one test."""
    path = tmp_path / "cache"
    monkeypatch.setenv("SANDBOX_CACHE_DIR", str(path))
    return path


@pytest.fixture
def place() -> Iterator[Path]:
    """A root for run directories.  Whatever the test did, nothing may be left in it."""
    path = _open_directory("sandbox-tests-")
    yield path
    left, deadline = [""], time.monotonic() + 5
    while left and time.monotonic() < deadline:
        # Not rglob(): it does not like directories that vanish.
        below = [
            f"{where}/{name}" for where, *both in os.walk(path) for names in both for name in names
        ]
        left = [*below, *processes_in(path)]
    shutil.rmtree(path)
    assert left == []


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    """A server that the tests of a module share."""
    with EmbeddedPostgres.start() as running:
        yield running


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], None]:
    """Wait for something that another process does; fail when it takes five seconds."""

    def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 5.0
        while not condition():
            assert time.monotonic() < deadline, "it did not happen"
            time.sleep(0.001)

    return wait


class Helper:
    """Another Python process, which does what it is told one line at a time."""

    def __init__(self, interpreter: str, *arguments: str, **options: object) -> None:
        program = Path(__file__).with_name("helper_process.py")
        self.process = subprocess.Popen(  # type: ignore[call-overload]
            [interpreter, str(program), *arguments, "helper"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            **options,
        )

    def send(self, line: str) -> None:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def read(self) -> str:
        return str(self.process.stdout.readline()).strip()

    def ask(self, line: str) -> str:
        self.send(line)
        return self.read()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> int:
        """Let it leave as programs do."""
        self.process.stdin.close()
        return int(self.process.wait(20))

    def close(self) -> None:
        self.kill()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def helper(place: Path) -> Iterator[Callable[..., Helper]]:
    """Make other processes; they end before ``place`` looks for what is left."""
    helpers: list[Helper] = []

    def make(interpreter: str = sys.executable, *arguments: str, **options: object) -> Helper:
        helpers.append(Helper(interpreter, *arguments, **options))
        return helpers[-1]

    yield make
    for made in helpers:
        made.close()


@pytest.fixture
def programs(place: Path) -> Iterator[Callable[..., Path]]:
    """Make a directory of programs from shell scripts, which may call the real ones."""
    made: list[Path] = []

    def make(**scripts: str) -> Path:
        directory = _open_directory("sandbox-tests-bin-")
        made.append(directory)
        for name, text in scripts.items():
            script = directory / name
            script.write_text(f"#!/bin/sh\n{text}\n")
            script.chmod(0o755)
        return directory

    yield make
    for directory in made:
        shutil.rmtree(directory)


@pytest.fixture
def needs_root() -> None:
    if storage.server_user() is None:
        pytest.skip("only root has to become somebody else")

"""The directory that the processes of one run share: SQLite files, and who has migrated."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from sandbox.errors import MigrationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ("RunFiles",)

_PREFIX = "sandbox-run-"


class RunFiles:
    """A temporary directory, removed by the process that made it.

    Should that one be killed, the next run removes it: nobody then holds the lock on ``alive``.
    """

    def __init__(self, path: Path, *, ours: bool) -> None:
        self.path = path
        self._ours = ours
        self._alive = os.open(path / "alive", os.O_CREAT | os.O_RDWR, 0o600)
        _lock(self._alive, shared=True)

    @classmethod
    def make(cls) -> RunFiles:
        """A new one; those of runs that were killed are removed on the way."""
        _sweep(Path(tempfile.gettempdir()))
        return cls(Path(tempfile.mkdtemp(prefix=_PREFIX)), ours=True)

    @classmethod
    def join(cls, path: Path) -> RunFiles:
        """Share in the one that another process of the run has made."""
        return cls(path, ours=False)

    def once(self, action: Callable[[], None]) -> None:
        """Do something in the first process that comes here; the others wait for it.

        Where it failed, the others raise MigrationError with the same words.
        """
        done, failed = self.path / "migrated", self.path / "failed"
        with self._turn():
            if failed.exists():
                raise MigrationError(failed.read_text())
            if done.exists():
                return
            try:
                action()
            except Exception as error:
                failed.write_text(str(getattr(error, "message", error)))
                raise
            done.touch()

    def close(self) -> None:
        """Let go, and remove the directory if it is ours."""
        os.close(self._alive)
        if self._ours:
            shutil.rmtree(self.path, ignore_errors=True)

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        descriptor = os.open(self.path / "turn", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            _lock(descriptor)
            yield
        finally:
            os.close(descriptor)


def _lock(descriptor: int, *, shared: bool = False, wait: bool = True) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows: directories of killed runs stay, workers do not wait
        return False
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sweep(base: Path) -> None:
    for path in base.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            # Without O_CREAT: one that is just being made has no such file yet.
            descriptor = os.open(path / "alive", os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
            try:
                if _lock(descriptor, wait=False):
                    shutil.rmtree(path)
            finally:
                os.close(descriptor)

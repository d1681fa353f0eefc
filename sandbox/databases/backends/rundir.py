"""The directory of one run, and the lock by which its users keep it alive.

``<base>/pg-xxxxxxxx/`` holds ``alive`` and ``keeper`` (locks), ``info.json``, ``log``, ``data/``
and ``sock/``.  It is ours; only ``data`` and ``sock`` belong to the user that the server runs as.

Nobody trusts process ids here: whoever uses the server holds ``flock(alive, LOCK_SH)``, and whoever
gets ``LOCK_EX`` knows that nobody does.  The keeper process holds ``flock(keeper, LOCK_EX)``.  The
kernel frees the locks of a process that dies.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import stat
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sandbox.databases.backends.storage import own_directory
from sandbox.errors import ServerStartError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandbox.databases.backends.storage import ServerUser

__all__ = ("Hold", "RunDirectory", "is_abandoned", "remove", "sweep")

_LONGEST_SOCKET = 100  # of the 104 to 108 bytes that the kernels allow


class Hold:
    """One process's share in a run: while it is held, the server lives.

    A forked child does not hold what its parent holds; the descriptor is closed on exec.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    @classmethod
    def take(cls, run_dir: Path) -> Hold | None:
        """Share in the run; None if it is over, or ending."""
        import fcntl

        try:
            descriptor = os.open(run_dir / "alive", os.O_RDWR | os.O_NOFOLLOW)
        except OSError:
            return None
        if _try_lock(descriptor, fcntl.LOCK_SH) and os.fstat(descriptor).st_nlink:
            return cls(descriptor)
        os.close(descriptor)
        return None

    def forget(self) -> None:
        """Close the descriptor in a forked child; the parent's lock stays."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def release(self) -> bool:
        """Let go.  True if nobody holds the run any more, so that its end has begun."""
        import fcntl

        if self._descriptor is None:
            return False
        descriptor, self._descriptor = self._descriptor, None
        try:
            # Exchanging the lock drops ours first: it fails if others share in the run, or if
            # the keeper, which has waited for exactly this, took it in between.
            if _try_lock(descriptor, fcntl.LOCK_EX):
                return True
            return not _try_lock(descriptor, fcntl.LOCK_SH)
        finally:
            os.close(descriptor)


def _try_lock(descriptor: int, kind: int) -> bool:
    import fcntl

    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_abandoned(run_dir: Path) -> bool:
    """Tell whether the keeper of this run was killed, so that nobody will remove it."""
    import fcntl

    try:
        descriptor = os.open(run_dir / "keeper", os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return False  # it is being removed
    try:
        return _try_lock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


class RunDirectory:
    """A new run directory, held by this process from its first moment."""

    def __init__(self, path: Path, hold: Hold, sockets: Path) -> None:
        self.path = path
        self.hold = hold
        self.sockets = sockets
        self.data = path / "data"
        self.log = path / "log"
        self.settings = path / "postgresql.conf"
        self.access = path / "pg_hba.conf"
        self.info = path / "info.json"

    @classmethod
    def create(cls, base: Path, user: ServerUser | None) -> RunDirectory:
        """Make it; raises OSError, and leaves nothing."""
        path = base / f"pg-{secrets.token_hex(4)}"
        hold = None
        while hold is None:
            with _base_locked(base, user), contextlib.suppress(FileNotFoundError):
                path.mkdir(mode=0o700)
                os.close(os.open(path / "alive", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
                hold = Hold.take(path)
        try:
            if user:
                path.chmod(0o711)  # the server walks through it, and sees nothing
            return cls(path, hold, _make_sockets(path, user))
        except BaseException:
            remove(path)
            hold.release()
            raise


@contextlib.contextmanager
def _base_locked(base: Path, user: ServerUser | None) -> Iterator[None]:
    """Hold the base directory, so that nobody sweeps a run that is just being made."""
    import fcntl

    while True:
        if not own_directory(base, 0o711 if user else 0o700):
            raise ServerStartError(
                f"{base} cannot be made, or belongs to somebody else. Remove it, or set TMPDIR"
                " to another directory."
            )
        try:
            descriptor = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue  # the last run in it has just ended
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not os.fstat(descriptor).st_nlink:
                continue
            yield
            return
        finally:
            os.close(descriptor)


def _make_sockets(path: Path, user: ServerUser | None) -> Path:
    sockets = path / "sock"
    if len(os.fsencode(sockets / ".s.PGSQL.65535")) < _LONGEST_SOCKET:
        sockets.mkdir(mode=0o700)
    else:
        # The kernel bounds the path of a socket, whatever TMPDIR is.
        sockets = Path(tempfile.mkdtemp(prefix="sandbox-sock-", dir="/tmp"))
        (path / "sockets").write_text(str(sockets))
    if user:
        os.chown(sockets, user.uid, user.gid)
    return sockets


def remove(path: Path) -> None:
    """Remove a run directory that no server uses, its sockets, and its base if that is empty."""
    with contextlib.suppress(OSError):
        outside = Path((path / "sockets").read_text())
        if outside.parent == Path("/tmp") and outside.name.startswith("sandbox-sock-"):  # noqa: S108
            shutil.rmtree(outside, ignore_errors=True)
    shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.parent.rmdir()


def sweep(base: Path) -> list[Path]:
    """Remove the runs in this base that nobody holds: their keeper was killed, or the machine.

    Only directories of our name and ownership; never waits for anybody.  Returns what it removed.
    """
    import fcntl

    swept: list[Path] = []
    try:
        if base.lstat().st_uid != os.geteuid():
            return swept
        descriptor = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return swept
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        names = [entry.name for entry in os.scandir(base) if entry.name.startswith("pg-")]
        swept.extend(base / name for name in names if _sweep_one(base / name))
    except OSError:
        pass
    finally:
        os.close(descriptor)
    return swept


def _sweep_one(path: Path) -> bool:
    import fcntl

    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        return False
    try:
        alive = os.open(path / "alive", os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        alive = None
    except OSError:
        return False
    try:
        if alive is not None:
            fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _stop_orphan(path / "data")
        remove(path)
        return True
    except OSError:
        return False
    finally:
        if alive is not None:
            os.close(alive)


def _stop_orphan(data: Path) -> None:
    """Stop the server that still runs in a directory that nobody holds.

    It is that server only if its working directory is this one.  Where that cannot be asked (no
    /proc), nothing is signalled: a server whose directory is gone stops within a minute.
    """
    with contextlib.suppress(OSError, ValueError, IndexError):
        pid = int((data / "postmaster.pid").read_text().splitlines()[0])
        where = Path(f"/proc/{pid}/cwd")
        for name in (signal.SIGQUIT, signal.SIGKILL):
            if where.readlink() != data.resolve():
                return
            os.kill(pid, name)
            deadline = time.monotonic() + 5
            while time.monotonic() < deadline and where.exists():
                time.sleep(0.002)

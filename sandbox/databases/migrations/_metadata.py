"""``metadata:``: the tables of a SQLAlchemy MetaData, made by ``create_all``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sandbox.databases.migrations._connect import with_connection
from sandbox.databases.migrations._source import (
    failed,
    import_object,
    invalid_spec,
    split_reference,
)
from sandbox.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ("MetadataSource",)


@dataclass(frozen=True, slots=True)
class MetadataSource:
    """``create_all`` of the MetaData (or declarative base) called `attribute` in `module`."""

    description: str
    module: str
    attribute: str
    root: Path

    @classmethod
    def parse(cls, spec: str, argument: str, root: Path) -> MetadataSource:
        """Read ``app.models:Base.metadata``."""
        if not argument:
            raise invalid_spec(spec, "names no metadata")
        module, attribute = split_reference(spec, argument, "metadata:app.models:Base.metadata")
        return cls(spec, module, attribute, root)

    def run(self, url: str) -> None:
        """Create the tables, in the way of MigrationSource.run."""
        try:
            from sqlalchemy import MetaData
        except ImportError as error:
            raise ConfigurationError(
                f"migrations {self.description!r} need SQLAlchemy, which is not installed\n"
                '  install it: pip install "sandbox-orm[sqlalchemy]"'
            ) from error
        found = import_object(self.description, self.module, self.attribute, self.root)
        metadata = getattr(found, "metadata", found)
        if not isinstance(metadata, MetaData):
            raise invalid_spec(
                self.description,
                f"{self.module}:{self.attribute} is a {type(found).__name__}, not a MetaData",
            )
        if not metadata.tables:
            raise ConfigurationError(
                f"migrations {self.description!r}: the metadata has no tables\n"
                "  are the modules that define the models imported by "
                f"{self.module}? Name one that imports them all"
            )
        try:
            with_connection(url, metadata.create_all)
        except ConfigurationError:
            raise
        except Exception as error:
            raise failed(self.description, " in create_all", error) from error

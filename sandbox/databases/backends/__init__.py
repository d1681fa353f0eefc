"""Where databases come from.  Importing this does nothing but define."""

from __future__ import annotations

from sandbox.databases.backends.embedded import EmbeddedPostgres

__all__ = ("EmbeddedPostgres",)

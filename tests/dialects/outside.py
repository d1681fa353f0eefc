"""What somebody else sees in the suite's database, through no engine."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from pathlib import Path
from typing import Any

from sqlalchemy.engine import URL

__all__ = ("Outside",)

# Temporary schemas stay when a connection ends; what lies in them is nobody else's.
_CATALOG = """
SELECT 'relation', n.nspname, c.relname, c.relkind::text
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE {ours}
UNION ALL SELECT 'type', n.nspname, t.typname, ''
  FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace WHERE {ours}
UNION ALL SELECT 'function', n.nspname, p.oid::regprocedure::text, ''
  FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE {ours}
UNION ALL SELECT 'collation', n.nspname, c.collname, ''
  FROM pg_collation c JOIN pg_namespace n ON n.oid = c.collnamespace WHERE {ours}
UNION ALL SELECT 'schema', n.nspname, '', '' FROM pg_namespace n WHERE {ours}
UNION ALL SELECT 'extension', e.extname, e.extversion, '' FROM pg_extension e
ORDER BY 1, 2, 3, 4
""".format(ours="n.nspname NOT LIKE 'pg\\_%%' AND n.nspname <> 'information_schema'")


class Outside:
    """An eye on one database from outside of the suite's process of connections."""

    def __init__(self, url: URL) -> None:
        self._url = url
        self._connection: Any = None

    def look(self) -> set[tuple[str, ...]]:
        """Everything that was committed: PostgreSQL's catalog, or SQLite's schema and bytes."""
        if self._url.get_backend_name() == "sqlite":
            return self._look_at_files()
        if self._connection is None:
            import psycopg

            url = self._url.set(drivername="postgresql").render_as_string(hide_password=False)
            self._connection = psycopg.connect(url, autocommit=True)
        return set(self._connection.execute(_CATALOG).fetchall())

    def _look_at_files(self) -> set[tuple[str, ...]]:
        main = Path(str(self._url.database))
        found: set[tuple[str, ...]] = set()
        for path in sorted(main.parent.glob("*.db")):
            found.add(("file", path.name, hashlib.sha256(path.read_bytes()).hexdigest()))
            with contextlib.closing(sqlite3.connect(path)) as connection:
                for kind, name in connection.execute("SELECT type, name FROM sqlite_master"):
                    found.add((kind, path.name, name))
        return found

    def close(self) -> None:
        """Leave."""
        if self._connection is not None:
            self._connection.close()

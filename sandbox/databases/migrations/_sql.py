"""``sql:``: files of SQL, run statement by statement through a driver."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from sandbox.databases import urls
from sandbox.databases.migrations._script import (
    ScriptError,
    Statement,
    postgresql_statements,
    sqlite_statements,
)
from sandbox.databases.migrations._source import failed, invalid_spec, outside_event_loop
from sandbox.errors import ConfigurationError, MigrationError, SandboxError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ("SqlSource",)


@dataclass(frozen=True, slots=True)
class SqlSource:
    """The statements of some files, each committed as it ends, as ``psql -f`` does it."""

    description: str
    path: Path

    @classmethod
    def parse(cls, spec: str, argument: str, root: Path) -> SqlSource:
        """Read the path of a file or of a directory."""
        if not argument:
            raise invalid_spec(spec, "names no file")
        path = root / argument
        if not path.exists():
            raise invalid_spec(spec, f"there is no file or directory {path}")
        if path.is_dir() and not any(path.glob("*.sql")):
            raise invalid_spec(spec, f"there is no *.sql file in {path}")
        return cls(spec, path)

    def run(self, url: str) -> None:
        """Run the files, a directory's sorted by name, in the way of MigrationSource.run."""
        connect = self._driver(url)
        for file in sorted(self.path.glob("*.sql")) if self.path.is_dir() else [self.path]:
            outside_event_loop(lambda file=file: self._run_file(file, url, connect))  # type: ignore[misc]

    def _driver(self, url: str) -> Callable[[str], _Session]:
        dialect = urls.dialect_of(url)
        if dialect == "sqlite":
            return _Sqlite
        if dialect != "postgresql":
            raise ConfigurationError(
                f"migrations {self.description!r} run on PostgreSQL and SQLite, not on {dialect}\n"
                "  use an alembic:, metadata: or call: source"
            )
        for driver, session in _POSTGRESQL.items():
            if importlib.util.find_spec(driver) is not None:
                return session
        raise ConfigurationError(
            f"migrations {self.description!r} need a PostgreSQL driver, and none is installed\n"
            '  install one: pip install "psycopg[binary]"'
        )

    def _run_file(self, file: Path, url: str, connect: Callable[[str], _Session]) -> None:
        split = sqlite_statements if connect is _Sqlite else postgresql_statements
        try:
            script = file.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise failed(self.description, f" reading {file}", error) from error
        try:
            session = connect(url)
        except SandboxError:
            raise
        except Exception as error:
            shown = urls.hide_password(url)
            raise failed(self.description, f" connecting to {shown}", error) from error
        with closing(session):
            try:
                for statement in split(script):
                    self._execute(session, file, statement)
            except ScriptError as error:
                raise MigrationError(
                    f"migrations {self.description!r} failed at {file}:{error.line}\n    {error}"
                ) from error

    def _execute(self, session: _Session, file: Path, statement: Statement) -> None:
        try:
            session.execute(statement)
        except ScriptError:
            raise
        except Exception as error:
            position = session.position(error)
            line = statement.line + statement.text.count("\n", 0, max(position - 1, 0))
            where = f" at {file}:{line}"
            raised = failed(self.description, where, error)
            if position == 0:  # the server did not say where: show what it refused
                first = statement.text.partition("\n")[0]
                raised = MigrationError(f"{raised.message}\n    in: {first}")
            raise raised from error


class _Session(Protocol):
    """One driver's connection, committing every statement."""

    def __init__(self, url: str) -> None: ...

    def execute(self, statement: Statement) -> None: ...

    def position(self, error: Exception) -> int:
        """Where in the statement the server found the error, from 1; 0: it did not say."""

    def close(self) -> None: ...


class _Psycopg:
    def __init__(self, url: str) -> None:
        import psycopg

        self._connection = psycopg.connect(
            urls.libpq_url(url), autocommit=True, client_encoding="utf8"
        )

    def execute(self, statement: Statement) -> None:
        with self._connection.cursor() as cursor:
            text = statement.text.encode()
            if statement.rows is None:
                cursor.execute(text)
                return
            with cursor.copy(text) as copy:
                copy.write(statement.rows.encode())

    def position(self, error: Exception) -> int:
        diagnostics = getattr(error, "diag", None)
        return int(getattr(diagnostics, "statement_position", None) or 0)

    def close(self) -> None:
        self._connection.close()


class _Psycopg2:
    def __init__(self, url: str) -> None:
        import psycopg2

        self._connection = psycopg2.connect(urls.libpq_url(url), client_encoding="utf8")
        self._connection.autocommit = True

    def execute(self, statement: Statement) -> None:
        with self._connection.cursor() as cursor:
            if statement.rows is None:
                cursor.execute(statement.text)
            else:
                cursor.copy_expert(statement.text, io.StringIO(statement.rows))

    def position(self, error: Exception) -> int:
        diagnostics = getattr(error, "diag", None)
        return int(getattr(diagnostics, "statement_position", None) or 0)

    def close(self) -> None:
        self._connection.close()


class _Asyncpg:
    def __init__(self, url: str) -> None:
        import asyncpg

        self._runner = asyncio.Runner()
        try:
            self._connection: Any = self._runner.run(asyncpg.connect(urls.libpq_url(url)))
        except BaseException:
            self._runner.close()
            raise

    def execute(self, statement: Statement) -> None:
        if statement.rows is not None:
            raise ScriptError(
                statement.line,
                "COPY … FROM stdin needs psycopg (asyncpg cannot run it as it stands):\n"
                '    pip install "psycopg[binary]", or make the dump with pg_dump --inserts',
            )
        self._runner.run(self._connection.execute(statement.text))

    def position(self, error: Exception) -> int:
        return int(getattr(error, "position", None) or 0)

    def close(self) -> None:
        self._runner.run(self._connection.close())
        self._runner.close()


class _Sqlite:
    def __init__(self, url: str) -> None:
        path = urls.sqlite_path(url)
        if path is None:
            raise ConfigurationError(
                "a database in memory is seen by the connection that made it alone\n"
                "  use a file: sqlite:////tmp/app.db"
            )
        self._connection = sqlite3.connect(path, isolation_level=None)

    def execute(self, statement: Statement) -> None:
        self._connection.execute(statement.text)

    def position(self, error: Exception) -> int:  # noqa: ARG002  SQLite never says
        return 0

    def close(self) -> None:
        self._connection.close()


_POSTGRESQL: dict[str, Callable[[str], _Session]] = {
    "psycopg": _Psycopg,
    "psycopg2": _Psycopg2,
    "asyncpg": _Asyncpg,
}

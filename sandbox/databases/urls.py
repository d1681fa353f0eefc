"""Database URLs: read, changed and judged as text.

Everything here works on the URL form of SQLAlchemy (``dialect+driver://user:password@host:port/
database?query``), which libpq reads too once the driver is taken out. Nothing is imported to do
it: the embedded server and the command line need URLs where SQLAlchemy may not be installed.
"""

from __future__ import annotations

import importlib.util
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote

from sandbox.errors import ConfigurationError, UnsafeDatabaseError

__all__ = (
    "ASYNC_DRIVERS",
    "async_url",
    "database_name",
    "dialect_of",
    "driver_of",
    "hide_password",
    "libpq_url",
    "looks_like_test_database",
    "refuse_unless_test_database",
    "sqlite_path",
    "sync_url",
    "unsafe_database_error",
    "with_database",
    "with_driver",
)

#: Drivers that only an asyncio engine can use.
ASYNC_DRIVERS = frozenset({"asyncpg", "psycopg_async", "aiosqlite", "aiomysql", "asyncmy"})

# The drivers of a dialect in the order of preference, and the package that brings each.
_SYNC = {"postgresql": ("psycopg", "psycopg2"), "sqlite": ("pysqlite",), "mysql": ("pymysql",)}
_ASYNC = {"postgresql": ("asyncpg", "psycopg"), "sqlite": ("aiosqlite",), "mysql": ("aiomysql",)}
_PACKAGE = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary"}

_GRAMMAR = re.compile(
    r"(?P<dialect>\w+)(?:\+(?P<driver>\w+))?://"
    r"(?:(?P<userinfo>[^/]*)@)?"
    r"(?P<host>(?:\[[^]/?]+\]|[^/:?]+)?(?:,[^/?]*)?(?::[^/?]*)?)"
    r"(?:/(?P<database>[^?]*))?(?:\?(?P<query>.*))?"
)
_TEST_WORDS = frozenset(
    {"test", "tests", "testing", "testdb", "dbtest", "unittest", "unittests", "pytest"}
    | {"sandbox", "tmp", "temp", "ci"}
)
# What SQLAlchemy's asyncpg dialect accepts and libpq would refuse.
_ASYNCPG_ONLY = frozenset(
    {"prepared_statement_cache_size", "prepared_statement_name_func", "async_fallback"}
)


@dataclass(frozen=True, slots=True)
class _Url:
    """The parts, still percent-encoded: what is not changed is written back as it came."""

    dialect: str
    driver: str | None
    userinfo: str | None
    host: str
    database: str | None
    query: str | None

    def __str__(self) -> str:
        driver = f"+{self.driver}" if self.driver else ""
        userinfo = f"{self.userinfo}@" if self.userinfo is not None else ""
        database = f"/{self.database}" if self.database is not None else ""
        query = f"?{self.query}" if self.query is not None else ""
        return f"{self.dialect}{driver}://{userinfo}{self.host}{database}{query}"

    def options(self) -> dict[str, str]:
        return dict(parse_qsl(self.query or "", keep_blank_values=True))


def _parse(url: str) -> _Url:
    match = _GRAMMAR.fullmatch(url.strip())
    if match is None:
        raise ConfigurationError(
            f"{hide_password(url)!r} is no database URL\n"
            "  expected dialect+driver://user:password@host:port/database, for example\n"
            "  postgresql+psycopg://postgres@localhost/app_test or sqlite:////tmp/app.db"
        )
    parts = _Url(**match.groupdict())
    # "postgres://" is libpq's and Heroku's word; SQLAlchemy has long dropped it.
    return replace(parts, dialect="postgresql") if parts.dialect == "postgres" else parts


def dialect_of(url: str) -> str:
    """The dialect's name, ``postgresql`` for ``postgres`` too."""
    return _parse(url).dialect


def driver_of(url: str) -> str | None:
    """The driver's name, None where the URL leaves it to SQLAlchemy."""
    return _parse(url).driver


def database_name(url: str) -> str | None:
    """The database's decoded name (for SQLite its path), None where the URL has none.

    PostgreSQL without a name means the database called like the user, as in libpq.
    """
    parts = _parse(url)
    if parts.dialect == "sqlite":
        return unquote(parts.database or "") or None
    name = parts.options().get("dbname") or unquote(parts.database or "")
    if not name and parts.dialect == "postgresql":
        name = unquote((parts.userinfo or "").partition(":")[0])
    return name or None


def hide_password(url: str) -> str:
    """The URL as it may be shown: ``***`` in place of any password. Never raises."""
    # As far as the last @ before the path: a password typed unescaped may hold one itself.
    shown = re.sub(r"(://[^:/@?]*):[^/?]*@", r"\1:***@", url.strip())
    if shown == url.strip():
        # ... or a slash, in which case nothing past the colon can be trusted to be a path.
        shown = re.sub(r"(://[^:/@?]*):(?!\d+(?:/|$))[^\s]*@", r"\1:***@", shown)
    return re.sub(r"(?i)([?&](?:password|passwd|sslpassword)=)[^&]*", r"\1***", shown)


def with_driver(url: str, driver: str | None) -> str:
    """The same database through another driver; None leaves the choice to SQLAlchemy."""
    return str(replace(_parse(url), driver=driver))


def with_database(url: str, name: str) -> str:
    """The same server, another database."""
    # As SQLAlchemy 2.1 writes it; 2.0 does not decode, so no more than must be is encoded.
    return str(replace(_parse(url), database=quote(name, safe=" +/")))


def libpq_url(url: str) -> str:
    """The form that psql, psycopg and asyncpg read themselves."""
    return str(replace(_without_asyncpg_options(_parse(url)), driver=None))


def sync_url(url: str) -> str:
    """The same database through a driver that blocks, chosen among the installed ones.

    A URL that names a synchronous driver is returned as it is. ConfigurationError when none is
    installed.
    """
    parts = _parse(url)
    known = _SYNC.get(parts.dialect)
    if known is None or (parts.driver and parts.driver not in ASYNC_DRIVERS):
        return str(parts)
    driver = _installed(parts.dialect, known, "synchronous", url)
    return str(replace(_without_asyncpg_options(parts), driver=driver))


def async_url(url: str) -> str:
    """The same database through a driver for asyncio, chosen among the installed ones.

    psycopg serves both kinds of engine, so its URLs are returned as they are. ConfigurationError
    when none is installed.
    """
    parts = _parse(url)
    known = _ASYNC.get(parts.dialect)
    if known is None or parts.driver in ASYNC_DRIVERS or parts.driver == "psycopg":
        return str(parts)
    return str(replace(parts, driver=_installed(parts.dialect, known, "asyncio", url)))


def sqlite_path(url: str) -> str | None:
    """The file of an SQLite URL, None where the database lives in memory."""
    parts = _parse(url)
    name = unquote(parts.database or "")
    if name.startswith("file:"):
        name = name.removeprefix("file:")
        if parts.options().get("mode") == "memory":
            return None
    return None if name in ("", ":memory:") else name


def looks_like_test_database(url: str) -> bool:
    """Whether losing what is in this database would hurt nobody, judged by its name.

    True where ``test``, ``sandbox``, ``tmp`` or ``ci`` is a word of the name (``app_test``,
    ``ci-42``; not ``latest``, not ``precision``), for SQLite in memory, and for a file below the
    directory for temporary files.
    """
    if _parse(url).dialect != "sqlite":
        return _has_test_word(database_name(url) or "")
    path = sqlite_path(url)
    if path is None:
        return True
    file = Path(path).resolve()
    return _has_test_word(file.name) or any(map(file.is_relative_to, _temporary_directories()))


def unsafe_database_error(url: str) -> UnsafeDatabaseError:
    """What is raised instead of touching a database that may be somebody's real one."""
    name = database_name(url)
    return UnsafeDatabaseError(
        f"refusing to use {hide_password(url)}\n"
        f"  the database {name!r} was not made by sandbox, and its name does not say that it is\n"
        "  for tests: no word of it is test, sandbox, tmp or ci.\n"
        "  What to do:\n"
        "    * point the URL at a database for tests, for example "
        f"{(name or 'app').rpartition('/')[2]}_test;\n"
        "    * or leave the URL out, and an embedded server is started;\n"
        "    * or, if this database may really be migrated and written to, set\n"
        "      sandbox_allow_any_database = true"
    )


def refuse_unless_test_database(url: str, *, allow_any: bool = False) -> None:
    """Raise UnsafeDatabaseError unless the URL looks like a test database, or any is allowed."""
    if not allow_any and not looks_like_test_database(url):
        raise unsafe_database_error(url)


def _has_test_word(name: str) -> bool:
    # appTest -> app Test; digits count nothing: test2, ci42.
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return not _TEST_WORDS.isdisjoint(re.split(r"[^a-z]+", spaced.lower()))


def _temporary_directories() -> tuple[Path, ...]:
    named = (tempfile.gettempdir(), "/dev/shm")  # noqa: S108  only compared with
    return tuple(Path(directory).resolve() for directory in named)


def _installed(dialect: str, drivers: tuple[str, ...], kind: str, url: str) -> str:
    for driver in drivers:
        module = "sqlite3" if driver == "pysqlite" else driver
        if importlib.util.find_spec(module) is not None:
            return driver
    package = _PACKAGE.get(drivers[0], drivers[0])
    raise ConfigurationError(
        f"no {kind} driver for {dialect} is installed, which {hide_password(url)} needs here\n"
        f'  install one: pip install "{package}"'
    )


def _without_asyncpg_options(parts: _Url) -> _Url:
    if parts.query is None or parts.driver != "asyncpg":
        return parts
    kept = []
    for option in parts.query.split("&"):
        key, equals, value = option.partition("=")
        if key not in _ASYNCPG_ONLY:
            kept.append(f"{'sslmode' if key == 'ssl' else key}{equals}{value}")
    return replace(parts, query="&".join(kept) or None)

"""What the user has set: the ini file's keys and their twins on the command line."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sandbox.errors import ConfigurationError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    import pytest

__all__ = ("BACKENDS", "EnvironmentVariable", "Settings", "add_options", "unconfigured_error")

BACKENDS = ("embedded", "server", "sqlite")
ISOLATIONS = ("savepoint",)
CLOCKS = ("auto", "replace", "shadow", "off")

TIMES = {
    "nest_after": "seconds that a new transaction waits for a sibling's that has written",
    "busy_after": "seconds that a statement waits for others of its test",
    "lock_timeout": "seconds that a statement waits for the locks of other tests; 0: for ever",
}
LATE_ISOLATIONS = ("error", "warn")

_VARIABLE = re.compile(r"(?P<name>\w+)(?:\s*=\s*(?P<scheme>[a-z]\w*(?:\+\w+)?))?")


@dataclass(frozen=True, slots=True)
class EnvironmentVariable:
    """A variable that is to hold the database's URL."""

    name: str
    scheme: str | None
    """The URL's ``dialect+driver``; None leaves the choice to us."""

    @classmethod
    def parse(cls, text: str) -> EnvironmentVariable:
        """Read ``DATABASE_URL`` or ``DATABASE_URL=postgresql+asyncpg``."""
        match = _VARIABLE.fullmatch(text.strip())
        if match is None:
            raise ConfigurationError(
                f"sandbox_env: {text!r} cannot be understood. Write the name of the variable, or"
                f" NAME=dialect+driver, for example DATABASE_URL=postgresql+asyncpg."
            )
        return cls(match["name"], match["scheme"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of one run of pytest."""

    url: str | None
    backend: str
    migrations: tuple[str, ...]
    env: tuple[EnvironmentVariable, ...]
    autouse: bool
    isolation: str
    allow_any_database: bool
    clock: str
    checkout: dict[str, Any] = field(default_factory=dict)
    """The options of each checkout that were set."""
    names_database: bool
    """Whether anything that says which database, and what is in it, was set."""

    @property
    def configured(self) -> bool:
        """Whether the plugin has anything to do unless a test asks for it."""
        return self.names_database or self.autouse

    @classmethod
    def read(cls, config: pytest.Config, options: argparse.Namespace) -> Settings:
        """Read them; ConfigurationError for what is not known or contradicts itself."""

        def one(name: str) -> Any:
            return getattr(options, name, None) or config.getini(name)

        url = one("sandbox_url").strip() or None
        backend = one("sandbox_backend").strip()
        migrations = tuple(line for line in one("sandbox_migrations") if line.strip())
        env = tuple(EnvironmentVariable.parse(text) for text in one("sandbox_env") if text.strip())
        isolation = one("sandbox_isolation").strip()
        _check_known("sandbox_backend", backend, ("", *BACKENDS))
        _check_known("sandbox_isolation", isolation, ISOLATIONS)
        clock = one("sandbox_clock").strip()
        _check_known("sandbox_clock", clock, CLOCKS)
        return cls(
            url=url,
            backend=_choose(backend, url),
            migrations=migrations,
            env=env,
            autouse=bool(one("sandbox_autouse")),
            isolation=isolation,
            allow_any_database=bool(config.getini("sandbox_allow_any_database")),
            clock=clock,
            checkout=_checkout_options(one),
            names_database=bool(url or backend or migrations or env),
        )


def add_options(parser: pytest.Parser) -> None:
    """Declare every setting, for the ini file and for the command line."""
    group = parser.getgroup("sandbox", "every test in its own database")

    def add(name: str, text: str, kind: Any, default: Any, **option: Any) -> None:
        parser.addini(name, text, type=kind, default=default)
        flag = "--" + name.replace("_", "-")
        group.addoption(flag, dest=name, default=None, help=text, **option)

    add(
        "sandbox_url",
        "URL of an existing database for tests, instead of an embedded server's",
        "string",
        "",
        metavar="URL",
    )
    add(
        "sandbox_backend",
        f"where the database comes from: {', '.join(BACKENDS)}",
        "string",
        "",
        metavar="NAME",
    )
    add(
        "sandbox_migrations",
        "what builds the schema: alembic:FILE, metadata:MODULE:NAME, sql:FILE, call:MODULE:NAME",
        "linelist",
        [],
        action="append",
        metavar="SOURCE",
    )
    add(
        "sandbox_env",
        "environment variable that gets the database's URL, NAME or NAME=dialect+driver",
        "linelist",
        [],
        action="append",
        metavar="NAME",
    )
    add("sandbox_autouse", "sandbox every test", "bool", False, action="store_true")
    add(
        "sandbox_isolation",
        "how tests are kept apart: savepoint",
        "string",
        "savepoint",
        metavar="NAME",
    )
    add(
        "sandbox_clock",
        f"how the database's now() comes to move with each transaction: {', '.join(CLOCKS)}",
        "string",
        "auto",
        metavar="NAME",
    )
    for name, text in TIMES.items():
        add(f"sandbox_{name}", text, "string", "", metavar="SECONDS")
    add(
        "sandbox_late_isolation",
        "what a transaction gets that asks for a stronger isolation level too late:"
        f" {', '.join(LATE_ISOLATIONS)}",
        "string",
        "",
        metavar="NAME",
    )
    parser.addini(
        "sandbox_allow_any_database",
        "use the database of sandbox_url although its name does not say that it is for tests",
        type="bool",
        default=False,
    )


def unconfigured_error(what: str) -> ConfigurationError:
    """The error for a test that asks for a sandbox where nothing says of which database."""
    return ConfigurationError(
        f"{what} needs a database, and nothing says which. In [tool.pytest.ini_options]:"
        '\n\n    sandbox_env = "DATABASE_URL"'
        '\n    sandbox_migrations = "alembic:alembic.ini"'
        "\n\nstart an embedded server and migrate it; or override the fixture `sandbox_engines` in"
        "\nconftest.py to return the engines of your own that are to be sandboxed."
    )


def _checkout_options(one: Callable[[str], Any]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name in TIMES:
        text = one(f"sandbox_{name}").strip()
        if text:
            try:
                options[name] = float(text)
            except ValueError:
                raise ConfigurationError(
                    f"sandbox_{name}: {text!r} is no number of seconds, such as 0.5."
                ) from None
    late = one("sandbox_late_isolation").strip()
    if late:
        options["late_isolation"] = late
    if options:
        from sandbox.connection.options import Options

        try:
            Options.checked(**options)
        except ConfigurationError as error:
            raise ConfigurationError(f"sandbox_{error.message}") from None
    return options


def _check_known(key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        named = ", ".join(repr(each) for each in known if each)
        raise ConfigurationError(f"{key}: {value!r} is not known; this version has {named}.")


def _choose(backend: str, url: str | None) -> str:
    if url is None:
        if backend == "server":
            raise ConfigurationError(
                "sandbox_backend = server needs to be told which: set sandbox_url, for example"
                " postgresql://postgres@localhost/app_test."
            )
        return backend or "embedded"
    if backend in {"embedded", "sqlite"}:
        raise ConfigurationError(
            f"sandbox_backend = {backend} makes its own database, but sandbox_url names one."
            " Set one of the two."
        )
    return "server"

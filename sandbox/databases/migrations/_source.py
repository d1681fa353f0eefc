"""What all sources of a schema share: the protocol, imports, event loops, error texts."""

from __future__ import annotations

import asyncio
import importlib
import sys
import threading
from functools import reduce
from typing import TYPE_CHECKING, Protocol, TypeVar

from sandbox.errors import ConfigurationError, MigrationError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = (
    "MigrationSource",
    "failed",
    "import_object",
    "invalid_spec",
    "make_importable",
    "outside_event_loop",
    "split_reference",
)

_T = TypeVar("_T")


class MigrationSource(Protocol):
    """One way to build a schema in an empty database."""

    @property
    def description(self) -> str:
        """The spec, as shown in headers and errors."""

    def run(self, url: str) -> None:
        """Build the schema in the database of this SQLAlchemy URL; blocks until it is done.

        May be called from any thread, inside a running event loop too. Raises MigrationError with
        the failure as its cause; the database is then in an unknown state, and whoever made it
        drops it.
        """


def invalid_spec(spec: str, reason: str) -> ConfigurationError:
    """The error for a spec that cannot be understood."""
    return ConfigurationError(
        f"migrations {spec!r}: {reason}\n"
        "  the forms are  alembic:alembic.ini  metadata:app.models:Base.metadata\n"
        "                 sql:schema.sql       call:tests.schema:build"
    )


def failed(spec: str, where: str, error: BaseException) -> MigrationError:
    """The error for a source that ran and failed, with the failure's own words.

    SQLAlchemy's wrapper is left out of the text: what the driver said, and the statement.
    """
    cause = getattr(error, "orig", None) or error
    kind = type(cause)
    name = (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )
    said = f"{name}: {cause}".rstrip()
    statement = getattr(error, "statement", None)
    if isinstance(statement, str):
        short = statement.strip()
        said += f"\nin: {short if len(short) <= 500 else short[:500] + ' ...'}"
    indented = said.replace("\n", "\n    ")
    return MigrationError(f"migrations {spec!r} failed{where}\n    {indented}")


def split_reference(spec: str, reference: str, example: str) -> tuple[str, str]:
    """``package.module:attribute.path`` in two, or ConfigurationError."""
    module, colon, attribute = reference.partition(":")
    names = [*module.split("."), *attribute.split(".")]
    if not colon or not all(name.isidentifier() for name in names):
        raise invalid_spec(spec, f"expected a module and a name in it, for example {example}")
    return module, attribute


def make_importable(root: Path) -> None:
    """Put the project's directory on ``sys.path``, as ``python -m pytest`` does.

    It stays there: what is imported now may import more from it later.
    """
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))


def import_object(spec: str, module: str, attribute: str, root: Path) -> object:
    """Import what a spec names; ConfigurationError where it does not exist.

    MigrationError where the module exists and fails while it is imported.
    """
    make_importable(root)
    importlib.invalidate_caches()
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as error:
        # Only the named module or a package above it: what *it* imports is another matter.
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            raise ConfigurationError(
                f"migrations {spec!r}: there is no module {error.name!r}\n"
                f"  looked in {root} and in the rest of sys.path; is the name right, and the\n"
                "  package installed in this environment?"
            ) from error
        raise failed(spec, f" while importing {module}", error) from error
    except Exception as error:
        raise failed(spec, f" while importing {module}", error) from error
    try:
        return reduce(getattr, attribute.split("."), imported)
    except AttributeError as error:
        raise ConfigurationError(
            f"migrations {spec!r}: module {module!r} has no {attribute!r}\n"
            f"  it was read from {getattr(imported, '__file__', None) or imported}"
        ) from error


def outside_event_loop(function: Callable[[], _T]) -> _T:
    """Call a function that may use ``asyncio.run``, where no loop is running.

    Inside a running loop that takes a thread of its own, which the loop waits for: whoever
    migrates in a coroutine has nothing else to do meanwhile.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return function()
    results: list[_T] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            results.append(function())
        except BaseException as error:  # noqa: BLE001  raised again by the caller
            errors.append(error)

    thread = threading.Thread(target=call, name="sandbox-migrations")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]

"""``call:``: a function of the project's own builds the schema."""

from __future__ import annotations

import asyncio
import inspect
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sandbox.databases import urls
from sandbox.databases.migrations._connect import with_connection
from sandbox.databases.migrations._source import (
    failed,
    import_object,
    invalid_spec,
    outside_event_loop,
    split_reference,
)
from sandbox.errors import SandboxError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("CallSource",)

_WANTS = {
    "url": "url",
    "connection": "connection",
    "conn": "connection",
    "engine": "engine",
    "Connection": "connection",
    "AsyncConnection": "connection",
    "Engine": "engine",
    "AsyncEngine": "engine",
}


@dataclass(frozen=True, slots=True)
class CallSource:
    """A call of `attribute` in `module`, synchronous or a coroutine function.

    Its one parameter says what it gets: ``connection`` a SQLAlchemy connection in a transaction
    that is committed, ``engine`` an engine, anything else the URL. Without a parameter it is
    called with nothing and finds the database by itself.
    """

    description: str
    module: str
    attribute: str
    root: Path

    @classmethod
    def parse(cls, spec: str, argument: str, root: Path) -> CallSource:
        """Read ``tests.schema:build``."""
        if not argument:
            raise invalid_spec(spec, "names no function")
        module, attribute = split_reference(spec, argument, "call:tests.schema:build")
        return cls(spec, module, attribute, root)

    def run(self, url: str) -> None:
        """Call the function, in the way of MigrationSource.run."""
        function = import_object(self.description, self.module, self.attribute, self.root)
        if not callable(function):
            raise invalid_spec(
                self.description,
                f"{self.module}:{self.attribute} is a {type(function).__name__}, not a function",
            )
        wanted = self._wanted(function)
        try:
            outside_event_loop(lambda: _call(function, wanted, url))
        except SandboxError:
            raise
        except Exception as error:
            raise failed(self.description, _place(error, self.root), error) from error

    def _wanted(self, function: Callable[..., Any]) -> str | None:
        parameters = [
            each
            for each in _signature(function).parameters.values()
            if each.default is each.empty
            and each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
        ]
        if len(parameters) > 1:
            named = ", ".join(each.name for each in parameters)
            raise invalid_spec(
                self.description,
                f"{self.module}:{self.attribute} wants {len(parameters)} arguments ({named}); "
                "it is given one, the URL, an engine or a connection",
            )
        if not parameters:
            return None
        parameter = parameters[0]
        by_type = _WANTS.get(_type_name(parameter.annotation))
        return by_type or _WANTS.get(parameter.name, "url")


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    if sys.version_info >= (3, 14):
        # Annotations are evaluated now, and may name what is imported for type checkers only.
        from annotationlib import Format

        return inspect.signature(function, annotation_format=Format.FORWARDREF)
    return inspect.signature(function)


def _type_name(annotation: object) -> str:
    for attribute in ("__name__", "__forward_arg__"):
        annotation = getattr(annotation, attribute, annotation)
    return str(annotation).strip("'\"").rpartition(".")[2]


def _call(function: Callable[..., Any], wanted: str | None, url: str) -> None:
    if inspect.iscoroutinefunction(function):
        asyncio.run(_call_async(function, wanted, url))
    elif wanted == "connection":
        with_connection(url, function)
    elif wanted == "engine":
        _with_engine(url, function)
    elif wanted == "url":
        function(url)
    else:
        function()


def _with_engine(url: str, function: Callable[..., Any]) -> None:
    from sqlalchemy import create_engine

    engine = create_engine(urls.sync_url(url))
    try:
        function(engine)
    finally:
        engine.dispose()


async def _call_async(function: Callable[..., Any], wanted: str | None, url: str) -> None:
    if wanted not in ("connection", "engine"):
        await function(*([url] if wanted else []))
        return
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine(urls.async_url(url))
    try:
        if wanted == "engine":
            await function(engine)
        else:
            async with engine.begin() as connection:
                await function(connection)
    finally:
        await engine.dispose()


def _place(error: BaseException, root: Path) -> str:
    """The innermost line of the project's own: what it called is in the cause's traceback."""
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(root) and "site-packages" not in file.parts:
            place = f" at {file}:{line}"
    return place

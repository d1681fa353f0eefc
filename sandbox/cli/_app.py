"""The commands and their options; what they do is in the modules beside this one."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path  # noqa: TC003  typer reads the annotations
from typing import Annotated

import typer

import sandbox
from sandbox.errors import SandboxError

__all__ = ("app",)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Every test gets its own database.",
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


class Driver(StrEnum):
    """The drivers that a URL can be printed for."""

    PSYCOPG = "psycopg"
    PSYCOPG2 = "psycopg2"
    ASYNCPG = "asyncpg"


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sandbox {sandbox.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Hold what stands before the command's name."""


@app.command()
def doctor(
    *,
    json: Json = False,
    start: Annotated[bool, typer.Option(help="Start an embedded server once, and time it.")] = True,
) -> None:
    """Tell what works here, and the command that installs what is missing."""
    from sandbox.cli.doctor import examine, show

    raise typer.Exit(show(examine(start=start), as_json=json))


@app.command()
def up(
    *,
    migrations: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SPEC",
            help="What to build the schema from, as in the setting sandbox_migrations:"
            " alembic:alembic.ini, metadata:app.models:Base.metadata, sql:schema.sql or"
            " call:tests.schema:build. May be given several times.",
        ),
    ] = None,
    database: Annotated[str, typer.Option(help="The database to create.")] = "sandbox",
    driver: Annotated[Driver, typer.Option(help="The driver named in the URL.")] = Driver.PSYCOPG,
    env: Annotated[
        str, typer.Option(metavar="NAME", help="The environment variable migrations find it in.")
    ] = "DATABASE_URL",
    tcp: Annotated[bool, typer.Option("--tcp", help="Listen on 127.0.0.1 too.")] = False,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="The TCP port; implies --tcp.")
    ] = None,
    bindir: Annotated[
        Path | None, typer.Option(help="The directory that holds postgres and initdb.")
    ] = None,
    json: Json = False,
) -> None:
    """Run the embedded server, migrate, print the URL, and stop on Ctrl-C."""
    from sandbox.cli.up import Request, serve

    request = Request(
        migrations=tuple(migrations or ()),
        database=database,
        driver=driver.value,
        env=env,
        tcp=tcp or port is not None,
        port=port,
        bindir=bindir,
        as_json=json,
    )
    try:
        serve(request)
    except SandboxError as error:
        typer.echo(f"sandbox up: {error}", err=True)
        raise typer.Exit(1) from None

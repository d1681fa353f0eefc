"""``sandbox doctor``: the examination, and how it is shown."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sandbox.cli import _checks
from sandbox.cli._progress import Progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sandbox.cli._checks import Check

__all__ = ("examine", "show")

_COLOURS = {"ok": "green", "missing": "yellow", "broken": "red"}


def examine(*, start: bool) -> list[Check]:
    """Try everything out, the embedded server too if it may be started."""
    with Progress("looking around") as progress:
        return list(_checks.all_checks(start=start, progress=progress.tell))


def show(checks: Sequence[Check], *, as_json: bool) -> int:
    """Print the checks; return the exit code: 0 if some backend works here."""
    backends = [each.name for each in checks if each.group == "backends" and each.status == "ok"]
    if as_json:
        report = {"ok": bool(backends), "backends": backends, "checks": list(map(asdict, checks))}
        print(json.dumps(report, indent=2))
    else:
        _table(checks, backends)
    return 0 if backends else 1


def _table(checks: Sequence[Check], backends: Sequence[str]) -> None:
    console = Console(highlight=False)
    # Text, not markup: "psycopg[binary]" is no style.
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("", "what", "", "found, or how to install it"):
        table.add_column(title, overflow="fold")
    group = ""
    for check in checks:
        table.add_row(
            Text(check.group if check.group != group else "", style="bold"),
            Text(check.name),
            Text(check.status, style=_COLOURS[check.status]),
            Text("\n".join(filter(None, (check.detail, check.fix)))),
        )
        group = check.group
    console.print(table)
    if backends:
        console.print(Text(f"\nTests can run here on: {', '.join(backends)}."))
    else:
        console.print(Text(f"\nNo backend works here. Begin with: {_checks.INSTALL_POSTGRES}"))

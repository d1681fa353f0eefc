"""Tests that wrote to a database for good, and what was done about it."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

    from sandbox.connection.escapes import Escape

__all__ = ("EscapeReport", "take_escapes")


@dataclass(slots=True)
class _Line:
    nodeid: str
    how: str
    database: str
    done: str


class EscapeReport:
    """Gathered in each process, told by the controller."""

    def __init__(self) -> None:
        self._lines: list[_Line] = []

    def add(self, nodeid: str, escape: Escape, done: str) -> None:
        """One escape, and what became of the database."""
        self._lines.append(_Line(nodeid, escape.how, escape.name, done))

    def pack(self) -> list[dict[str, Any]]:
        """As plain values, for the way from a worker to the controller."""
        return [asdict(line) for line in self._lines]

    def merge(self, packed: list[dict[str, Any]]) -> None:
        """Add what a worker has gathered."""
        self._lines += [_Line(**line) for line in packed]

    def write(self, reporter: pytest.TerminalReporter) -> None:
        """The section of the summary, if there is anything to say."""
        if not self._lines:
            return
        reporter.section("sandbox: escapes", red=True)
        for line in self._lines:
            reporter.write_line(
                f"{line.nodeid} ended the transaction around it by {line.how}."
                f" The {line.database} {line.done}."
            )


def take_escapes() -> list[Escape]:
    """What has happened since this was last asked; nothing while nobody uses a sandbox."""
    module = sys.modules.get("sandbox.connection.escapes")
    return module.take() if module is not None else []

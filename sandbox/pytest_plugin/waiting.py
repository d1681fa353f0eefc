"""Tests that waited for themselves: which, how long, and where both sides are."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest

    from sandbox.connection.waits import Stats

__all__ = ("WaitReport",)

SHOWN_FROM: Final = 0.1
"""Seconds in all from which on a test is shown."""

SHOWN: Final = 20
"""How many tests are: those that waited longest."""


@dataclass(slots=True)
class _Pair:
    """A place that waited for a transaction that began at another, as often as it did."""

    waiter: str
    holder: str
    seconds: float = 0.0
    times: int = 0


@dataclass(slots=True)
class _Test:
    nodeid: str
    seconds: float
    pairs: list[_Pair] = field(default_factory=list)


class WaitReport:
    """Gathered in each process, told by the controller."""

    def __init__(self) -> None:
        self._tests: list[_Test] = []

    def add(self, nodeid: str, stats: Sequence[Stats]) -> None:
        """Look at what one test has waited."""
        seconds = sum(each.waited for each in stats)
        if seconds < SHOWN_FROM:
            return
        pairs: dict[tuple[str, str], _Pair] = {}
        for wait in (wait for each in stats for wait in each.longest):
            pair = pairs.setdefault((wait.waiter, wait.holder), _Pair(wait.waiter, wait.holder))
            pair.seconds += wait.seconds
            pair.times += 1
        longest = sorted(pairs.values(), key=lambda pair: -pair.seconds)
        self._tests.append(_Test(nodeid, seconds, longest))

    def pack(self) -> list[dict[str, Any]]:
        """As plain values, for the way from a worker to the controller."""
        return [asdict(test) for test in self._tests]

    def merge(self, packed: list[dict[str, Any]]) -> None:
        """Add what a worker has gathered."""
        for test in packed:
            pairs = [_Pair(**pair) for pair in test["pairs"]]
            self._tests.append(_Test(test["nodeid"], test["seconds"], pairs))

    def write(self, reporter: pytest.TerminalReporter) -> None:
        """The section of the summary, if there is anything to say."""
        if not self._tests or reporter.verbosity < -1:
            return
        root = f"{reporter.config.rootpath}{os.sep}"
        tests = sorted(self._tests, key=lambda test: -test.seconds)
        reporter.section("sandbox: transactions that waited for one another")
        for test in tests[:SHOWN]:
            reporter.write_line(f"{test.nodeid} waited {test.seconds * 1000:.0f} ms")
            for pair in test.pairs:
                times = f", {pair.times} times" if pair.times > 1 else ""
                reporter.write_line(
                    f"  {pair.seconds * 1000:.0f} ms{times}: {pair.waiter.removeprefix(root)}"
                    f"\n      for the transaction of {pair.holder.removeprefix(root) or 'nobody'}"
                )
        if len(tests) > SHOWN:
            reporter.write_line(f"and {len(tests) - SHOWN} more")

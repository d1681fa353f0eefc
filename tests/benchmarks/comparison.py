"""Contenders in alternation, so that what disturbs the machine disturbs all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from tests.benchmarks.contenders import PLAIN, RECIPE, Contender

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("COMPARISONS", "Comparison")


@dataclass
class Comparison:
    """The seconds that each contender took, round by round."""

    group: str
    contenders: Sequence[Contender]
    seconds: dict[str, list[float]] = field(default_factory=dict)
    _rounds: int = 0

    def alternate(self) -> None:
        """One round: each of them once, who begins changes."""
        first = self._rounds % len(self.contenders)
        for contender in [*self.contenders[first:], *self.contenders[:first]]:
            self.seconds.setdefault(contender.name, []).append(_time(contender.run))
        self._rounds += 1

    @property
    def medians(self) -> dict[str, float]:
        """Milliseconds."""
        return {name: statistics.median(values) * 1000 for name, values in self.seconds.items()}

    def lines(self) -> list[str]:
        """A table: medians, and their ratios to the two that everybody knows."""
        medians = self.medians
        references = [name for name in (PLAIN, RECIPE) if name in medians]
        width = max(map(len, medians)) + 2
        head = f"{'':{width}}{'median ms':>10}{'fastest':>10}"
        lines = [
            f"{self.group}, {self._rounds} rounds in alternation",
            head + "".join(f"{'/ ' + name:>17}" for name in references),
        ]
        for name, median in medians.items():
            ratios = "".join(f"{median / medians[other]:17.2f}" for other in references)
            fastest = min(self.seconds[name]) * 1000
            lines.append(f"{name:{width}}{median:10.2f}{fastest:10.2f}{ratios}")
        return lines


COMPARISONS = pytest.StashKey[list[Comparison]]()


def _time(run: Callable[[], None]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began

"""What isolation has cost: counted in each process, summed in the controller, told at the end."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandbox.connection.sandbox import Stats

__all__ = ("Costs",)


@dataclass(slots=True)
class Costs:
    """The sums over the tests that were sandboxed. Times in seconds."""

    tests: int = 0
    checkout: float = 0.0
    checkin: float = 0.0
    statements: int = 0
    round_trips: int = 0
    longest_wait: float = 0.0
    waiter: str = ""

    def add(self, label: str, checkout: float, checkin: float, stats: list[Stats]) -> None:
        """Count one test."""
        self.tests += 1
        self.checkout += checkout
        self.checkin += checkin
        self.statements += sum(each.statements for each in stats)
        self.round_trips += sum(each.round_trips for each in stats)
        self._wait(sum(each.waited for each in stats), label)

    def pack(self) -> dict[str, object]:
        """As plain values, for the way from a worker to the controller."""
        return asdict(self)

    def merge(self, packed: Mapping[str, object]) -> None:
        """Add what a worker has counted."""
        other = Costs(**packed)  # type: ignore[arg-type]
        self.tests += other.tests
        self.checkout += other.checkout
        self.checkin += other.checkin
        self.statements += other.statements
        self.round_trips += other.round_trips
        self._wait(other.longest_wait, other.waiter)

    def line(self) -> str:
        """The summary's line."""
        checkout = self.checkout / self.tests * 1000
        checkin = self.checkin / self.tests * 1000
        text = (
            f"sandbox: {_count(self.tests, 'test')} isolated, {checkout + checkin:.2f} ms each"
            f" (checkout {checkout:.2f}, check-in {checkin:.2f}),"
            f" {_count(self.statements, 'statement')},"
            f" {_count(self.round_trips, 'extra round trip')}"
        )
        if self.waiter:
            text += f", slowest wait {self.longest_wait * 1000:.0f} ms ({self.waiter})"
        return text

    def _wait(self, seconds: float, label: str) -> None:
        if seconds > self.longest_wait:
            self.longest_wait, self.waiter = seconds, label


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"

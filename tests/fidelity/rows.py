"""What a row of the comparison is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.fidelity.worlds import World

__all__ = ("ADD", "SAME", "Row")

SAME = "as production"


@dataclass(frozen=True)
class Row:
    """What an application does, and what comes of it in each world."""

    title: str
    scenario: Callable[[World], str]
    production: str
    recipe: str = SAME
    django: str = SAME
    ours: str = SAME

    @property
    def name(self) -> str:
        return self.scenario.__name__

    def expected(self, world: str) -> str:
        found = {
            "production": self.production,
            "SQLAlchemy recipe": self.recipe,
            "Django TestCase": self.django,
            "sandbox": self.ours,
        }[world]
        return self.production if found == SAME else found


ADD = "INSERT INTO items (name) VALUES ('{}')"

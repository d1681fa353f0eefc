"""What a checkout may choose about its sandbox."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Self

from sandbox.connection.dialect import LEVELS
from sandbox.errors import ConfigurationError

__all__ = ("BUSY_AFTER", "LOCK_AFTER", "NEST_AFTER", "Options")

NEST_AFTER: Final = 0.25
BUSY_AFTER: Final = 10.0
LOCK_AFTER: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Chosen at checkout and the same for all of a sandbox's connections. Times are seconds."""

    isolation_level: str | None = None
    """Of the outer transaction; None: what the first transaction in it asks for."""
    late_isolation: str = "error"
    """What happens to a transaction that asks for a stronger level than the outer one has:
    ``"error"`` refuses it, ``"warn"`` lets it run with a warning."""
    nest_after: float = NEST_AFTER
    """How long a sibling's new transaction waits for one that has written, before it nests."""
    busy_after: float = BUSY_AFTER
    """How long a statement waits for the real connection, or for those above it to end."""
    lock_timeout: float = LOCK_AFTER
    """How long the server lets a statement wait for another sandbox's lock; 0 is for ever."""

    @classmethod
    def checked(cls, **given: Any) -> Self:
        """As the user gave them; ConfigurationError for values that cannot be."""
        level = given.get("isolation_level")
        if level is not None:
            level = given["isolation_level"] = str(level).upper().replace("_", " ")
            if level not in LEVELS:
                raise ConfigurationError(
                    f"isolation level {level!r} is not known; use one of {', '.join(LEVELS)}."
                )
        options = cls(**given)
        if options.late_isolation not in {"error", "warn"}:
            raise ConfigurationError(
                f"late_isolation={options.late_isolation!r} is not known: use 'error' or 'warn'."
            )
        for name in ("nest_after", "busy_after", "lock_timeout"):
            seconds = getattr(options, name)
            if isinstance(seconds, str) or not seconds >= 0:
                raise ConfigurationError(f"{name}={seconds!r}: seconds are needed, 0 or more.")
        return options

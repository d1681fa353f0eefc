"""What a server keeps for one client connection between its transactions.

On a real connection that is the server session. Virtual connections share one, so that each has to
be remembered what would be its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ("ServerSession",)


@dataclass(slots=True, eq=False)
class ServerSession:
    """The committed state of one virtual connection's session, in one sandbox."""

    settings: dict[str, str] = field(default_factory=dict)
    """By SET."""
    channels: set[str] = field(default_factory=set)
    """It listens to."""
    emptied: list[str] = field(default_factory=list)
    """Temporary tables whose rows each commit deletes."""

"""What can go wrong, as one hierarchy.

Every message says what happened, who owns what and what to do, and ends with the anchor of
the page that explains it. The form follows Ecto's ``DBConnection.OwnershipError``, whose text
is the reason that sandbox's users know what to do next.
"""

from __future__ import annotations

__all__ = (
    "AlreadyOwnerError",
    "AlreadySharedError",
    "BrokenSandboxError",
    "ClockWarning",
    "ConfigurationError",
    "InterleavedTransactionError",
    "IsolationLevelWarning",
    "MigrationError",
    "NotFoundError",
    "NotOwnerError",
    "OwnerExitedError",
    "OwnershipError",
    "SandboxBusyError",
    "SandboxError",
    "SandboxEscapeError",
    "ServerStartError",
    "UndeliveredNotificationWarning",
    "UnsafeDatabaseError",
    "UnsupportedInSandboxError",
    "UnsupportedTargetError",
)


class SandboxError(Exception):
    """The base of every error that the sandbox itself raises."""

    def __init__(self, message: str) -> None:
        self.message = message
        super().__init__(message)

    def __str__(self) -> str:
        return f"{self.message}\n  see docs/reference/errors.md#{type(self).__name__.lower()}"


class OwnershipError(SandboxError):
    """The caller may not use the database: it owns no sandbox and nobody allowed it."""


class OwnerExitedError(OwnershipError):
    """The caller's owner has checked in: this thread or task outlived its test."""


class AlreadyOwnerError(SandboxError):
    """A second checkout or allowance where the first still stands."""


class NotOwnerError(SandboxError):
    """Only the owner may check in; the caller merely uses the sandbox."""


class NotFoundError(SandboxError):
    """Nothing is checked out for this caller."""


class AlreadySharedError(SandboxError):
    """Another live owner shares its sandbox already."""


class SandboxBusyError(SandboxError):
    """The one real connection was not free in time."""


class InterleavedTransactionError(SandboxError):
    """A rollback undid what another transaction had committed."""


class SandboxEscapeError(SandboxError):
    """Somebody ended, or tried to end, the transaction that contains the test."""


class UnsupportedInSandboxError(SandboxError):
    """No transaction can hold this statement."""


class BrokenSandboxError(SandboxError):
    """The sandbox's real connection was lost; what was written is gone."""


class UnsupportedTargetError(SandboxError, TypeError):
    """What was checked out is nothing that can be sandboxed."""


class ConfigurationError(SandboxError, ValueError):
    """A setting that cannot be understood, or that contradicts another."""


class ServerStartError(SandboxError):
    """The embedded server could not be started: why, and what to install."""


class MigrationError(SandboxError):
    """The schema could not be built; nothing half-built was kept."""


class UnsafeDatabaseError(SandboxError):
    """The URL does not look like a test database and was not made by us."""


class IsolationLevelWarning(UserWarning):
    """A transaction asked for a stronger isolation level than its sandbox began with."""


class UndeliveredNotificationWarning(UserWarning):
    """A NOTIFY was committed that nobody in its sandbox listens for."""


class ClockWarning(UserWarning):
    """A statement read a clock that ``sandbox.clock()`` cannot set."""

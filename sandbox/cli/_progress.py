"""Say what takes long, and nothing about what does not."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from rich.console import Console
from rich.status import Status

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

__all__ = ("Progress",)

_PATIENCE = 1.0  # seconds


class Progress:
    """A spinner on the standard error, shown once something has taken longer than a second.

    Where that is no terminal, one plain line instead.
    """

    def __init__(self, doing: str) -> None:
        self._console = Console(stderr=True)
        self._doing = doing
        self._status: Status | None = None
        self._lock = threading.Lock()
        self._over = False
        self._timer = threading.Timer(_PATIENCE, self._show)
        self._timer.daemon = True

    def tell(self, doing: str) -> None:
        """Say what is being done now."""
        with self._lock:
            self._doing = doing
            if self._status is not None:
                self._status.update(f"{doing} …")

    def _show(self) -> None:
        with self._lock:
            if self._over:
                return
            if not self._console.is_terminal:
                self._console.print(f"{self._doing} …", highlight=False, markup=False)
                return
            self._status = Status(f"{self._doing} …", console=self._console)
            self._status.start()

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        with self._lock:
            self._over = True
            if self._status is not None:
                self._status.stop()
        self._timer.join()

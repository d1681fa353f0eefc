"""Tracebacks of failing tests show the application's frames and the driver's, not ours."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from sandbox.errors import SandboxError

if TYPE_CHECKING:
    import pytest

__all__ = ("hide_our_frames",)


def hide_our_frames() -> None:
    """Tell pytest to leave our modules out of tracebacks; ``--full-trace`` shows them again.

    Called when something has failed: only then is it known which modules were imported.
    """
    for name, module in list(sys.modules.items()):
        if name.startswith("sandbox."):
            vars(module)["__tracebackhide__"] = _is_noise


def _is_noise(excinfo: pytest.ExceptionInfo[BaseException] | None) -> bool:
    """Whether our frames tell nothing: unless the error is a bug of ours.

    That is one of Python's own, raised in a module of ours. Errors of drivers that are written in
    C come from there too, but are classes of the driver's.
    """
    if excinfo is None or isinstance(excinfo.value, SandboxError):
        return True
    innermost = excinfo.traceback[-1].frame.f_globals.get("__name__", "")
    ours = str(innermost).startswith("sandbox.")
    return not (ours and type(excinfo.value).__module__ == "builtins")

"""Every test gets its own database, and the application does not notice.

import sandbox

sandbox.checkout(engine)      # from here on everything is contained …
...                           # … commits, threads, tasks
sandbox.checkin(engine)       # … and rolled back
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sandbox._api import (
        acheckin,
        allow,
        checkin,
        checkout,
        get_conn,
        mode,
        sandboxed,
        start,
        stop,
        unallow,
    )
    from sandbox._clock import clock
    from sandbox.connection.sandbox import Sandbox, Stats
    from sandbox.core.owner import Owner, current_owner, inherit_threads, run_as
    from sandbox.core.ownership import Shared

__version__ = "0.1.0"

__all__ = (
    "Owner",
    "Sandbox",
    "Shared",
    "Stats",
    "acheckin",
    "allow",
    "checkin",
    "checkout",
    "clock",
    "current_owner",
    "get_conn",
    "inherit_threads",
    "mode",
    "run_as",
    "sandboxed",
    "start",
    "stop",
    "unallow",
)

# Imported when first used (PEP 562): the pytest plugin is loaded by every run on the machine,
# and most of them have nothing to do with us.
_HOMES = {
    "Owner": "sandbox.core.owner",
    "Sandbox": "sandbox.connection.sandbox",
    "Shared": "sandbox.core.ownership",
    "Stats": "sandbox.connection.sandbox",
    "clock": "sandbox._clock",
    "current_owner": "sandbox.core.owner",
    "inherit_threads": "sandbox.core.owner",
    "run_as": "sandbox.core.owner",
}


def __getattr__(name: str) -> Any:
    if name in __all__:
        value = getattr(importlib.import_module(_HOMES.get(name, "sandbox._api")), name)
        globals()[name] = value
        return value
    if name == "errors":
        return importlib.import_module("sandbox.errors")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "errors"})

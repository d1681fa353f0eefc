"""Every test gets its own database, and the application does not notice.

import sandbox

sandbox.checkout(engine)      # from here on everything is contained …
...                           # … commits, threads, tasks
sandbox.checkin(engine)       # … and rolled back
"""

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

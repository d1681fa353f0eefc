"""Which process of the run this is: the only one, xdist's controller, or one of its workers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

    import pytest

__all__ = ("FILES_VARIABLE", "SERVER_VARIABLE", "is_controller", "worker_name")

SERVER_VARIABLE = "SANDBOX_SERVER"
"""Environment variable naming the run directory of the server to share in."""

FILES_VARIABLE = "SANDBOX_FILES"
"""Environment variable naming the directory that the processes of a run share files in."""


def worker_name() -> str | None:
    """The worker's name, ``gw0``; None in any other process.

    Read from the environment: xdist sets ``config.workerinput`` only after initial conftests.
    """
    return os.environ.get("PYTEST_XDIST_WORKER")


def is_controller(config: pytest.Config, options: argparse.Namespace) -> bool:
    """Whether this process will hand the tests to workers, told from the command line alone.

    xdist itself decides later, in ``pytest_cmdline_main``; by then conftests are imported.
    """
    if worker_name() is not None or not config.pluginmanager.hasplugin("xdist"):
        return False
    if getattr(options, "collectonly", False):
        return False
    count = getattr(options, "numprocesses", None)
    if count in {"auto", "logical"}:
        return not getattr(options, "usepdb", False)
    if count is not None:
        return bool(count)
    distributes = getattr(options, "dist", "no") != "no" or getattr(options, "distload", False)
    return bool(distributes and getattr(options, "tx", None))

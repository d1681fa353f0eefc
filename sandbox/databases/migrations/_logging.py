"""Keep a project's ``env.py`` from changing how the rest of the process logs.

Alembic's template calls ``logging.config.fileConfig``, which disables every logger that exists,
closes every handler and puts its own on the root. In a test run that silences the application
and breaks pytest's capture, so the state is put back.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ("logging_preserved",)


@contextlib.contextmanager
def logging_preserved() -> Iterator[None]:
    """Put levels, handlers and disabled flags of all loggers back at the end.

    Loggers that came into being meanwhile stay, but not disabled. Not for two threads at once.
    """
    before = {logger: _state(logger) for logger in _loggers()}
    handlers = {handler for state in before.values() for handler in state[1]}
    for handler in handlers:
        # fileConfig closes what it drops; a closed log file would not be written to again.
        handler.__dict__.setdefault("close", _do_nothing)
    try:
        yield
    finally:
        for handler in handlers:
            if handler.__dict__.get("close") is _do_nothing:
                del handler.__dict__["close"]
        for logger in _loggers():
            if logger in before:
                _restore(logger, before[logger])
            else:
                logger.disabled = False


_State = tuple[int, list[logging.Handler], bool, bool]


def _loggers() -> list[logging.Logger]:
    registered = list(logging.root.manager.loggerDict.values())
    return [logging.root, *(each for each in registered if isinstance(each, logging.Logger))]


def _state(logger: logging.Logger) -> _State:
    return logger.level, list(logger.handlers), logger.propagate, logger.disabled


def _restore(logger: logging.Logger, state: _State) -> None:
    level, handlers, logger.propagate, logger.disabled = state
    if logger.level != level:
        logger.setLevel(level)
    if logger.handlers != handlers:
        for handler in [each for each in logger.handlers if each not in handlers]:
            logger.removeHandler(handler)
            handler.close()
        logger.handlers[:] = handlers


def _do_nothing() -> None:
    pass

"""The application's pool, filled with virtual connections.

An adopted engine keeps its pool's class, size, timeouts and listeners; what lies in the pool are
virtual connections. The pool that the application made goes on below them as the place where real
connections are made, so that ``connect`` listeners prepare real connections and nothing else.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from sqlalchemy.pool import Pool
from sqlalchemy.pool.base import _ConnectionRecord

if TYPE_CHECKING:
    from sandbox.adapters.sqlalchemy.source import EngineSource

__all__ = ("VirtualPool", "VirtualRecord", "adopted", "is_adopted")


class VirtualRecord(_ConnectionRecord):
    """A place in the pool that holds a virtual connection.

    It fires no ``connect`` events: its connection is none yet. It never grows old or stale.
    """

    def __init__(self, pool: Any) -> None:
        super().__init__(pool, connect=False)
        self._source: EngineSource = pool._sandbox_source
        self._make()

    def _make(self) -> None:
        connection: Any = self._source.virtual()
        self.dbapi_connection = connection
        self.starttime = time.time()
        self.fresh = True
        self.info.clear()
        self.info.update(self._source.info)

    def get_connection(self) -> Any:
        connection: Any = self.dbapi_connection
        if connection is None:
            self._make()
        else:
            connection._lent_again()
        return self.dbapi_connection


class VirtualPool(Pool):
    """Mixed in before the class of the application's pool."""

    _sandbox_source: EngineSource

    def _create_connection(self) -> Any:
        return VirtualRecord(self)

    @property
    def connection(self) -> Any:
        """StaticPool's one record."""
        record = self.__dict__.get("connection")
        if record is None:
            record = self.__dict__["connection"] = VirtualRecord(self)
        return record

    def dispose(self) -> None:
        super().dispose()
        self._sandbox_source.disposed()

    def recreate(self) -> Any:
        pool: Any = super().recreate()
        pool._sandbox_source = self._sandbox_source
        self._sandbox_source.follow(pool)
        return pool


_classes: dict[type[Pool], type[Pool]] = {}


def is_adopted(pool: Pool) -> bool:
    """Whether this pool's connections are virtual."""
    return isinstance(pool, VirtualPool)


def adopted(pool: Pool, source: EngineSource) -> Pool:
    """A pool like this one, its connections virtual."""
    cls = type(pool)
    virtual = _classes.get(cls)
    if virtual is None:
        # __module__ and __qualname__ stay: loggers are named after them.
        names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
        virtual = _classes[cls] = type(cls.__name__, (VirtualPool, cls), names)
    twin: Any = pool.recreate()
    twin.__class__ = virtual
    twin._sandbox_source = source
    return twin  # type: ignore[no-any-return]

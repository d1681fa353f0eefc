"""What the application reads from its environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import URL, make_url


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that differs between one installation and the next."""

    database_url: URL
    pool_size: int = 5
    max_overflow: int = 10
    lock_timeout_ms: int = 5_000
    fulfilment_workers: int = 2

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Settings:
        env = os.environ if environ is None else environ
        try:
            url = make_url(env["DATABASE_URL"])
        except KeyError:
            msg = "DATABASE_URL is not set, e.g. postgresql+asyncpg://bookshop@localhost/bookshop"
            raise RuntimeError(msg) from None
        return cls(
            database_url=url,
            pool_size=int(env.get("BOOKSHOP_POOL_SIZE", "5")),
            max_overflow=int(env.get("BOOKSHOP_MAX_OVERFLOW", "10")),
            lock_timeout_ms=int(env.get("BOOKSHOP_LOCK_TIMEOUT_MS", "5000")),
            fulfilment_workers=int(env.get("BOOKSHOP_FULFILMENT_WORKERS", "2")),
        )

    @property
    def async_url(self) -> URL:
        """For the request handlers."""
        return self.database_url.set(drivername="postgresql+asyncpg")

    @property
    def sync_url(self) -> URL:
        """For the warehouse's threads and for migrations."""
        return self.database_url.set(drivername="postgresql+psycopg")

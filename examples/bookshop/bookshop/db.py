"""The two engines: asyncpg for request handlers, psycopg for the warehouse's threads.

They belong to two bounded contexts. Shop code never touches the warehouse's tables and the
warehouse never touches the shop's: what one needs from the other travels as a message.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import Depends
from sqlalchemy import create_engine, event
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker

from bookshop.settings import Settings

settings = Settings.from_environment()

async_engine = create_async_engine(
    settings.async_url,
    pool_size=settings.pool_size,
    max_overflow=settings.max_overflow,
    pool_pre_ping=True,
    connect_args={
        "server_settings": {
            "application_name": "bookshop-web",
            "lock_timeout": str(settings.lock_timeout_ms),
        }
    },
)
ShopSession = async_sessionmaker(async_engine, expire_on_commit=False)

sync_engine = create_engine(
    settings.sync_url,
    pool_size=settings.fulfilment_workers + 1,
    max_overflow=settings.max_overflow,
    pool_pre_ping=True,
    connect_args={"application_name": "bookshop-warehouse"},
)
WarehouseSession = sessionmaker(sync_engine, expire_on_commit=False)


@event.listens_for(sync_engine, "connect")
def _set_lock_timeout(dbapi_connection: Any, _record: Any) -> None:
    """A picker who waits for another one's row should hear about it, not hang."""
    with dbapi_connection.cursor() as cursor:
        cursor.execute(f"SET lock_timeout = {settings.lock_timeout_ms}")
    # Without this the SET would be undone by the pool's first rollback.
    dbapi_connection.commit()


async def get_session() -> AsyncIterator[AsyncSession]:
    """One session per request; whatever the handler did not commit is rolled back."""
    async with ShopSession() as session:
        yield session


SessionDep = Annotated[AsyncSession, Depends(get_session)]

from __future__ import annotations

from alembic import context
from sqlalchemy import create_engine, pool

from bookshop.models import ShopBase
from bookshop.settings import Settings
from bookshop.warehouse.models import WarehouseBase

target_metadata = [ShopBase.metadata, WarehouseBase.metadata]


def run_migrations_offline() -> None:
    context.configure(
        url=Settings.from_environment().sync_url,
        target_metadata=target_metadata,
        literal_binds=True,
    )
    with context.begin_transaction():
        context.run_migrations()


def run_migrations_online() -> None:
    engine = create_engine(Settings.from_environment().sync_url, poolclass=pool.NullPool)
    with engine.connect() as connection:
        context.configure(connection=connection, target_metadata=target_metadata)
        with context.begin_transaction():
            context.run_migrations()


if context.is_offline_mode():
    run_migrations_offline()
else:
    run_migrations_online()

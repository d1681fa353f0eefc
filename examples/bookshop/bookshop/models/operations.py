"""What the shop keeps about itself: the audit log, snapshots, and read-only views."""

from __future__ import annotations

from datetime import date
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Integer,
    MetaData,
    Numeric,
    String,
    Table,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from bookshop.models.base import ShopBase, intpk, money, timestamp


class AuditEntry(ShopBase):
    """Written by the trigger `audit_row`, never by the application."""

    __tablename__ = "audit_log"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    table_name: Mapped[str] = mapped_column(String(63), index=True)
    operation: Mapped[str] = mapped_column(String(6))
    row_id: Mapped[int]
    old_row: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    new_row: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    changed_at: Mapped[timestamp]


class MaintenanceRun(ShopBase):
    __tablename__ = "maintenance_runs"

    id: Mapped[intpk]
    task: Mapped[str] = mapped_column(String(50))
    finished_at: Mapped[timestamp]


class SalesSnapshot(ShopBase):
    """Sales per book as they stood at the close of a day."""

    __tablename__ = "sales_snapshots"

    day: Mapped[date] = mapped_column(primary_key=True)
    book_id: Mapped[int] = mapped_column(
        ForeignKey("books.id", ondelete="CASCADE"), primary_key=True
    )
    copies: Mapped[int]
    revenue: Mapped[money]


# Views, for reading: kept out of the metadata the migrations are compared with.
views = MetaData()

sales_by_book = Table(
    "sales_by_book",
    views,
    Column("book_id", Integer, primary_key=True),
    Column("isbn", String(13)),
    Column("title", String(300)),
    Column("copies", Integer),
    Column("revenue", Numeric(12, 2)),
)

bestsellers = Table(
    "bestsellers",
    views,
    Column("book_id", Integer, primary_key=True),
    Column("isbn", String(13)),
    Column("title", String(300)),
    Column("copies", Integer),
)

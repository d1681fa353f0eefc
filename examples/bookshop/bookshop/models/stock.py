from __future__ import annotations

from sqlalchemy import CheckConstraint, ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column

from bookshop.models.base import ShopBase, intpk, timestamp


class Stock(ShopBase):
    """Copies that may still be sold. Changed only under `FOR UPDATE`."""

    __tablename__ = "stock"
    __table_args__ = (CheckConstraint("quantity >= 0", name="not_negative"),)

    book_id: Mapped[int] = mapped_column(
        ForeignKey("books.id", ondelete="CASCADE"), primary_key=True
    )
    quantity: Mapped[int] = mapped_column(server_default="0")


class StockMovement(ShopBase):
    """The ledger behind `Stock`: their sums agree at all times."""

    __tablename__ = "stock_movements"

    id: Mapped[intpk]
    book_id: Mapped[int] = mapped_column(ForeignKey("books.id", ondelete="CASCADE"), index=True)
    delta: Mapped[int]
    reason: Mapped[str] = mapped_column(String(50))
    created_at: Mapped[timestamp]

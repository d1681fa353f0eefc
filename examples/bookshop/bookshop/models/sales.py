from __future__ import annotations

import enum

from sqlalchemy import CheckConstraint, Enum, ForeignKey, Index, Sequence, String, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from bookshop.models.base import ShopBase, intpk, money, timestamp
from bookshop.models.catalogue import Book

order_numbers = Sequence("order_numbers", metadata=ShopBase.metadata)


class OrderStatus(enum.StrEnum):
    PENDING = "pending"
    PAID = "paid"
    FAILED = "failed"
    CANCELLED = "cancelled"


order_status = Enum(
    OrderStatus,
    name="order_status",
    values_callable=lambda statuses: [status.value for status in statuses],
)


class Cart(ShopBase):
    __tablename__ = "carts"
    __table_args__ = (
        Index(
            "uq_carts_one_open", "customer_id", unique=True, postgresql_where=text("NOT ordered")
        ),
    )

    id: Mapped[intpk]
    customer_id: Mapped[int] = mapped_column(ForeignKey("customers.id", ondelete="CASCADE"))
    ordered: Mapped[bool] = mapped_column(server_default=text("false"))
    created_at: Mapped[timestamp]

    items: Mapped[list[CartItem]] = relationship(
        cascade="all, delete-orphan", order_by="CartItem.book_id", lazy="raise"
    )


class CartItem(ShopBase):
    __tablename__ = "cart_items"
    __table_args__ = (CheckConstraint("quantity > 0", name="quantity_positive"),)

    cart_id: Mapped[int] = mapped_column(
        ForeignKey("carts.id", ondelete="CASCADE"), primary_key=True
    )
    book_id: Mapped[int] = mapped_column(ForeignKey("books.id"), primary_key=True)
    quantity: Mapped[int]

    book: Mapped[Book] = relationship(lazy="raise")


class Order(ShopBase):
    __tablename__ = "orders"

    id: Mapped[intpk]
    number: Mapped[str] = mapped_column(String(20), unique=True)
    customer_id: Mapped[int] = mapped_column(ForeignKey("customers.id"), index=True)
    status: Mapped[OrderStatus] = mapped_column(order_status, server_default="pending")
    total: Mapped[money]
    ship_to: Mapped[str] = mapped_column(String(400))
    created_at: Mapped[timestamp]

    lines: Mapped[list[OrderLine]] = relationship(
        cascade="all, delete-orphan", order_by="OrderLine.book_id", lazy="raise"
    )
    payments: Mapped[list[Payment]] = relationship(order_by="Payment.id", lazy="raise")


class OrderLine(ShopBase):
    __tablename__ = "order_lines"
    __table_args__ = (CheckConstraint("quantity > 0", name="quantity_positive"),)

    order_id: Mapped[int] = mapped_column(
        ForeignKey("orders.id", ondelete="CASCADE"), primary_key=True
    )
    book_id: Mapped[int] = mapped_column(ForeignKey("books.id"), primary_key=True)
    quantity: Mapped[int]
    unit_price: Mapped[money]

    book: Mapped[Book] = relationship(lazy="raise")


class Payment(ShopBase):
    """One attempt to charge a card, also the declined ones."""

    __tablename__ = "payments"

    id: Mapped[intpk]
    order_id: Mapped[int] = mapped_column(ForeignKey("orders.id"), index=True)
    amount: Mapped[money]
    accepted: Mapped[bool]
    reference: Mapped[str] = mapped_column(String(100))
    created_at: Mapped[timestamp]

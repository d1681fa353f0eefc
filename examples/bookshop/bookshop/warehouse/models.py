from __future__ import annotations

import enum

from sqlalchemy import CheckConstraint, Enum, ForeignKey, MetaData, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from bookshop.models.base import NAMING, intpk, money, timestamp


class WarehouseBase(DeclarativeBase):
    """Tables of the warehouse: no foreign key leaves this context."""

    metadata = MetaData(naming_convention=NAMING)


class ShipmentStatus(enum.StrEnum):
    PICKING = "picking"
    PACKED = "packed"
    SENT = "sent"


shipment_status = Enum(
    ShipmentStatus,
    name="shipment_status",
    values_callable=lambda statuses: [status.value for status in statuses],
)


class Shipment(WarehouseBase):
    __tablename__ = "shipments"

    id: Mapped[intpk]
    order_number: Mapped[str] = mapped_column(String(20), unique=True)
    recipient: Mapped[str] = mapped_column(String(200))
    ship_to: Mapped[str] = mapped_column(String(400))
    status: Mapped[ShipmentStatus] = mapped_column(shipment_status, server_default="picking")
    created_at: Mapped[timestamp]

    pick_tasks: Mapped[list[PickTask]] = relationship(
        back_populates="shipment", cascade="all, delete-orphan", order_by="PickTask.id"
    )


class PickTask(WarehouseBase):
    __tablename__ = "pick_tasks"
    __table_args__ = (CheckConstraint("quantity > 0", name="quantity_positive"),)

    id: Mapped[intpk]
    shipment_id: Mapped[int] = mapped_column(
        ForeignKey("shipments.id", ondelete="CASCADE"), index=True
    )
    isbn: Mapped[str] = mapped_column(String(13))
    quantity: Mapped[int]
    picker: Mapped[str | None] = mapped_column(String(100))
    done: Mapped[bool] = mapped_column(server_default="false")

    shipment: Mapped[Shipment] = relationship(back_populates="pick_tasks")


class FulfilmentEvent(WarehouseBase):
    __tablename__ = "fulfilment_events"

    id: Mapped[intpk]
    order_number: Mapped[str] = mapped_column(String(20), index=True)
    kind: Mapped[str] = mapped_column(String(20))
    detail: Mapped[str] = mapped_column(Text, server_default="")
    created_at: Mapped[timestamp]


class SupplierPrice(WarehouseBase):
    """What a supplier asks for a copy."""

    __tablename__ = "supplier_prices"
    __table_args__ = (
        UniqueConstraint("supplier", "isbn"),
        CheckConstraint("price > 0", name="price_positive"),
    )

    id: Mapped[intpk]
    supplier: Mapped[str] = mapped_column(String(100))
    isbn: Mapped[str] = mapped_column(String(13))
    price: Mapped[money]

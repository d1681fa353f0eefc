from __future__ import annotations

from sqlalchemy import ForeignKey, Index, String, func
from sqlalchemy.orm import Mapped, mapped_column, relationship

from bookshop.models.base import ShopBase, intpk, timestamp


class Customer(ShopBase):
    __tablename__ = "customers"

    id: Mapped[intpk]
    email: Mapped[str] = mapped_column(String(320))
    name: Mapped[str] = mapped_column(String(200))
    # Customer and address point at each other, so one of the two keys is checked at commit.
    default_address_id: Mapped[int | None] = mapped_column(
        ForeignKey(
            "addresses.id",
            name="fk_customers_default_address_id",
            deferrable=True,
            initially="DEFERRED",
            use_alter=True,
        )
    )
    created_at: Mapped[timestamp]

    default_address: Mapped[Address | None] = relationship(
        foreign_keys=default_address_id, post_update=True, lazy="raise"
    )
    addresses: Mapped[list[Address]] = relationship(
        back_populates="customer", foreign_keys="Address.customer_id", lazy="raise"
    )


# Mails to Ada@example.org and ada@example.org reach the same person.
Index("uq_customers_email_lower", func.lower(Customer.email), unique=True)


class Address(ShopBase):
    __tablename__ = "addresses"

    id: Mapped[intpk]
    customer_id: Mapped[int] = mapped_column(
        ForeignKey("customers.id", ondelete="CASCADE"), index=True
    )
    street: Mapped[str] = mapped_column(String(200))
    city: Mapped[str] = mapped_column(String(100))
    postcode: Mapped[str] = mapped_column(String(20))
    country: Mapped[str] = mapped_column(String(2))

    customer: Mapped[Customer] = relationship(
        back_populates="addresses", foreign_keys=customer_id, lazy="raise"
    )

    def one_line(self) -> str:
        return f"{self.street}, {self.postcode} {self.city}, {self.country}"

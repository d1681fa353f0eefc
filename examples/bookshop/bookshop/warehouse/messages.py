"""What the shop tells the warehouse. Plain data: no session, no ORM object crosses over."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PaidLine:
    isbn: str
    quantity: int


@dataclass(frozen=True, slots=True)
class OrderPaid:
    order_number: str
    recipient: str
    ship_to: str
    lines: tuple[PaidLine, ...]

"""What can go wrong in the shop, and the HTTP status each one becomes."""

from __future__ import annotations


class ShopError(Exception):
    """Something the caller is told about."""

    status_code = 400


class NotFoundError(ShopError):
    status_code = 404


class ConflictError(ShopError):
    """The request contradicts what the shop already knows."""

    status_code = 409


class DuplicateError(ConflictError):
    pass


class StaleVersionError(ConflictError):
    """Somebody else changed the book since the caller read it."""


class OutOfStockError(ConflictError):
    def __init__(self, isbn: str, wanted: int, available: int) -> None:
        super().__init__(f"{isbn}: {wanted} wanted, {available} in stock")
        self.isbn = isbn


class EmptyCartError(ConflictError):
    pass


class PaymentDeclinedError(ShopError):
    status_code = 402

    def __init__(self, order_number: str, reason: str) -> None:
        super().__init__(f"Payment for {order_number} was declined: {reason}")
        self.order_number = order_number

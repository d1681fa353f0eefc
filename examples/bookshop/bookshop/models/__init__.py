"""The shop's tables. The warehouse's are in `bookshop.warehouse.models`."""

from bookshop.models.base import ShopBase
from bookshop.models.catalogue import Author, Book, BookAuthor, Publisher, Review
from bookshop.models.customers import Address, Customer
from bookshop.models.operations import (
    AuditEntry,
    MaintenanceRun,
    SalesSnapshot,
    bestsellers,
    sales_by_book,
)
from bookshop.models.sales import (
    Cart,
    CartItem,
    Order,
    OrderLine,
    OrderStatus,
    Payment,
    order_numbers,
)
from bookshop.models.stock import Stock, StockMovement

__all__ = (
    "Address",
    "AuditEntry",
    "Author",
    "Book",
    "BookAuthor",
    "Cart",
    "CartItem",
    "Customer",
    "MaintenanceRun",
    "Order",
    "OrderLine",
    "OrderStatus",
    "Payment",
    "Publisher",
    "Review",
    "SalesSnapshot",
    "ShopBase",
    "Stock",
    "StockMovement",
    "bestsellers",
    "order_numbers",
    "sales_by_book",
)

"""What goes over the wire."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Isbn = Annotated[str, StringConstraints(pattern=r"^[0-9]{13}$")]
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]
Email = Annotated[
    str, StringConstraints(strip_whitespace=True, pattern=r"^[^@\s]+@[^@\s]+$", max_length=320)
]
Money = Annotated[Decimal, Field(ge=0, max_digits=10, decimal_places=2)]


class FromRow(BaseModel):
    model_config = ConfigDict(from_attributes=True)


class AuthorOut(FromRow):
    id: int
    name: str


class BookIn(BaseModel):
    isbn: Isbn
    title: Annotated[str, StringConstraints(min_length=1, max_length=300)]
    price: Money
    description: str = ""
    published_on: date | None = None
    publisher: Name | None = None
    authors: list[Name] = []
    copies: Annotated[int, Field(ge=0)] = 0


class BookChange(BaseModel):
    version: int
    title: str | None = None
    price: Money | None = None
    description: str | None = None


class BookOut(FromRow):
    id: int
    isbn: str
    title: str
    price: Decimal
    description: str
    published_on: date | None
    version: int
    publisher: AuthorOut | None
    authors: list[AuthorOut]


class ImportRow(BaseModel):
    """Looser than `BookIn`: the database judges each row of an import by itself."""

    isbn: str
    title: str
    price: Decimal
    copies: int = 0


class SkippedRow(BaseModel):
    line: int
    isbn: str
    reason: str


class ImportReport(BaseModel):
    imported: int
    skipped: list[SkippedRow]


class StockChange(BaseModel):
    delta: int
    reason: Name


class StockOut(BaseModel):
    isbn: str
    quantity: int


class ReviewIn(BaseModel):
    customer_id: int
    rating: Annotated[int, Field(ge=1, le=5)]
    body: str = ""


class ReviewOut(FromRow):
    id: int
    customer_id: int
    rating: int
    body: str


class RatingOut(BaseModel):
    isbn: str
    reviews: int
    average: float | None


class AddressIn(BaseModel):
    street: Name
    city: Name
    postcode: Annotated[str, StringConstraints(min_length=1, max_length=20)]
    country: Annotated[str, StringConstraints(pattern=r"^[A-Z]{2}$")]


class AddressOut(AddressIn):
    model_config = ConfigDict(from_attributes=True)

    id: int


class CustomerIn(BaseModel):
    email: Email
    name: Name
    address: AddressIn | None = None


class CustomerOut(FromRow):
    id: int
    email: str
    name: str
    default_address: AddressOut | None


class CartItemIn(BaseModel):
    isbn: Isbn
    quantity: Annotated[int, Field(gt=0, le=100)] = 1


class CartLine(BaseModel):
    isbn: str
    title: str
    quantity: int
    unit_price: Decimal


class CartOut(BaseModel):
    customer_id: int
    lines: list[CartLine]
    total: Decimal


class CheckoutIn(BaseModel):
    card: Name


class OrderLineOut(BaseModel):
    isbn: str
    quantity: int
    unit_price: Decimal


class OrderOut(BaseModel):
    number: str
    status: str
    total: Decimal
    ship_to: str
    lines: list[OrderLineOut]


class PickTaskOut(FromRow):
    isbn: str
    quantity: int
    picker: str | None
    done: bool


class ShipmentOut(FromRow):
    order_number: str
    recipient: str
    ship_to: str
    status: str
    pick_tasks: list[PickTaskOut]


class EventOut(FromRow):
    order_number: str
    kind: str
    detail: str


class ClaimedTaskOut(FromRow):
    id: int
    isbn: str
    quantity: int


class PriceListReport(BaseModel):
    supplier: str
    prices: int


class SupplierPriceOut(FromRow):
    supplier: str
    isbn: str
    price: Decimal


class SalesRow(BaseModel):
    isbn: str
    title: str
    copies: int
    revenue: Decimal


class BestsellerRow(BaseModel):
    isbn: str
    title: str
    copies: int


class Dashboard(BaseModel):
    books: int
    customers: int
    paid_orders: int
    revenue: Decimal


class AuditOut(FromRow):
    table_name: str
    operation: str
    row_id: int

"""Suppliers' price lists: CSV files with the columns `isbn` and `price`."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from bookshop.errors import ShopError
from bookshop.warehouse.models import SupplierPrice


class PriceListError(ShopError):
    """Nothing of the list was taken."""

    status_code = 422


def import_prices(sessions: sessionmaker[Session], supplier: str, text: str) -> int:
    """Take a whole list or nothing of it. Blocks: a handler calls it in a thread.

    Raises `PriceListError` with the line that is wrong.
    """
    count = 0
    with sessions() as session:
        for line, row in enumerate(csv.DictReader(io.StringIO(text)), start=2):
            try:
                price = Decimal(row["price"])
                session.execute(
                    insert(SupplierPrice)
                    .values(supplier=supplier, isbn=row["isbn"], price=price)
                    .on_conflict_do_update(
                        index_elements=["supplier", "isbn"], set_={"price": price}
                    )
                )
            except (KeyError, TypeError, InvalidOperation, DBAPIError) as error:
                session.rollback()
                raise PriceListError(f"Line {line} of {supplier}'s list is wrong") from error
            count += 1
        session.commit()
    return count


def prices_of(session: Session, isbn: str) -> Sequence[SupplierPrice]:
    """Cheapest first."""
    return session.scalars(
        select(SupplierPrice)
        .where(SupplierPrice.isbn == isbn)
        .order_by(SupplierPrice.price, SupplierPrice.supplier)
    ).all()

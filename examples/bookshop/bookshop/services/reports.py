"""Numbers for the people who run the shop; SQLAlchemy Core, not the ORM."""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import AsyncIterator, Sequence
from datetime import date
from typing import Any

from sqlalchemy import Date, Executable, Row, func, insert, literal, select, text
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from bookshop.models import (
    Book,
    Customer,
    MaintenanceRun,
    Order,
    OrderLine,
    OrderStatus,
    SalesSnapshot,
    bestsellers,
    sales_by_book,
)
from bookshop.schemas import Dashboard


class Reports:
    def __init__(self, engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession]) -> None:
        self.engine = engine
        self.sessions = sessions

    async def sales(self) -> Sequence[Row[Any]]:
        async with self.engine.connect() as connection:
            result = await connection.execute(
                select(sales_by_book)
                .where(sales_by_book.c.copies > 0)
                .order_by(sales_by_book.c.revenue.desc(), sales_by_book.c.title)
            )
            return result.all()

    async def bestsellers(self) -> Sequence[Row[Any]]:
        async with self.engine.connect() as connection:
            result = await connection.execute(
                select(bestsellers).order_by(bestsellers.c.copies.desc(), bestsellers.c.title)
            )
            return result.all()

    async def close_day(self, day: date) -> int:
        """Keep today's figures; closing a day again replaces them."""
        figures = select(
            literal(day, Date),
            sales_by_book.c.book_id,
            sales_by_book.c.copies,
            sales_by_book.c.revenue,
        ).where(sales_by_book.c.copies > 0)
        statement = upsert(SalesSnapshot).from_select(
            ["day", "book_id", "copies", "revenue"], figures
        )
        statement = statement.on_conflict_do_update(
            index_elements=["day", "book_id"],
            set_={
                "copies": statement.excluded.copies,
                "revenue": statement.excluded.revenue,
            },
        )
        async with self.engine.begin() as connection:
            result = await connection.execute(statement)
            await connection.execute(insert(MaintenanceRun).values(task="close day"))
            return result.rowcount

    async def dashboard(self) -> Dashboard:
        """Three questions at once, each on a connection of its own."""
        paid = Order.status == OrderStatus.PAID
        books, customers, orders = await asyncio.gather(
            self._one(select(func.count()).select_from(Book)),
            self._one(select(func.count()).select_from(Customer)),
            self._one(select(func.count(), func.coalesce(func.sum(Order.total), 0)).where(paid)),
        )
        return Dashboard(
            books=books[0], customers=customers[0], paid_orders=orders[0], revenue=orders[1]
        )

    async def orders_csv(self) -> AsyncIterator[str]:
        """Every sold line, a few rows in memory at a time."""
        query = (
            select(Order.number, Order.status, Book.isbn, OrderLine.quantity, OrderLine.unit_price)
            .join(OrderLine, OrderLine.order_id == Order.id)
            .join(Book, Book.id == OrderLine.book_id)
            .order_by(Order.id, Book.id)
            .execution_options(yield_per=20)
        )
        yield _csv_line("order", "status", "isbn", "quantity", "unit price")
        async with self.sessions() as session:
            result = await session.stream(query)
            async for number, status, isbn, quantity, price in result:
                yield _csv_line(number, status.value, isbn, quantity, price)

    async def refresh(self) -> None:
        """Rebuild the bestseller list and the planner's statistics, outside any transaction."""
        connection = await self.engine.connect()
        try:
            connection = await connection.execution_options(isolation_level="AUTOCOMMIT")
            await connection.execute(text("REFRESH MATERIALIZED VIEW bestsellers"))
            await connection.execute(text("ANALYZE books, orders, order_lines"))
            await connection.execute(insert(MaintenanceRun).values(task="refresh"))
        finally:
            await connection.close()

    async def _one(self, query: Executable) -> tuple[Any, ...]:
        async with self.sessions() as session:
            return tuple((await session.execute(query)).one())


def _csv_line(*cells: object) -> str:
    buffer = io.StringIO()
    csv.writer(buffer).writerow(cells)
    return buffer.getvalue()

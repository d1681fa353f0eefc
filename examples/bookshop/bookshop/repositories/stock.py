from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from bookshop.models import Stock, StockMovement


class StockRepository:
    def __init__(self, session: AsyncSession) -> None:
        self.session = session

    async def lock(self, book_ids: Iterable[int]) -> dict[int, Stock]:
        """Rows nobody else can change before this transaction ends; zero rows are made.

        Locked in the order of the ids, so that two orders never wait for each other.
        """
        ids = sorted(set(book_ids))
        if not ids:
            return {}
        await self.session.execute(
            insert(Stock)
            .values([{"book_id": book_id, "quantity": 0} for book_id in ids])
            .on_conflict_do_nothing()
        )
        rows = await self.session.scalars(
            select(Stock)
            .where(Stock.book_id.in_(ids))
            .order_by(Stock.book_id)
            .with_for_update()
            .execution_options(populate_existing=True)
        )
        return {stock.book_id: stock for stock in rows}

    def move(self, stock: Stock, delta: int, reason: str) -> None:
        """Change a locked row and write the ledger."""
        stock.quantity += delta
        self.session.add(StockMovement(book_id=stock.book_id, delta=delta, reason=reason))

    async def quantity(self, book_id: int) -> int:
        found = await self.session.scalar(select(Stock.quantity).where(Stock.book_id == book_id))
        return found or 0

    async def ledger_total(self, book_id: int) -> int:
        total = await self.session.scalar(
            select(func.coalesce(func.sum(StockMovement.delta), 0)).where(
                StockMovement.book_id == book_id
            )
        )
        return int(total or 0)

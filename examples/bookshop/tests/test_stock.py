from __future__ import annotations

import asyncio

from httpx import AsyncClient
from shop import ISBN, Shop
from sqlalchemy import select

from bookshop.db import ShopSession
from bookshop.models import Book
from bookshop.repositories.stock import StockRepository


async def ledger_total(isbn: str) -> int:
    async with ShopSession() as session:
        book_id = await session.scalar(select(Book.id).where(Book.isbn == isbn))
        assert book_id is not None
        return await StockRepository(session).ledger_total(book_id)


async def adjust(client: AsyncClient, delta: int) -> int:
    change = {"delta": delta, "reason": "counted"}
    return (await client.post(f"/books/{ISBN}/stock", json=change)).status_code


async def test_first_copies_are_in_stock(shop: Shop) -> None:
    await shop.book(copies=12)

    assert await shop.stock() == 12
    assert await ledger_total(ISBN) == 12


async def test_stock_and_ledger_move_together(shop: Shop, client: AsyncClient) -> None:
    await shop.book(copies=5)

    assert await adjust(client, +3) == 200
    assert await adjust(client, -6) == 200

    assert await shop.stock() == 2
    assert await ledger_total(ISBN) == 2


async def test_stock_never_falls_below_nothing(shop: Shop, client: AsyncClient) -> None:
    await shop.book(copies=2)

    assert await adjust(client, -3) == 409

    assert await shop.stock() == 2
    assert await ledger_total(ISBN) == 2


async def test_of_ten_withdrawals_at_once_as_many_succeed_as_there_are_copies(
    shop: Shop, client: AsyncClient
) -> None:
    await shop.book(copies=4)

    statuses = await asyncio.gather(*(adjust(client, -1) for _ in range(10)))

    assert sorted(statuses) == [200] * 4 + [409] * 6
    assert await shop.stock() == 0
    assert await ledger_total(ISBN) == 0

from __future__ import annotations

import asyncio
import csv
import io

from httpx import AsyncClient
from shop import ISBN, OTHER_ISBN, Shop
from sqlalchemy import select

from bookshop.db import ShopSession, async_engine
from bookshop.models import MaintenanceRun, SalesSnapshot


async def tasks() -> list[str]:
    async with ShopSession() as session:
        return list(await session.scalars(select(MaintenanceRun.task).order_by(MaintenanceRun.id)))


async def sell(shop: Shop) -> list[str]:
    """Two orders; the numbers they got."""
    await shop.book(ISBN, title="Emma", price="10.00", copies=10)
    await shop.book(OTHER_ISBN, title="Persuasion", price="7.50", copies=10)
    customer_id = await shop.customer()
    first = await shop.order(customer_id, ISBN, 3)
    await shop.cart(customer_id, OTHER_ISBN, 2)
    second = await shop.order(customer_id, ISBN, 1)
    return [first["number"], second["number"]]


async def test_a_health_check_reaches_the_database(shop: Shop) -> None:
    assert await shop.get("/health") == {"database": "ok"}


async def test_health_checks_at_once_do_not_hinder_each_other(shop: Shop) -> None:
    answers = await asyncio.gather(*(shop.get("/health") for _ in range(8)))

    assert answers == [{"database": "ok"}] * 8


async def test_the_dashboard_of_a_new_shop_is_empty(shop: Shop) -> None:
    assert await shop.get("/dashboard") == {
        "books": 0,
        "customers": 0,
        "paid_orders": 0,
        "revenue": "0",
    }


async def test_the_dashboard_counts_what_was_committed(shop: Shop) -> None:
    await sell(shop)

    assert await shop.get("/dashboard") == {
        "books": 2,
        "customers": 1,
        "paid_orders": 2,
        "revenue": "55.00",
    }


async def test_sales_are_ranked_by_revenue(shop: Shop) -> None:
    await sell(shop)

    assert await shop.get("/reports/sales") == [
        {"isbn": ISBN, "title": "Emma", "copies": 4, "revenue": "40.00"},
        {"isbn": OTHER_ISBN, "title": "Persuasion", "copies": 2, "revenue": "15.00"},
    ]


async def test_failed_orders_are_no_sales(shop: Shop) -> None:
    await shop.book(copies=5)
    customer_id = await shop.customer()
    await shop.cart(customer_id)
    await shop.checkout(customer_id, card="declined")

    assert await shop.get("/reports/sales") == []


async def test_the_bestseller_list_moves_when_it_is_refreshed(
    shop: Shop, client: AsyncClient
) -> None:
    await sell(shop)
    assert await shop.get("/reports/bestsellers") == []

    assert (await client.post("/maintenance/refresh")).status_code == 202

    assert [row["title"] for row in await shop.get("/reports/bestsellers")] == [
        "Emma",
        "Persuasion",
    ]
    assert await tasks() == ["refresh"]


async def test_a_closed_day_keeps_its_figures(shop: Shop, client: AsyncClient) -> None:
    await sell(shop)

    closed = await client.post("/reports/days/2024-02-29")

    assert closed.json() == {"books": 2}
    async with ShopSession() as session:
        copies = await session.scalars(select(SalesSnapshot.copies).order_by(SalesSnapshot.copies))
        assert copies.all() == [2, 4]


async def test_closing_a_day_again_replaces_its_figures(shop: Shop, client: AsyncClient) -> None:
    await sell(shop)
    await client.post("/reports/days/2024-02-29")
    await shop.order(await shop.customer("grace@example.org"), ISBN, 5)

    await client.post("/reports/days/2024-02-29")

    async with ShopSession() as session:
        copies = await session.scalars(select(SalesSnapshot.copies).order_by(SalesSnapshot.copies))
        assert copies.all() == [2, 9]
    assert await tasks() == ["close day", "close day"]


async def test_a_failing_report_takes_its_writes_along(shop: Shop) -> None:
    class BrokenReportError(Exception):
        pass

    try:
        async with async_engine.begin() as connection:
            await connection.execute(MaintenanceRun.__table__.insert().values(task="half"))
            raise BrokenReportError
    except BrokenReportError:
        pass

    assert await tasks() == []


async def test_orders_are_exported_as_csv(shop: Shop, client: AsyncClient) -> None:
    first, second = await sell(shop)

    answer = await client.get("/reports/orders.csv")

    assert answer.headers["content-type"].startswith("text/csv")
    assert list(csv.reader(io.StringIO(answer.text))) == [
        ["order", "status", "isbn", "quantity", "unit price"],
        [first, "paid", ISBN, "3", "10.00"],
        [second, "paid", ISBN, "1", "10.00"],
        [second, "paid", OTHER_ISBN, "2", "7.50"],
    ]


async def test_a_long_export_streams_every_row(shop: Shop, client: AsyncClient) -> None:
    """More rows than the server's cursor hands out at a time."""
    customer_id = await shop.customer()
    isbns = [f"978000000{n:04d}" for n in range(45)]
    rows = [{"isbn": isbn, "title": isbn, "price": "1.00", "copies": 1} for isbn in isbns]
    await client.post("/books/import", json=rows)
    for isbn in isbns:
        await shop.cart(customer_id, isbn)
    await shop.checkout(customer_id)

    async with client.stream("GET", "/reports/orders.csv") as answer:
        lines = [line async for line in answer.aiter_lines()]

    assert [line.split(",")[2] for line in lines[1:]] == isbns


async def test_every_change_of_a_book_is_audited(shop: Shop, client: AsyncClient) -> None:
    book_id = (await shop.book())["id"]
    await client.patch(f"/books/{ISBN}", json={"version": 1, "price": "8.00"})
    await client.delete(f"/books/{ISBN}")

    entries = await shop.get("/audit/books")

    assert [(entry["operation"], entry["row_id"]) for entry in entries] == [
        ("INSERT", book_id),
        ("UPDATE", book_id),
        ("DELETE", book_id),
    ]


async def test_what_was_rolled_back_is_not_audited(shop: Shop) -> None:
    await shop.book(copies=1)
    customer_id = await shop.customer()
    await shop.cart(customer_id, quantity=2)
    assert (await shop.checkout(customer_id)).status_code == 409

    assert await shop.get("/audit/orders") == []
    assert [entry["operation"] for entry in await shop.get("/audit/stock")] == [
        "INSERT",
        "UPDATE",
    ]

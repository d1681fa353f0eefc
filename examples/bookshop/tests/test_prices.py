"""Price lists: a blocking import in a thread of the event loop's."""

from __future__ import annotations

import asyncio
import unittest
from decimal import Decimal

import pytest
from httpx import AsyncClient, Response
from shop import ISBN, OTHER_ISBN
from sqlalchemy import func, select

from bookshop.db import WarehouseSession
from bookshop.warehouse.models import SupplierPrice
from bookshop.warehouse.prices import PriceListError, import_prices, prices_of


async def upload(client: AsyncClient, supplier: str, *lines: str) -> Response:
    text = "\n".join(["isbn,price", *lines])
    return await client.put(
        f"/suppliers/{supplier}/prices", content=text, headers={"content-type": "text/csv"}
    )


async def test_a_price_list_is_imported(client: AsyncClient) -> None:
    answer = await upload(client, "gardners", f"{ISBN},4.10", f"{OTHER_ISBN},7.00")

    assert answer.json() == {"supplier": "gardners", "prices": 2}
    assert (await client.get(f"/supplier-prices/{ISBN}")).json() == [
        {"supplier": "gardners", "isbn": ISBN, "price": "4.10"}
    ]


async def test_a_newer_list_replaces_the_prices(client: AsyncClient) -> None:
    await upload(client, "gardners", f"{ISBN},4.10")
    await upload(client, "gardners", f"{ISBN},3.90")

    [price] = (await client.get(f"/supplier-prices/{ISBN}")).json()
    assert price["price"] == "3.90"


@pytest.mark.parametrize("wrong", ["9780000000001,cheap", "9780000000001,-1", "9780000000001"])
async def test_a_list_with_a_wrong_line_is_not_taken_at_all(
    client: AsyncClient, wrong: str
) -> None:
    answer = await upload(client, "gardners", f"{ISBN},4.10", wrong, f"{OTHER_ISBN},7.00")

    assert answer.status_code == 422
    assert answer.json() == {"detail": "Line 3 of gardners's list is wrong"}
    assert (await client.get(f"/supplier-prices/{ISBN}")).json() == []


async def test_lists_of_several_suppliers_arrive_at_once(client: AsyncClient) -> None:
    await asyncio.gather(*(upload(client, f"supplier{n}", f"{ISBN},{n + 1}.00") for n in range(5)))

    prices = (await client.get(f"/supplier-prices/{ISBN}")).json()
    assert [price["supplier"] for price in prices] == [f"supplier{n}" for n in range(5)]


class PriceListTests(unittest.TestCase):
    """The import itself, as it was tested before there were any endpoints."""

    def setUp(self) -> None:
        with WarehouseSession() as session:
            self.assertEqual(session.scalar(select(func.count(SupplierPrice.id))), 0)
        import_prices(WarehouseSession, "gardners", f"isbn,price\n{ISBN},4.10\n")

    def test_the_cheapest_comes_first(self) -> None:
        import_prices(WarehouseSession, "bertrams", f"isbn,price\n{ISBN},3.00\n")

        with WarehouseSession() as session:
            prices = prices_of(session, ISBN)

        self.assertEqual([price.supplier for price in prices], ["bertrams", "gardners"])

    def test_a_bad_list_leaves_the_old_prices(self) -> None:
        with self.assertRaises(PriceListError):
            import_prices(WarehouseSession, "gardners", f"isbn,price\n{ISBN},1.00\nx,free\n")

        with WarehouseSession() as session:
            self.assertEqual([p.price for p in prices_of(session, ISBN)], [Decimal("4.10")])

    def test_an_empty_list_is_fine(self) -> None:
        self.assertEqual(import_prices(WarehouseSession, "bertrams", "isbn,price\n"), 0)

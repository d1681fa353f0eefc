"""From the cart to the paid order: three transactions, each one really committed or not at all."""

from __future__ import annotations

import asyncio
from decimal import Decimal

import pytest
from httpx import AsyncClient
from shop import ISBN, OTHER_ISBN, Shop
from sqlalchemy import select

from bookshop.app import app
from bookshop.db import ShopSession
from bookshop.models import Order, OrderStatus, Payment
from bookshop.routers.orders import get_gateway
from bookshop.services.payments import Charge


async def payments() -> list[tuple[bool, Decimal]]:
    async with ShopSession() as session:
        rows = await session.execute(select(Payment.accepted, Payment.amount).order_by(Payment.id))
        return [tuple(row) for row in rows]


async def orders() -> list[tuple[str, OrderStatus]]:
    async with ShopSession() as session:
        rows = await session.execute(select(Order.number, Order.status).order_by(Order.id))
        return [tuple(row) for row in rows]


async def test_a_cart_adds_up(shop: Shop) -> None:
    await shop.book(ISBN, price="9.50")
    await shop.book(OTHER_ISBN, price="20.00")
    customer_id = await shop.customer()

    await shop.cart(customer_id, ISBN, 2)
    cart = await shop.cart(customer_id, OTHER_ISBN)

    assert cart["total"] == "39.00"
    assert await shop.get(f"/customers/{customer_id}/cart") == cart


async def test_putting_a_book_again_sets_its_quantity(shop: Shop) -> None:
    await shop.book()
    customer_id = await shop.customer()
    await shop.cart(customer_id, quantity=2)

    cart = await shop.cart(customer_id, quantity=5)

    assert [line["quantity"] for line in cart["lines"]] == [5]


@pytest.mark.parametrize("quantity", [0, -1, 101])
async def test_a_cart_takes_sensible_quantities(
    shop: Shop, client: AsyncClient, quantity: int
) -> None:
    await shop.book()
    customer_id = await shop.customer()
    item = {"isbn": ISBN, "quantity": quantity}

    assert (await client.put(f"/customers/{customer_id}/cart", json=item)).status_code == 422
    assert (await client.get(f"/customers/{customer_id}/cart")).status_code == 404


async def test_an_order_is_paid_and_taken_from_stock(shop: Shop) -> None:
    assert await orders() == []
    await shop.book(copies=5)
    customer_id = await shop.customer()

    order = await shop.order(customer_id, quantity=2)

    assert order["status"] == "paid"
    assert order["total"] == "19.00"
    assert order["ship_to"] == "12 St James's Square, SW1 London, GB"
    assert await shop.get(f"/orders/{order['number']}") == order
    assert await shop.stock() == 3
    assert await payments() == [(True, Decimal("19.00"))]


async def test_a_customer_sees_the_orders_in_turn(shop: Shop) -> None:
    await shop.book(copies=5)
    customer_id = await shop.customer()

    numbers = [(await shop.order(customer_id))["number"] for _ in range(3)]

    listed = await shop.get(f"/customers/{customer_id}/orders")
    assert [order["number"] for order in listed] == numbers
    assert len(set(numbers)) == 3


async def test_an_order_keeps_the_price_it_was_sold_at(shop: Shop, client: AsyncClient) -> None:
    await shop.book(copies=1, price="9.50")
    order = await shop.order(await shop.customer())

    await client.patch(f"/books/{ISBN}", json={"version": 1, "price": "99.00"})

    assert (await shop.get(f"/orders/{order['number']}"))["lines"][0]["unit_price"] == "9.50"


async def test_an_order_beyond_the_stock_changes_nothing(shop: Shop) -> None:
    await shop.book(ISBN, copies=5)
    await shop.book(OTHER_ISBN, copies=1)
    customer_id = await shop.customer()
    await shop.cart(customer_id, ISBN, 2)
    cart = await shop.cart(customer_id, OTHER_ISBN, 2)

    refused = await shop.checkout(customer_id)

    assert refused.status_code == 409
    assert refused.json() == {"detail": f"{OTHER_ISBN}: 2 wanted, 1 in stock"}
    assert (await shop.stock(ISBN), await shop.stock(OTHER_ISBN)) == (5, 1)
    assert await orders() == []
    assert await shop.get(f"/customers/{customer_id}/cart") == cart


async def test_a_declined_card_fails_the_order_and_gives_the_copies_back(shop: Shop) -> None:
    await shop.book(copies=3)
    customer_id = await shop.customer()
    await shop.cart(customer_id, quantity=2)

    declined = await shop.checkout(customer_id, card="declined")

    assert declined.status_code == 402
    assert "insufficient funds" in declined.json()["detail"]
    assert [status for _, status in await orders()] == [OrderStatus.FAILED]
    assert await payments() == [(False, Decimal("19.00"))]
    assert await shop.stock() == 3


async def test_after_a_declined_card_another_one_works(shop: Shop) -> None:
    await shop.book(copies=1)
    customer_id = await shop.customer()
    await shop.cart(customer_id)
    await shop.checkout(customer_id, card="declined")

    await shop.order(customer_id)

    statuses = [status for _, status in await orders()]
    assert statuses == [OrderStatus.FAILED, OrderStatus.PAID]


class BrokenGateway:
    async def charge(self, order_number: str, amount: Decimal, card: str) -> Charge:
        raise ConnectionError("the card processor does not answer")


async def test_when_the_processor_breaks_the_order_waits_and_can_be_cancelled(
    shop: Shop, client: AsyncClient
) -> None:
    app.dependency_overrides[get_gateway] = BrokenGateway
    await shop.book(copies=1)
    customer_id = await shop.customer()
    await shop.cart(customer_id)

    with pytest.raises(ConnectionError):
        await shop.checkout(customer_id)

    [(number, status)] = await orders()
    assert status is OrderStatus.PENDING
    assert await shop.stock() == 0

    cancelled = await client.post(f"/orders/{number}/cancel")
    assert cancelled.json()["status"] == "cancelled"
    assert await shop.stock() == 1


async def test_a_paid_order_is_not_cancelled(shop: Shop, client: AsyncClient) -> None:
    await shop.book(copies=1)
    order = await shop.order(await shop.customer())

    assert (await client.post(f"/orders/{order['number']}/cancel")).status_code == 409
    assert (await shop.get(f"/orders/{order['number']}"))["status"] == "paid"


async def test_an_empty_cart_is_no_order(shop: Shop) -> None:
    customer_id = await shop.customer()

    assert (await shop.checkout(customer_id)).status_code == 409
    assert await orders() == []


async def test_nothing_is_sold_to_nowhere(shop: Shop) -> None:
    await shop.book(copies=1)
    customer_id = await shop.customer(address=None)
    await shop.cart(customer_id)

    refused = await shop.checkout(customer_id)

    assert refused.status_code == 409
    assert "no address" in refused.json()["detail"]


async def test_the_last_copy_is_sold_once(shop: Shop) -> None:
    await shop.book(copies=1)
    customers = [await shop.customer(f"reader{n}@example.org") for n in range(5)]
    for customer_id in customers:
        await shop.cart(customer_id)

    answers = await asyncio.gather(*(shop.checkout(customer_id) for customer_id in customers))

    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409, 409]
    assert await shop.stock() == 0
    assert len(await payments()) == 1


async def test_a_double_click_buys_once(shop: Shop) -> None:
    await shop.book(copies=10)
    customer_id = await shop.customer()
    await shop.cart(customer_id, quantity=2)

    answers = await asyncio.gather(shop.checkout(customer_id), shop.checkout(customer_id))

    assert sorted(answer.status_code for answer in answers) == [201, 409]
    assert await shop.stock() == 8


async def test_orders_that_share_books_do_not_wait_for_each_other_for_ever(shop: Shop) -> None:
    await shop.book(ISBN, copies=10)
    await shop.book(OTHER_ISBN, copies=10)
    customers = [await shop.customer(f"reader{n}@example.org") for n in range(4)]
    for n, customer_id in enumerate(customers):
        # Put in opposite orders, which would dead-lock without an order of locking.
        for isbn in sorted([ISBN, OTHER_ISBN], reverse=bool(n % 2)):
            await shop.cart(customer_id, isbn)

    answers = await asyncio.gather(*(shop.checkout(customer_id) for customer_id in customers))

    assert [answer.status_code for answer in answers] == [201] * 4
    assert (await shop.stock(ISBN), await shop.stock(OTHER_ISBN)) == (6, 6)

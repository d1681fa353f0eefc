from __future__ import annotations

import asyncio

import pytest
from httpx import AsyncClient
from shop import ADDRESS, EMAIL, ISBN, Shop, customer
from sqlalchemy import func, select

from bookshop.db import ShopSession
from bookshop.models import Address, Customer


async def count(entity: type) -> int:
    async with ShopSession() as session:
        return await session.scalar(select(func.count()).select_from(entity)) or 0


async def test_a_customer_registers_with_an_address(client: AsyncClient) -> None:
    assert await count(Customer) == 0

    answer = await client.post("/customers", json=customer())

    assert answer.status_code == 201
    assert answer.json()["email"] == EMAIL
    assert answer.json()["default_address"]["city"] == "London"
    assert await count(Customer) == 1


async def test_an_address_is_not_needed_to_register(shop: Shop) -> None:
    customer_id = await shop.customer(address=None)

    assert (await shop.get(f"/customers/{customer_id}"))["default_address"] is None


@pytest.mark.parametrize("again", [EMAIL, EMAIL.upper(), "Ada@Example.org"])
async def test_an_email_address_registers_once_in_any_case(
    shop: Shop, client: AsyncClient, again: str
) -> None:
    await shop.customer(EMAIL)

    refused = await client.post("/customers", json=customer(again, name="Somebody else"))

    assert refused.status_code == 409
    assert await count(Customer) == 1
    assert await count(Address) == 1


async def test_of_two_registrations_at_once_one_succeeds(client: AsyncClient) -> None:
    answers = await asyncio.gather(*(client.post("/customers", json=customer()) for _ in range(2)))

    assert sorted(answer.status_code for answer in answers) == [201, 409]
    assert await count(Customer) == 1


@pytest.mark.parametrize("email", ["", "ada", "ada@", "@example.org", "a da@example.org"])
async def test_a_malformed_email_address_is_refused(client: AsyncClient, email: str) -> None:
    assert (await client.post("/customers", json=customer(email))).status_code == 422
    assert await count(Customer) == 0


async def test_whoever_moves_keeps_the_old_address_in_the_book(
    shop: Shop, client: AsyncClient
) -> None:
    customer_id = await shop.customer()

    moved = await client.put(
        f"/customers/{customer_id}/address", json=ADDRESS | {"city": "Worthy Down"}
    )

    assert moved.json()["default_address"]["city"] == "Worthy Down"
    assert await count(Address) == 2


async def test_an_unknown_customer_is_not_found(client: AsyncClient) -> None:
    assert (await client.get("/customers/1")).status_code == 404
    assert (await client.put("/customers/1/address", json=ADDRESS)).status_code == 404


async def test_a_customer_reviews_a_book_once(shop: Shop, client: AsyncClient) -> None:
    await shop.book()
    review = {"customer_id": await shop.customer(), "rating": 5, "body": "Again!"}

    first = await client.post(f"/books/{ISBN}/reviews", json=review)
    second = await client.post(f"/books/{ISBN}/reviews", json=review | {"rating": 1})

    assert (first.status_code, second.status_code) == (201, 409)
    assert await shop.get(f"/books/{ISBN}/rating") == {"isbn": ISBN, "reviews": 1, "average": 5.0}


async def test_a_rating_is_the_average_of_the_reviews(shop: Shop, client: AsyncClient) -> None:
    await shop.book()
    for n, rating in enumerate([5, 4, 3, 2]):
        customer_id = await shop.customer(f"reader{n}@example.org")
        await client.post(
            f"/books/{ISBN}/reviews", json={"customer_id": customer_id, "rating": rating}
        )

    assert (await shop.get(f"/books/{ISBN}/rating"))["average"] == 3.5


async def test_a_book_without_reviews_has_no_rating(shop: Shop) -> None:
    await shop.book()

    assert await shop.get(f"/books/{ISBN}/rating") == {"isbn": ISBN, "reviews": 0, "average": None}


async def test_a_stranger_reviews_nothing(shop: Shop, client: AsyncClient) -> None:
    await shop.book()

    answer = await client.post(f"/books/{ISBN}/reviews", json={"customer_id": 1, "rating": 5})

    assert answer.status_code == 404

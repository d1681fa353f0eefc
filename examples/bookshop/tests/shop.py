"""What many tests say: a book, a customer, an order."""

from __future__ import annotations

import asyncio
from typing import Any

from httpx import AsyncClient, Response

from bookshop.app import app

# Every test uses the same keys: the database is empty whenever one starts.
ISBN = "9780141439518"
OTHER_ISBN = "9780143105428"
EMAIL = "ada@example.org"

ADDRESS = {"street": "12 St James's Square", "city": "London", "postcode": "SW1", "country": "GB"}


def book(isbn: str = ISBN, **fields: Any) -> dict[str, Any]:
    return {"isbn": isbn, "title": "Pride and Prejudice", "price": "9.50", **fields}


def customer(email: str = EMAIL, **fields: Any) -> dict[str, Any]:
    return {"email": email, "name": "Ada Lovelace", "address": ADDRESS, **fields}


class Shop:
    """Calls that must succeed, on the HTTP interface as a browser would make them."""

    def __init__(self, client: AsyncClient) -> None:
        self.client = client

    async def book(self, isbn: str = ISBN, **fields: Any) -> dict[str, Any]:
        return _json(await self.client.post("/books", json=book(isbn, **fields)), 201)

    async def customer(self, email: str = EMAIL, **fields: Any) -> int:
        return _json(await self.client.post("/customers", json=customer(email, **fields)), 201)[
            "id"
        ]

    async def cart(self, customer_id: int, isbn: str = ISBN, quantity: int = 1) -> dict[str, Any]:
        item = {"isbn": isbn, "quantity": quantity}
        return _json(await self.client.put(f"/customers/{customer_id}/cart", json=item), 200)

    async def checkout(self, customer_id: int, card: str = "visa") -> Response:
        return await self.client.post(f"/customers/{customer_id}/checkout", json={"card": card})

    async def order(self, customer_id: int, isbn: str = ISBN, quantity: int = 1) -> dict[str, Any]:
        """A paid order."""
        await self.cart(customer_id, isbn, quantity)
        return _json(await self.checkout(customer_id), 201)

    async def stock(self, isbn: str = ISBN) -> int:
        return (await self.get(f"/books/{isbn}/stock"))["quantity"]

    async def get(self, path: str) -> Any:
        return _json(await self.client.get(path), 200)

    async def warehouse_is_done(self) -> None:
        await asyncio.to_thread(app.state.fulfilment.drain, 10)


def _json(response: Response, status: int) -> Any:
    assert response.status_code == status, response.text
    return response.json()

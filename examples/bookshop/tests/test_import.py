"""A batch in one transaction, each row in a savepoint."""

from __future__ import annotations

from typing import Any

from httpx import AsyncClient
from shop import ISBN, OTHER_ISBN, Shop


def row(isbn: str, **fields: Any) -> dict[str, Any]:
    return {"isbn": isbn, "title": f"Title of {isbn}", "price": "5.00", **fields}


async def test_a_good_batch_is_imported(shop: Shop, client: AsyncClient) -> None:
    answer = await client.post("/books/import", json=[row(ISBN, copies=2), row(OTHER_ISBN)])

    assert answer.json() == {"imported": 2, "skipped": []}
    assert len(await shop.get("/books")) == 2
    assert await shop.stock(ISBN) == 2


async def test_bad_rows_are_skipped_and_the_others_stay(shop: Shop, client: AsyncClient) -> None:
    await shop.book(ISBN, title="Here before")

    answer = await client.post(
        "/books/import",
        json=[
            row("9780000000001", copies=1),
            row(ISBN, copies=5),
            row("not an isbn"),
            row("9780000000002", price="-3"),
            row("9780000000003", copies=1),
        ],
    )

    report = answer.json()
    assert report["imported"] == 2
    assert [(skipped["line"], skipped["isbn"]) for skipped in report["skipped"]] == [
        (2, ISBN),
        (3, "not an isbn"),
        (4, "9780000000002"),
    ]
    assert "uq_books_isbn" in report["skipped"][0]["reason"]
    titles = {found["isbn"]: found["title"] for found in await shop.get("/books")}
    assert titles.keys() == {ISBN, "9780000000001", "9780000000003"}
    assert titles[ISBN] == "Here before"


async def test_a_skipped_row_leaves_no_half_of_itself(shop: Shop, client: AsyncClient) -> None:
    """The book itself is fine; its copies are not, so neither is kept."""
    answer = await client.post("/books/import", json=[row(ISBN, copies=-1), row(OTHER_ISBN)])

    assert answer.json()["imported"] == 1
    assert (await client.get(f"/books/{ISBN}")).status_code == 404
    assert [entry["row_id"] for entry in await shop.get("/audit/books")] == [
        (await shop.get(f"/books/{OTHER_ISBN}"))["id"]
    ]


async def test_a_batch_may_contradict_itself(shop: Shop, client: AsyncClient) -> None:
    answer = await client.post("/books/import", json=[row(ISBN), row(ISBN), row(ISBN)])

    assert answer.json()["imported"] == 1
    assert len(await shop.get("/books")) == 1


async def test_a_batch_of_bad_rows_changes_nothing(shop: Shop, client: AsyncClient) -> None:
    answer = await client.post("/books/import", json=[row("x"), row("y")])

    assert answer.json()["imported"] == 0
    assert await shop.get("/books") == []

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from httpx import AsyncClient
from shop import ISBN, OTHER_ISBN, Shop, book


async def test_a_new_book_can_be_read_back(client: AsyncClient) -> None:
    assert (await client.get("/books")).json() == []

    added = await client.post(
        "/books",
        json=book(authors=["Jane Austen"], publisher="Penguin", published_on="2002-12-31"),
    )

    assert added.status_code == 201
    read = (await client.get(f"/books/{ISBN}")).json()
    assert read == added.json()
    assert read["publisher"]["name"] == "Penguin"
    assert [author["name"] for author in read["authors"]] == ["Jane Austen"]
    assert read["version"] == 1


@pytest.mark.parametrize("title", ["Emma", "Persuasion", "Sanditon"])
async def test_each_case_begins_with_an_empty_catalogue(shop: Shop, title: str) -> None:
    assert await shop.get("/books") == []
    assert await shop.get("/authors") == []

    await shop.book(title=title, authors=["Jane Austen"])

    assert [found["title"] for found in await shop.get("/books")] == [title]


async def test_an_isbn_is_taken_once(shop: Shop, client: AsyncClient) -> None:
    await shop.book(title="Emma")

    refused = await client.post("/books", json=book(title="Not Emma"))

    assert refused.status_code == 409
    assert refused.json() == {"detail": f"The book {ISBN} exists already"}
    assert (await shop.get(f"/books/{ISBN}"))["title"] == "Emma"


async def test_a_refused_book_leaves_nothing_behind(shop: Shop, client: AsyncClient) -> None:
    await shop.book(authors=["Jane Austen"], copies=3)

    refused = await client.post(
        "/books", json=book(authors=["Somebody Else"], publisher="Nobody & Sons", copies=7)
    )

    assert refused.status_code == 409
    assert [author["name"] for author in await shop.get("/authors")] == ["Jane Austen"]
    assert await shop.stock() == 3


async def test_the_shop_goes_on_after_a_refusal(shop: Shop, client: AsyncClient) -> None:
    await shop.book()
    assert (await client.post("/books", json=book())).status_code == 409

    await shop.book(OTHER_ISBN)

    assert len(await shop.get("/books")) == 2


async def test_of_many_who_add_one_isbn_at_once_one_succeeds(client: AsyncClient) -> None:
    answers = await asyncio.gather(
        *(client.post("/books", json=book(title=f"Edition {n}")) for n in range(5))
    )

    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409, 409]
    assert len((await client.get("/books")).json()) == 1


async def test_many_books_can_be_added_at_once(shop: Shop) -> None:
    isbns = [f"978000000{n:04d}" for n in range(8)]

    await asyncio.gather(*(shop.book(isbn, authors=["Jane Austen"]) for isbn in isbns))

    assert sorted(found["isbn"] for found in await shop.get("/books")) == isbns
    assert len(await shop.get("/authors")) == 1


async def test_the_order_of_authors_is_kept(shop: Shop) -> None:
    names = ["Neil Gaiman", "Terry Pratchett", "Ada Lovelace"]

    added = await shop.book(authors=names)

    assert [author["name"] for author in added["authors"]] == names


async def test_an_unknown_book_is_not_found(client: AsyncClient) -> None:
    answer = await client.get(f"/books/{ISBN}")

    assert answer.status_code == 404
    assert answer.json() == {"detail": f"No book {ISBN}"}


@pytest.mark.parametrize(
    "fields",
    [
        {"isbn": "123"},
        {"isbn": "978014143951X"},
        {"price": "-1"},
        {"price": "1.999"},
        {"title": ""},
        {"copies": -1},
        {"authors": [" "]},
    ],
    ids=str,
)
async def test_a_malformed_book_is_refused(client: AsyncClient, fields: dict[str, Any]) -> None:
    assert (await client.post("/books", json=book() | fields)).status_code == 422
    assert (await client.get("/books")).json() == []


@pytest.mark.parametrize(
    ("query", "titles"),
    [
        ("", ["100% Jane", "Emma", "Middlemarch"]),
        ("emma", ["Emma"]),
        ("austen", ["100% Jane", "Emma"]),
        ("%", ["100% Jane"]),
        ("nothing", []),
    ],
)
async def test_books_are_found_by_title_and_author(
    shop: Shop, query: str, titles: list[str]
) -> None:
    await shop.book("9780000000001", title="Emma", authors=["Jane Austen"])
    await shop.book("9780000000002", title="Middlemarch", authors=["George Eliot"])
    await shop.book("9780000000003", title="100% Jane", authors=["Jane Austen", "George Eliot"])

    found = (await shop.client.get("/books", params={"q": query})).json()

    assert [one["title"] for one in found] == titles


async def test_a_search_comes_in_pages(shop: Shop) -> None:
    for n in range(5):
        await shop.book(f"978000000000{n}", title=f"Volume {n}")

    page = await shop.get("/books?limit=2&offset=2")

    assert [one["title"] for one in page] == ["Volume 2", "Volume 3"]


async def test_a_change_makes_a_new_version(shop: Shop, client: AsyncClient) -> None:
    await shop.book()

    changed = await client.patch(f"/books/{ISBN}", json={"version": 1, "price": "12.00"})

    assert changed.status_code == 200
    assert changed.json()["version"] == 2
    assert (await shop.get(f"/books/{ISBN}"))["price"] == "12.00"


async def test_a_change_of_an_old_version_is_refused(shop: Shop, client: AsyncClient) -> None:
    await shop.book()
    await client.patch(f"/books/{ISBN}", json={"version": 1, "title": "First"})

    refused = await client.patch(f"/books/{ISBN}", json={"version": 1, "title": "Second"})

    assert refused.status_code == 409
    assert (await shop.get(f"/books/{ISBN}"))["title"] == "First"


async def test_two_clerks_do_not_overwrite_each_other(shop: Shop, client: AsyncClient) -> None:
    await shop.book()

    answers = await asyncio.gather(
        *(
            client.patch(f"/books/{ISBN}", json={"version": 1, "title": f"Clerk {n}"})
            for n in range(2)
        )
    )

    assert sorted(answer.status_code for answer in answers) == [200, 409]
    winner = next(answer.json() for answer in answers if answer.status_code == 200)
    assert (await shop.get(f"/books/{ISBN}"))["title"] == winner["title"]


async def test_a_removed_book_takes_its_stock_along(shop: Shop, client: AsyncClient) -> None:
    await shop.book(authors=["Jane Austen"], copies=4)

    assert (await client.delete(f"/books/{ISBN}")).status_code == 204

    assert (await client.get(f"/books/{ISBN}")).status_code == 404
    await shop.book()
    assert await shop.stock() == 0
    assert len(await shop.get("/authors")) == 1

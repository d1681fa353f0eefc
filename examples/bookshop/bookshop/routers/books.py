from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response, status
from sqlalchemy import select

from bookshop.db import SessionDep
from bookshop.models import Author, Book, Review
from bookshop.repositories.catalogue import CatalogueRepository
from bookshop.repositories.stock import StockRepository
from bookshop.schemas import (
    AuthorOut,
    BookChange,
    BookIn,
    BookOut,
    ImportReport,
    ImportRow,
    RatingOut,
    ReviewIn,
    ReviewOut,
    StockChange,
    StockOut,
)
from bookshop.services.catalogue import CatalogueService

router = APIRouter(tags=["catalogue"])


@router.get("/authors", response_model=list[AuthorOut])
async def list_authors(session: SessionDep) -> list[Author]:
    return list(await session.scalars(select(Author).order_by(Author.name)))


@router.get("/books", response_model=list[BookOut])
async def search_books(
    session: SessionDep,
    q: str = "",
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    offset: Annotated[int, Query(ge=0)] = 0,
) -> list[Book]:
    return list(await CatalogueRepository(session).search(q, limit=limit, offset=offset))


@router.post("/books", response_model=BookOut, status_code=status.HTTP_201_CREATED)
async def add_book(data: BookIn, session: SessionDep) -> Book:
    return await CatalogueService(session).add(data)


@router.post("/books/import")
async def import_books(rows: list[ImportRow], session: SessionDep) -> ImportReport:
    return await CatalogueService(session).import_batch(rows)


@router.get("/books/{isbn}", response_model=BookOut)
async def get_book(isbn: str, session: SessionDep) -> Book:
    return await CatalogueRepository(session).by_isbn(isbn)


@router.patch("/books/{isbn}", response_model=BookOut)
async def change_book(isbn: str, data: BookChange, session: SessionDep) -> Book:
    return await CatalogueService(session).change(isbn, data)


@router.delete("/books/{isbn}", status_code=status.HTTP_204_NO_CONTENT)
async def remove_book(isbn: str, session: SessionDep) -> Response:
    await CatalogueService(session).remove(isbn)
    return Response(status_code=status.HTTP_204_NO_CONTENT)


@router.get("/books/{isbn}/stock")
async def get_stock(isbn: str, session: SessionDep) -> StockOut:
    book = await CatalogueRepository(session).by_isbn(isbn)
    return StockOut(isbn=isbn, quantity=await StockRepository(session).quantity(book.id))


@router.post("/books/{isbn}/stock")
async def adjust_stock(isbn: str, change: StockChange, session: SessionDep) -> StockOut:
    quantity = await CatalogueService(session).adjust_stock(isbn, change.delta, change.reason)
    return StockOut(isbn=isbn, quantity=quantity)


@router.post("/books/{isbn}/reviews", response_model=ReviewOut, status_code=status.HTTP_201_CREATED)
async def add_review(isbn: str, data: ReviewIn, session: SessionDep) -> Review:
    return await CatalogueService(session).review(isbn, data)


@router.get("/books/{isbn}/rating")
async def get_rating(isbn: str, session: SessionDep) -> RatingOut:
    books = CatalogueRepository(session)
    book = await books.by_isbn(isbn)
    reviews, average = await books.rating(book.id)
    return RatingOut(isbn=isbn, reviews=reviews, average=average)

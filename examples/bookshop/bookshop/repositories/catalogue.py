from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import selectinload

from bookshop.errors import NotFoundError
from bookshop.models import Author, Book, BookAuthor, Publisher, Review


class CatalogueRepository:
    def __init__(self, session: AsyncSession) -> None:
        self.session = session

    async def by_isbn(self, isbn: str) -> Book:
        """Raises `NotFoundError`."""
        book = await self.session.scalar(
            select(Book)
            .where(Book.isbn == isbn)
            .options(selectinload(Book.author_links), selectinload(Book.publisher))
        )
        if book is None:
            raise NotFoundError(f"No book {isbn}")
        return book

    async def search(self, text: str = "", *, limit: int = 20, offset: int = 0) -> Sequence[Book]:
        query = (
            select(Book)
            .options(selectinload(Book.author_links), selectinload(Book.publisher))
            .order_by(Book.title, Book.id)
            .limit(limit)
            .offset(offset)
        )
        if text:
            # By title or by any of its authors.
            written_by = (
                select(BookAuthor.book_id)
                .join(BookAuthor.author)
                .where(Author.name.icontains(text, autoescape=True))
            )
            query = query.where(
                Book.title.icontains(text, autoescape=True) | Book.id.in_(written_by)
            )
        return (await self.session.scalars(query)).all()

    async def authors_named(self, names: Iterable[str]) -> list[Author]:
        """The authors of these names in this order; the unknown ones are added."""
        wanted = list(dict.fromkeys(names))
        if not wanted:
            return []
        # Two requests may introduce the same author at once.
        await self.session.execute(
            insert(Author).values([{"name": name} for name in wanted]).on_conflict_do_nothing()
        )
        found = await self.session.scalars(select(Author).where(Author.name.in_(wanted)))
        by_name = {author.name: author for author in found}
        return [by_name[name] for name in wanted]

    async def publisher_named(self, name: str) -> Publisher:
        await self.session.execute(
            insert(Publisher).values(name=name).on_conflict_do_nothing(index_elements=["name"])
        )
        return (await self.session.scalars(select(Publisher).where(Publisher.name == name))).one()

    async def rating(self, book_id: int) -> tuple[int, float | None]:
        """How many reviews, and their average."""
        row = await self.session.execute(
            select(func.count(), func.avg(Review.rating)).where(Review.book_id == book_id)
        )
        count, average = row.one()
        return count, None if average is None else float(average)

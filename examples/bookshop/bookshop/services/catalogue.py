from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm.exc import StaleDataError

from bookshop.errors import DuplicateError, OutOfStockError, StaleVersionError
from bookshop.models import Book, BookAuthor, Review
from bookshop.repositories.catalogue import CatalogueRepository
from bookshop.repositories.customers import CustomerRepository
from bookshop.repositories.stock import StockRepository
from bookshop.schemas import BookChange, BookIn, ImportReport, ImportRow, ReviewIn, SkippedRow


class CatalogueService:
    def __init__(self, session: AsyncSession) -> None:
        self.session = session
        self.books = CatalogueRepository(session)
        self.stock = StockRepository(session)

    async def add(self, data: BookIn) -> Book:
        """Add one title with its authors, publisher and first copies, all or nothing."""
        book = Book(
            isbn=data.isbn,
            title=data.title,
            price=data.price,
            description=data.description,
            published_on=data.published_on,
        )
        if data.publisher:
            book.publisher = await self.books.publisher_named(data.publisher)
        authors = await self.books.authors_named(data.authors)
        book.author_links = [
            BookAuthor(author=author, position=position) for position, author in enumerate(authors)
        ]
        self.session.add(book)
        try:
            await self.session.flush()
            await self._receive(book.id, data.copies, "first copies")
            await self.session.commit()
        except IntegrityError as error:
            await self.session.rollback()
            raise DuplicateError(f"The book {data.isbn} exists already") from error
        return await self.books.by_isbn(data.isbn)

    async def change(self, isbn: str, data: BookChange) -> Book:
        """Change a book the caller has read in this version. Raises `StaleVersionError`."""
        book = await self.books.by_isbn(isbn)
        if book.version != data.version:
            raise StaleVersionError(f"{isbn} is at version {book.version}, not {data.version}")
        for field, value in data.model_dump(exclude={"version"}, exclude_none=True).items():
            setattr(book, field, value)
        try:
            await self.session.commit()
        except StaleDataError as error:
            # Changed between our SELECT and our UPDATE.
            await self.session.rollback()
            raise StaleVersionError(f"{isbn} was changed by somebody else") from error
        return book

    async def remove(self, isbn: str) -> None:
        book = await self.books.by_isbn(isbn)
        await self.session.delete(book)
        await self.session.commit()

    async def import_batch(self, rows: Sequence[ImportRow]) -> ImportReport:
        """Add what can be added; a row the database refuses is skipped and reported."""
        skipped: list[SkippedRow] = []
        for line, row in enumerate(rows, start=1):
            try:
                async with self.session.begin_nested():
                    book = Book(isbn=row.isbn, title=row.title, price=row.price)
                    self.session.add(book)
                    await self.session.flush()
                    await self._receive(book.id, row.copies, "import")
            except DBAPIError as error:
                reason = str(error.orig).splitlines()[0]
                skipped.append(SkippedRow(line=line, isbn=row.isbn, reason=reason))
        await self.session.commit()
        return ImportReport(imported=len(rows) - len(skipped), skipped=skipped)

    async def adjust_stock(self, isbn: str, delta: int, reason: str) -> int:
        """Count copies in or out. Raises `OutOfStockError` where fewer would be left than none."""
        book = await self.books.by_isbn(isbn)
        locked = await self.stock.lock([book.id])
        stock = locked[book.id]
        if stock.quantity + delta < 0:
            available = stock.quantity
            await self.session.rollback()
            raise OutOfStockError(isbn, -delta, available)
        self.stock.move(stock, delta, reason)
        await self.session.commit()
        return stock.quantity

    async def review(self, isbn: str, data: ReviewIn) -> Review:
        """One review per customer and book."""
        book = await self.books.by_isbn(isbn)
        await CustomerRepository(self.session).get(data.customer_id)
        review = Review(book_id=book.id, **data.model_dump())
        self.session.add(review)
        try:
            await self.session.commit()
        except IntegrityError as error:
            await self.session.rollback()
            raise DuplicateError(f"Customer {data.customer_id} has reviewed {isbn}") from error
        return review

    async def _receive(self, book_id: int, copies: int, reason: str) -> None:
        locked = await self.stock.lock([book_id])
        if copies:
            self.stock.move(locked[book_id], copies, reason)
            await self.session.flush()

"""The application that is measured: three tables and one piece of work."""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

__all__ = ("DELETE_ALL", "Base", "body", "body_async")


class Base(DeclarativeBase):
    pass


class Author(Base):
    __tablename__ = "authors"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(100))
    books: Mapped[list[Book]] = relationship(back_populates="author")


class Book(Base):
    __tablename__ = "books"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(sa.String(200))
    author_id: Mapped[int] = mapped_column(sa.ForeignKey("authors.id"))
    author: Mapped[Author] = relationship(back_populates="books")
    reviews: Mapped[list[Review]] = relationship(back_populates="book")


class Review(Base):
    __tablename__ = "reviews"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(sa.Text)
    book_id: Mapped[int] = mapped_column(sa.ForeignKey("books.id"))
    book: Mapped[Book] = relationship(back_populates="reviews")


DELETE_ALL: Final = "; ".join(
    f"DELETE FROM {table.name}" for table in reversed(Base.metadata.sorted_tables)
)


def _three_rows() -> Author:
    return Author(name="Ada", books=[Book(title="Notes", reviews=[Review(text="Of note.")])])


def body(session: Session) -> None:
    """Three inserts in three tables, commit, select 1, rollback."""
    session.add(_three_rows())
    session.commit()
    session.scalar(_SELECT)
    session.rollback()


async def body_async(session: AsyncSession) -> None:
    """The same, awaited."""
    session.add(_three_rows())
    await session.commit()
    await session.scalar(_SELECT)
    await session.rollback()


_SELECT: Any = sa.select(sa.literal(1))

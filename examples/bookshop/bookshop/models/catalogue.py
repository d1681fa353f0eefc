from __future__ import annotations

from datetime import date

from sqlalchemy import CheckConstraint, ForeignKey, String, Text, UniqueConstraint
from sqlalchemy.ext.associationproxy import AssociationProxy, association_proxy
from sqlalchemy.orm import Mapped, mapped_column, relationship

from bookshop.models.base import ShopBase, intpk, money, timestamp


class Author(ShopBase):
    __tablename__ = "authors"

    id: Mapped[intpk]
    name: Mapped[str] = mapped_column(String(200), unique=True)


class Publisher(ShopBase):
    __tablename__ = "publishers"

    id: Mapped[intpk]
    name: Mapped[str] = mapped_column(String(200), unique=True)


class Book(ShopBase):
    __tablename__ = "books"
    __table_args__ = (
        CheckConstraint("price >= 0", name="price_not_negative"),
        CheckConstraint("isbn ~ '^[0-9]{13}$'", name="isbn_13_digits"),
    )

    id: Mapped[intpk]
    isbn: Mapped[str] = mapped_column(String(13), unique=True)
    title: Mapped[str] = mapped_column(String(300), index=True)
    description: Mapped[str] = mapped_column(Text, server_default="")
    price: Mapped[money]
    published_on: Mapped[date | None]
    publisher_id: Mapped[int | None] = mapped_column(ForeignKey("publishers.id"))
    version: Mapped[int] = mapped_column(server_default="1")
    created_at: Mapped[timestamp]

    publisher: Mapped[Publisher | None] = relationship(lazy="raise")
    author_links: Mapped[list[BookAuthor]] = relationship(
        cascade="all, delete-orphan", order_by="BookAuthor.position", lazy="raise"
    )
    authors: AssociationProxy[list[Author]] = association_proxy("author_links", "author")

    # Two clerks who edit the same book: the second one is told, not overwritten.
    __mapper_args__ = {"version_id_col": version, "eager_defaults": True}


class BookAuthor(ShopBase):
    __tablename__ = "book_authors"

    book_id: Mapped[int] = mapped_column(
        ForeignKey("books.id", ondelete="CASCADE"), primary_key=True
    )
    author_id: Mapped[int] = mapped_column(ForeignKey("authors.id"), primary_key=True)
    position: Mapped[int] = mapped_column(server_default="0")

    author: Mapped[Author] = relationship(lazy="joined", innerjoin=True)


class Review(ShopBase):
    __tablename__ = "reviews"
    __table_args__ = (
        UniqueConstraint("book_id", "customer_id"),
        CheckConstraint("rating BETWEEN 1 AND 5", name="rating_range"),
    )

    id: Mapped[intpk]
    book_id: Mapped[int] = mapped_column(ForeignKey("books.id", ondelete="CASCADE"))
    customer_id: Mapped[int] = mapped_column(ForeignKey("customers.id"))
    rating: Mapped[int]
    body: Mapped[str] = mapped_column(Text, server_default="")
    created_at: Mapped[timestamp]

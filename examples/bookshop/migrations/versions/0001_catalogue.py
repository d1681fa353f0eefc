"""The catalogue: authors, publishers, books."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "authors",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_authors"),
        sa.UniqueConstraint("name", name="uq_authors_name"),
    )
    op.create_table(
        "publishers",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_publishers"),
        sa.UniqueConstraint("name", name="uq_publishers_name"),
    )
    op.create_table(
        "books",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("isbn", sa.String(13), nullable=False),
        sa.Column("title", sa.String(300), nullable=False),
        sa.Column("description", sa.Text(), server_default="", nullable=False),
        sa.Column("price", sa.Numeric(10, 2), nullable=False),
        sa.Column("published_on", sa.Date(), nullable=True),
        sa.Column("publisher_id", sa.Integer(), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.func.now(),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id", name="pk_books"),
        sa.UniqueConstraint("isbn", name="uq_books_isbn"),
        sa.ForeignKeyConstraint(
            ["publisher_id"], ["publishers.id"], name="fk_books_publisher_id"
        ),
        sa.CheckConstraint("price >= 0", name=op.f("ck_books_price_not_negative")),
        sa.CheckConstraint("isbn ~ '^[0-9]{13}$'", name=op.f("ck_books_isbn_13_digits")),
    )
    op.create_index("ix_books_title", "books", ["title"])
    op.create_table(
        "book_authors",
        sa.Column("book_id", sa.Integer(), nullable=False),
        sa.Column("author_id", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("book_id", "author_id", name="pk_book_authors"),
        sa.ForeignKeyConstraint(
            ["book_id"], ["books.id"], name="fk_book_authors_book_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["author_id"], ["authors.id"], name="fk_book_authors_author_id"),
    )


def downgrade() -> None:
    for table in ("book_authors", "books", "publishers", "authors"):
        op.drop_table(table)

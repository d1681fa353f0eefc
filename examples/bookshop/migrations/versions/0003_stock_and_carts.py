"""Stock and its ledger; carts; reviews."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "stock",
        sa.Column("book_id", sa.Integer(), nullable=False),
        sa.Column("quantity", sa.Integer(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("book_id", name="pk_stock"),
        sa.ForeignKeyConstraint(
            ["book_id"], ["books.id"], name="fk_stock_book_id", ondelete="CASCADE"
        ),
        sa.CheckConstraint("quantity >= 0", name=op.f("ck_stock_not_negative")),
    )
    op.create_table(
        "stock_movements",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("book_id", sa.Integer(), nullable=False),
        sa.Column("delta", sa.Integer(), nullable=False),
        sa.Column("reason", sa.String(50), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.func.now(),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id", name="pk_stock_movements"),
        sa.ForeignKeyConstraint(
            ["book_id"], ["books.id"], name="fk_stock_movements_book_id", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_stock_movements_book_id", "stock_movements", ["book_id"])
    op.create_table(
        "carts",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("customer_id", sa.Integer(), nullable=False),
        sa.Column("ordered", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.func.now(),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id", name="pk_carts"),
        sa.ForeignKeyConstraint(
            ["customer_id"], ["customers.id"], name="fk_carts_customer_id", ondelete="CASCADE"
        ),
    )
    op.create_index(
        "uq_carts_one_open",
        "carts",
        ["customer_id"],
        unique=True,
        postgresql_where=sa.text("NOT ordered"),
    )
    op.create_table(
        "cart_items",
        sa.Column("cart_id", sa.Integer(), nullable=False),
        sa.Column("book_id", sa.Integer(), nullable=False),
        sa.Column("quantity", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("cart_id", "book_id", name="pk_cart_items"),
        sa.ForeignKeyConstraint(
            ["cart_id"], ["carts.id"], name="fk_cart_items_cart_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["book_id"], ["books.id"], name="fk_cart_items_book_id"),
        sa.CheckConstraint("quantity > 0", name=op.f("ck_cart_items_quantity_positive")),
    )
    op.create_table(
        "reviews",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("book_id", sa.Integer(), nullable=False),
        sa.Column("customer_id", sa.Integer(), nullable=False),
        sa.Column("rating", sa.Integer(), nullable=False),
        sa.Column("body", sa.Text(), server_default="", nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.func.now(),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id", name="pk_reviews"),
        sa.ForeignKeyConstraint(
            ["book_id"], ["books.id"], name="fk_reviews_book_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["customer_id"], ["customers.id"], name="fk_reviews_customer_id"),
        sa.UniqueConstraint("book_id", "customer_id", name="uq_reviews_book_id_customer_id"),
        sa.CheckConstraint("rating BETWEEN 1 AND 5", name=op.f("ck_reviews_rating_range")),
    )


def downgrade() -> None:
    for table in ("reviews", "cart_items", "carts", "stock_movements", "stock"):
        op.drop_table(table)

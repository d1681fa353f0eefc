"""Reports: the sales view, the bestseller list, daily snapshots."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


SALES_BY_BOOK = """
CREATE VIEW sales_by_book AS
SELECT b.id AS book_id,
       b.isbn,
       b.title,
       coalesce(sum(l.quantity) FILTER (WHERE o.status = 'paid'), 0)::integer AS copies,
       coalesce(sum(l.quantity * l.unit_price) FILTER (WHERE o.status = 'paid'), 0) AS revenue
FROM books b
LEFT JOIN order_lines l ON l.book_id = b.id
LEFT JOIN orders o ON o.id = l.order_id
GROUP BY b.id
"""

BESTSELLERS = """
CREATE MATERIALIZED VIEW bestsellers AS
SELECT book_id, isbn, title, copies FROM sales_by_book
WHERE copies > 0
ORDER BY copies DESC, title
LIMIT 10
"""


def upgrade() -> None:
    op.execute(SALES_BY_BOOK)
    op.execute(BESTSELLERS)
    op.create_table(
        "sales_snapshots",
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("book_id", sa.Integer(), nullable=False),
        sa.Column("copies", sa.Integer(), nullable=False),
        sa.Column("revenue", sa.Numeric(10, 2), nullable=False),
        sa.PrimaryKeyConstraint("day", "book_id", name="pk_sales_snapshots"),
        sa.ForeignKeyConstraint(
            ["book_id"], ["books.id"], name="fk_sales_snapshots_book_id", ondelete="CASCADE"
        ),
    )
    op.create_table(
        "maintenance_runs",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("task", sa.String(50), nullable=False),
        sa.Column(
            "finished_at",
            sa.DateTime(timezone=True),
            server_default=sa.func.now(),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id", name="pk_maintenance_runs"),
    )


def downgrade() -> None:
    op.drop_table("maintenance_runs")
    op.drop_table("sales_snapshots")
    op.execute("DROP MATERIALIZED VIEW bestsellers")
    op.execute("DROP VIEW sales_by_book")

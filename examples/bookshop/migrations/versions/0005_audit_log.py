"""An audit log, written by a trigger on books, stock and orders."""

from __future__ import annotations

import sqlalchemy as sa
import sqlalchemy.dialects.postgresql
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


AUDITED = {"books": "id", "stock": "book_id", "orders": "id"}

AUDIT_ROW = """
CREATE FUNCTION audit_row() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    old_row jsonb := CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) END;
    new_row jsonb := CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) END;
BEGIN
    IF old_row IS NOT DISTINCT FROM new_row THEN
        RETURN NULL;
    END IF;
    INSERT INTO audit_log (table_name, operation, row_id, old_row, new_row)
    VALUES (
        TG_TABLE_NAME,
        TG_OP,
        (coalesce(new_row, old_row) ->> TG_ARGV[0])::integer,
        old_row,
        new_row
    );
    RETURN NULL;
END
$$
"""


def upgrade() -> None:
    op.create_table(
        "audit_log",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("table_name", sa.String(63), nullable=False),
        sa.Column("operation", sa.String(6), nullable=False),
        sa.Column("row_id", sa.Integer(), nullable=False),
        sa.Column("old_row", sa.dialects.postgresql.JSONB(), nullable=True),
        sa.Column("new_row", sa.dialects.postgresql.JSONB(), nullable=True),
        sa.Column(
            "changed_at",
            sa.DateTime(timezone=True),
            server_default=sa.func.now(),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id", name="pk_audit_log"),
    )
    op.create_index("ix_audit_log_table_name", "audit_log", ["table_name"])
    op.execute(AUDIT_ROW)
    for table, key in AUDITED.items():
        op.execute(
            f"CREATE TRIGGER audit_{table} AFTER INSERT OR UPDATE OR DELETE ON {table}"
            f" FOR EACH ROW EXECUTE FUNCTION audit_row('{key}')"
        )


def downgrade() -> None:
    for table in AUDITED:
        op.execute(f"DROP TRIGGER audit_{table} ON {table}")
    op.execute("DROP FUNCTION audit_row()")
    op.drop_table("audit_log")

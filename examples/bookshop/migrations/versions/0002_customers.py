"""Customers and their addresses, which point at each other."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "customers",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("email", sa.String(320), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("default_address_id", sa.Integer(), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.func.now(),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id", name="pk_customers"),
    )
    op.create_index(
        "uq_customers_email_lower", "customers", [sa.text("lower(email)")], unique=True
    )
    op.create_table(
        "addresses",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("customer_id", sa.Integer(), nullable=False),
        sa.Column("street", sa.String(200), nullable=False),
        sa.Column("city", sa.String(100), nullable=False),
        sa.Column("postcode", sa.String(20), nullable=False),
        sa.Column("country", sa.String(2), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_addresses"),
        sa.ForeignKeyConstraint(
            ["customer_id"], ["customers.id"], name="fk_addresses_customer_id", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_addresses_customer_id", "addresses", ["customer_id"])
    # The address may be written after the customer who prefers it.
    op.create_foreign_key(
        "fk_customers_default_address_id",
        "customers",
        "addresses",
        ["default_address_id"],
        ["id"],
        deferrable=True,
        initially="DEFERRED",
    )


def downgrade() -> None:
    op.drop_constraint("fk_customers_default_address_id", "customers", type_="foreignkey")
    op.drop_table("addresses")
    op.drop_table("customers")

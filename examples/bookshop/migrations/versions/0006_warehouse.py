"""The warehouse: shipments, pick tasks, events, supplier prices."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


shipment_status = sa.Enum("picking", "packed", "sent", name="shipment_status")


def upgrade() -> None:
    op.create_table(
        "shipments",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("order_number", sa.String(20), nullable=False),
        sa.Column("recipient", sa.String(200), nullable=False),
        sa.Column("ship_to", sa.String(400), nullable=False),
        sa.Column("status", shipment_status, server_default="picking", nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.func.now(),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id", name="pk_shipments"),
        sa.UniqueConstraint("order_number", name="uq_shipments_order_number"),
    )
    op.create_table(
        "pick_tasks",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("shipment_id", sa.Integer(), nullable=False),
        sa.Column("isbn", sa.String(13), nullable=False),
        sa.Column("quantity", sa.Integer(), nullable=False),
        sa.Column("picker", sa.String(100), nullable=True),
        sa.Column("done", sa.Boolean(), server_default="false", nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_pick_tasks"),
        sa.ForeignKeyConstraint(
            ["shipment_id"], ["shipments.id"], name="fk_pick_tasks_shipment_id", ondelete="CASCADE"
        ),
        sa.CheckConstraint("quantity > 0", name=op.f("ck_pick_tasks_quantity_positive")),
    )
    op.create_index("ix_pick_tasks_shipment_id", "pick_tasks", ["shipment_id"])
    op.create_table(
        "fulfilment_events",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("order_number", sa.String(20), nullable=False),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("detail", sa.Text(), server_default="", nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.func.now(),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id", name="pk_fulfilment_events"),
    )
    op.create_index(
        "ix_fulfilment_events_order_number", "fulfilment_events", ["order_number"]
    )
    op.create_table(
        "supplier_prices",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("supplier", sa.String(100), nullable=False),
        sa.Column("isbn", sa.String(13), nullable=False),
        sa.Column("price", sa.Numeric(10, 2), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_supplier_prices"),
        sa.UniqueConstraint("supplier", "isbn", name="uq_supplier_prices_supplier_isbn"),
        sa.CheckConstraint("price > 0", name=op.f("ck_supplier_prices_price_positive")),
    )


def downgrade() -> None:
    for table in ("supplier_prices", "fulfilment_events", "pick_tasks", "shipments"):
        op.drop_table(table)
    shipment_status.drop(op.get_bind())

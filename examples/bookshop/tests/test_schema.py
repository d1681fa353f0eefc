"""The migrations: one line of history, and at its end what the models describe."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text
from sqlalchemy.exc import IntegrityError

from bookshop.db import ShopSession, sync_engine
from bookshop.models import Customer, ShopBase
from bookshop.warehouse.models import WarehouseBase

ALEMBIC = Config(Path(__file__).parent.parent / "alembic.ini")


def test_history_has_one_head_and_one_base() -> None:
    script = ScriptDirectory.from_config(ALEMBIC)

    assert len(script.get_heads()) == 1
    assert len(script.get_bases()) == 1
    assert len(list(script.walk_revisions())) >= 5


def test_the_database_is_at_the_head() -> None:
    with sync_engine.connect() as connection:
        version = connection.scalar(text("SELECT version_num FROM alembic_version"))

    assert version == ScriptDirectory.from_config(ALEMBIC).get_current_head()


def test_models_and_migrations_agree() -> None:
    """Fails where somebody changed a model and wrote no revision."""
    command.check(ALEMBIC)


def test_every_table_is_there() -> None:
    tables = set(inspect(sync_engine).get_table_names())

    assert {*ShopBase.metadata.tables, *WarehouseBase.metadata.tables} <= tables
    assert len(tables) > 10


def test_no_key_crosses_from_the_warehouse_to_the_shop() -> None:
    inspector = inspect(sync_engine)

    for table in WarehouseBase.metadata.tables:
        referred = {key["referred_table"] for key in inspector.get_foreign_keys(table)}
        assert referred <= set(WarehouseBase.metadata.tables)


def test_the_default_address_is_checked_at_the_end_of_a_transaction() -> None:
    keys = inspect(sync_engine).get_foreign_keys("customers")

    assert [key["options"] for key in keys] == [{"initially": "DEFERRED", "deferrable": True}]


async def test_a_preferred_address_must_exist_in_the_end() -> None:
    async with ShopSession() as session:
        session.add(Customer(email="ada@example.org", name="Ada", default_address_id=-1))
        await session.flush()
        with pytest.raises(IntegrityError, match="fk_customers_default_address_id"):
            await session.execute(text("SET CONSTRAINTS ALL IMMEDIATE"))


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("order_status", ["pending", "paid", "failed", "cancelled"]),
        ("shipment_status", ["picking", "packed", "sent"]),
    ],
)
def test_enums_have_their_labels(name: str, labels: list[str]) -> None:
    enums = {enum["name"]: enum["labels"] for enum in inspect(sync_engine).get_enums()}

    assert enums[name] == labels


def test_reports_have_their_views() -> None:
    inspector = inspect(sync_engine)

    assert inspector.get_view_names() == ["sales_by_book"]
    assert inspector.get_materialized_view_names() == ["bestsellers"]


@pytest.mark.parametrize("table", ["books", "orders", "stock"])
def test_tables_are_audited_by_a_trigger(table: str) -> None:
    with sync_engine.connect() as connection:
        functions = connection.scalars(
            text(
                "SELECT p.proname FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid"
                " WHERE t.tgrelid = CAST(:table AS regclass) AND NOT t.tgisinternal"
            ),
            {"table": table},
        )
        assert functions.all() == ["audit_row"]

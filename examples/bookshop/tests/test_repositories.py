"""The repositories alone, with sessions as the application opens them."""

from __future__ import annotations

import asyncio
from decimal import Decimal

import pytest
from shop import EMAIL, ISBN, OTHER_ISBN
from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm.exc import StaleDataError

from bookshop.db import ShopSession, WarehouseSession
from bookshop.errors import NotFoundError
from bookshop.models import Address, Author, Book, Customer, Order, Stock
from bookshop.repositories.catalogue import CatalogueRepository
from bookshop.repositories.customers import CustomerRepository
from bookshop.repositories.orders import OrderRepository
from bookshop.repositories.stock import StockRepository
from bookshop.warehouse.messages import OrderPaid, PaidLine
from bookshop.warehouse.models import PickTask, ShipmentStatus
from bookshop.warehouse.service import (
    claim_task,
    create_shipment,
    events_of,
    finish_task,
    shipment_of,
)


async def save_book(isbn: str = ISBN) -> int:
    async with ShopSession.begin() as session:
        book = Book(isbn=isbn, title="Emma", price=Decimal("9.50"))
        session.add(book)
        await session.flush()
        return book.id


async def books() -> int:
    async with ShopSession() as session:
        return await session.scalar(select(func.count(Book.id))) or 0


async def test_a_committed_book_is_seen_by_the_next_session() -> None:
    assert await books() == 0

    book_id = await save_book()

    async with ShopSession() as session:
        assert (await CatalogueRepository(session).by_isbn(ISBN)).id == book_id


async def test_a_session_that_is_closed_without_commit_wrote_nothing() -> None:
    async with ShopSession() as session:
        session.add(Book(isbn=ISBN, title="Emma", price=Decimal("9.50")))
        await session.flush()

    assert await books() == 0


async def test_a_commit_survives_a_later_rollback() -> None:
    async with ShopSession() as session:
        session.add(Book(isbn=ISBN, title="Kept", price=Decimal(1)))
        await session.commit()
        session.add(Book(isbn=OTHER_ISBN, title="Dropped", price=Decimal(1)))
        await session.flush()
        await session.rollback()

    async with ShopSession() as session:
        assert (await session.scalars(select(Book.title))).all() == ["Kept"]


async def test_a_session_goes_on_after_an_integrity_error() -> None:
    await save_book()

    async with ShopSession() as session:
        session.add(Book(isbn=ISBN, title="Again", price=Decimal(1)))
        with pytest.raises(IntegrityError):
            await session.commit()
        await session.rollback()
        session.add(Book(isbn=OTHER_ISBN, title="Another", price=Decimal(1)))
        await session.commit()

    assert await books() == 2


async def test_a_failed_statement_spoils_its_transaction_until_it_is_rolled_back() -> None:
    async with ShopSession() as session:
        with pytest.raises(IntegrityError):
            await session.execute(Book.__table__.insert().values(isbn="short", title="", price=1))
        with pytest.raises(DBAPIError, match="current transaction is aborted"):
            await session.execute(select(1))
        await session.rollback()
        assert await session.scalar(select(1)) == 1


async def test_nested_transactions_end_one_by_one() -> None:
    async with ShopSession.begin() as session:
        session.add(Author(name="outer"))
        async with session.begin_nested():
            session.add(Author(name="first"))
        with pytest.raises(IntegrityError):
            async with session.begin_nested():
                session.add(Author(name="second"))
                await session.flush()
                session.add(Author(name="first"))
                await session.flush()
        async with session.begin_nested():
            session.add(Author(name="third"))

    async with ShopSession() as session:
        names = (await session.scalars(select(Author.name).order_by(Author.id))).all()
    assert names == ["outer", "first", "third"]


async def test_authors_are_made_once_and_returned_in_order() -> None:
    async with ShopSession.begin() as session:
        session.add(Author(name="Jane Austen"))

    async with ShopSession.begin() as session:
        authors = await CatalogueRepository(session).authors_named(
            ["George Eliot", "Jane Austen", "George Eliot"]
        )

    assert [author.name for author in authors] == ["George Eliot", "Jane Austen"]
    async with ShopSession() as session:
        assert await session.scalar(select(func.count(Author.id))) == 2


async def test_stock_is_locked_and_moved() -> None:
    book_id = await save_book()

    async with ShopSession.begin() as session:
        repository = StockRepository(session)
        locked = await repository.lock([book_id, book_id])
        repository.move(locked[book_id], 7, "delivery")

    async with ShopSession() as session:
        assert await StockRepository(session).quantity(book_id) == 7
        assert await StockRepository(session).ledger_total(book_id) == 7


async def test_the_database_itself_refuses_negative_stock() -> None:
    book_id = await save_book()

    async with ShopSession() as session:
        session.add(Stock(book_id=book_id, quantity=-1))
        with pytest.raises(IntegrityError, match="ck_stock_not_negative"):
            await session.commit()


async def test_a_book_read_long_ago_cannot_be_saved_over_a_newer_one() -> None:
    await save_book()
    async with ShopSession() as session:
        old = await CatalogueRepository(session).by_isbn(ISBN)
    async with ShopSession.begin() as session:
        (await CatalogueRepository(session).by_isbn(ISBN)).title = "Newer"

    async with ShopSession() as session:
        session.add(old)
        old.title = "Older"
        with pytest.raises(StaleDataError):
            await session.commit()


async def test_customers_are_found_by_email_in_any_case() -> None:
    async with ShopSession.begin() as session:
        session.add(Customer(email=EMAIL, name="Ada"))

    async with ShopSession() as session:
        found = await CustomerRepository(session).by_email("ADA@example.ORG")
        assert found is not None
        assert found.name == "Ada"
        assert await CustomerRepository(session).by_email("grace@example.org") is None


async def test_a_customer_may_be_written_before_the_preferred_address() -> None:
    """The key from the customer to the address is checked when the transaction ends."""
    async with ShopSession.begin() as session:
        address_id = await session.scalar(select(func.nextval("addresses_id_seq")))
        customer = Customer(email=EMAIL, name="Ada", default_address_id=address_id)
        session.add(customer)
        await session.flush()
        session.add(
            Address(
                id=address_id,
                customer_id=customer.id,
                street="1 Dorset Street",
                city="London",
                postcode="W1",
                country="GB",
            )
        )

    async with ShopSession() as session:
        loaded = await CustomerRepository(session).get(customer.id)
        assert loaded.default_address is not None
        assert loaded.default_address.street == "1 Dorset Street"


async def test_order_numbers_do_not_repeat() -> None:
    async def number() -> str:
        async with ShopSession.begin() as session:
            return await OrderRepository(session).next_number()

    numbers = await asyncio.gather(*(number() for _ in range(6)))

    assert len(set(numbers)) == 6
    assert all(number.startswith("BS-") for number in numbers)


async def test_what_is_missing_is_not_found() -> None:
    async with ShopSession() as session:
        with pytest.raises(NotFoundError):
            await OrderRepository(session).by_number("BS-000000")
        with pytest.raises(NotFoundError):
            await CustomerRepository(session).get(1)
        assert await session.scalar(select(func.count(Order.id))) == 0


def plan(number: str, *isbns: str) -> None:
    lines = tuple(PaidLine(isbn, 1) for isbn in isbns)
    with WarehouseSession.begin() as session:
        create_shipment(session, OrderPaid(number, "Ada", "1 Dorset Street", lines))


def test_pick_tasks_are_claimed_oldest_first() -> None:
    plan("BS-000001", ISBN)
    plan("BS-000002", OTHER_ISBN)

    claimed = []
    for picker in ("grace", "joan", "mary"):
        with WarehouseSession.begin() as session:
            task = claim_task(session, picker)
            claimed.append(task and task.isbn)

    assert claimed == [ISBN, OTHER_ISBN, None]


def test_the_last_task_packs_the_shipment() -> None:
    plan("BS-000001", ISBN, OTHER_ISBN)
    for _ in range(2):
        with WarehouseSession.begin() as session:
            task = claim_task(session, "grace")
            assert task is not None
            finish_task(session, task.id, "grace")

    with WarehouseSession() as session:
        assert shipment_of(session, "BS-000001").status is ShipmentStatus.PACKED
        kinds = [event.kind for event in events_of(session, "BS-000001")]
    assert kinds == ["planned", "packed"]


def test_a_claim_that_is_rolled_back_is_free_again() -> None:
    plan("BS-000001", ISBN)
    with WarehouseSession() as session:
        assert claim_task(session, "grace") is not None
        session.flush()
        session.rollback()

    with WarehouseSession() as session:
        assert session.scalars(select(PickTask.picker)).all() == [None]


def test_a_script_may_bring_its_own_event_loop() -> None:
    async def script() -> int:
        await save_book()
        return await books()

    assert asyncio.run(script()) == 1

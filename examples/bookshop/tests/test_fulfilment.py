"""The warehouse's own threads: jobs that commit, fail and meet each other."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from httpx import AsyncClient
from shop import ISBN, OTHER_ISBN, Shop
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

import sandbox
from bookshop.db import WarehouseSession
from bookshop.warehouse.messages import OrderPaid, PaidLine
from bookshop.warehouse.models import FulfilmentEvent, PickTask, Shipment
from bookshop.warehouse.pool import FulfilmentPool
from bookshop.warehouse.service import FulfilmentError, create_shipment, shipment_of
from sandbox.errors import OwnershipError


def message(number: str = "BS-000001", copies: dict[str, int] | None = None) -> OrderPaid:
    return OrderPaid(
        order_number=number,
        recipient="Ada Lovelace",
        ship_to="12 St James's Square",
        lines=tuple(PaidLine(isbn, n) for isbn, n in (copies or {ISBN: 1}).items()),
    )


def count(entity: type) -> int:
    with WarehouseSession() as session:
        return session.scalar(select(func.count()).select_from(entity)) or 0


def kinds() -> list[str]:
    with WarehouseSession() as session:
        return list(session.scalars(select(FulfilmentEvent.kind).order_by(FulfilmentEvent.id)))


@pytest.fixture
def pool() -> Iterator[FulfilmentPool]:
    pool = FulfilmentPool(WarehouseSession, max_workers=2)
    yield pool
    pool.shutdown()


async def test_a_paid_order_becomes_a_shipment(shop: Shop) -> None:
    await shop.book(ISBN, copies=5)
    await shop.book(OTHER_ISBN, copies=5)
    customer_id = await shop.customer()
    await shop.cart(customer_id, ISBN, 2)
    order = await shop.order(customer_id, OTHER_ISBN)

    await shop.warehouse_is_done()

    shipment = await shop.get(f"/shipments/{order['number']}")
    assert shipment["recipient"] == "Ada Lovelace"
    assert shipment["status"] == "picking"
    assert [(task["isbn"], task["quantity"]) for task in shipment["pick_tasks"]] == [
        (ISBN, 2),
        (OTHER_ISBN, 1),
    ]
    events = await shop.get(f"/shipments/{order['number']}/events")
    assert [event["kind"] for event in events] == ["planned"]


async def test_what_is_not_paid_is_not_shipped(shop: Shop) -> None:
    await shop.book(copies=5)
    customer_id = await shop.customer()
    await shop.cart(customer_id)
    await shop.checkout(customer_id, card="declined")

    await shop.warehouse_is_done()

    assert count(Shipment) == 0
    assert kinds() == []


async def test_an_order_too_big_for_a_trolley_is_paid_but_waits(shop: Shop) -> None:
    customer_id = await shop.customer()
    for n in range(3):
        await shop.book(f"978000000000{n}", copies=100)
        await shop.cart(customer_id, f"978000000000{n}", 100)
    order = (await shop.checkout(customer_id)).json()

    await shop.warehouse_is_done()

    assert order["status"] == "paid"
    [event] = await shop.get(f"/shipments/{order['number']}/events")
    assert event["kind"] == "failed"
    assert event["detail"] == "300 copies do not fit on a trolley"


async def test_pickers_pack_a_shipment_together(shop: Shop, client: AsyncClient) -> None:
    await shop.book(ISBN, copies=5)
    await shop.book(OTHER_ISBN, copies=5)
    customer_id = await shop.customer()
    await shop.cart(customer_id, ISBN)
    order = await shop.order(customer_id, OTHER_ISBN)
    await shop.warehouse_is_done()

    first = (await client.post("/pickers/grace/claim")).json()
    second = (await client.post("/pickers/joan/claim")).json()
    assert {first["isbn"], second["isbn"]} == {ISBN, OTHER_ISBN}
    assert (await client.post("/pickers/mary/claim")).json() is None

    stolen = await client.post(f"/pickers/joan/tasks/{first['id']}/done")
    assert stolen.status_code == 409
    half = (await client.post(f"/pickers/grace/tasks/{first['id']}/done")).json()
    assert half["status"] == "picking"
    packed = (await client.post(f"/pickers/joan/tasks/{second['id']}/done")).json()
    assert packed["status"] == "packed"
    events = await shop.get(f"/shipments/{order['number']}/events")
    assert [event["kind"] for event in events] == ["planned", "packed"]


async def test_an_unknown_shipment_is_not_found(client: AsyncClient) -> None:
    assert (await client.get("/shipments/BS-000001")).status_code == 404
    assert (await client.post("/pickers/grace/tasks/1/done")).status_code == 404


def test_the_allowed_threads_share_the_tests_database(
    fulfilment_allowed: None, pool: FulfilmentPool
) -> None:
    with WarehouseSession.begin() as session:
        session.add(FulfilmentEvent(order_number="BS-000001", kind="announced"))

    shipment_id = pool.submit(message()).result(10)

    with WarehouseSession() as session:
        assert shipment_of(session, "BS-000001").id == shipment_id
    assert kinds() == ["announced", "planned"]


def test_a_job_that_fails_leaves_an_event_and_nothing_else(
    fulfilment_allowed: None, pool: FulfilmentPool
) -> None:
    future = pool.submit(message(copies={ISBN: 150, OTHER_ISBN: 51}))

    with pytest.raises(FulfilmentError, match="201 copies"):
        future.result(10)

    assert (count(Shipment), count(PickTask)) == (0, 0)
    assert kinds() == ["failed"]


def test_a_job_that_breaks_a_constraint_is_rolled_back(
    fulfilment_allowed: None, pool: FulfilmentPool
) -> None:
    with pytest.raises(IntegrityError):
        pool.submit(message(copies={ISBN: 2, OTHER_ISBN: 0})).result(10)

    assert (count(Shipment), count(PickTask)) == (0, 0)
    assert kinds() == ["failed"]


def test_a_message_that_arrives_twice_ships_once(
    fulfilment_allowed: None, pool: FulfilmentPool
) -> None:
    futures = [pool.submit(message()) for _ in range(2)]
    pool.drain(10)

    failures = [future.exception() for future in futures]
    assert sorted(type(failure) for failure in failures if failure) == [IntegrityError]
    assert count(Shipment) == 1
    assert sorted(kinds()) == ["failed", "planned"]


def test_both_threads_work_through_many_messages(
    fulfilment_allowed: None, pool: FulfilmentPool
) -> None:
    assert count(Shipment) == 0

    futures = [pool.submit(message(f"BS-{n:06d}")) for n in range(30)]

    assert len({future.result(20) for future in futures}) == 30
    assert count(Shipment) == 30
    assert kinds() == ["planned"] * 30


def test_a_thread_can_be_allowed_before_it_starts(sandboxed: sandbox.Sandbox) -> None:
    def plan() -> None:
        with WarehouseSession.begin() as session:
            create_shipment(session, message())

    night_shift = threading.Thread(target=plan, name="night shift")
    sandbox.allow(sandboxed, night_shift)
    night_shift.start()
    night_shift.join(10)

    assert count(Shipment) == 1


def test_a_thread_that_nobody_allowed_is_refused(pool: FulfilmentPool) -> None:
    with pytest.raises(OwnershipError, match="fulfilment_0"):
        pool.submit(message()).result(10)

    assert count(Shipment) == 0
    assert kinds() == []


@pytest.mark.sandbox(shared=True)
def test_shared_any_thread_works_in_the_tests_database(pool: FulfilmentPool) -> None:
    assert count(Shipment) == 0

    pool.submit(message()).result(10)

    assert count(Shipment) == 1


@pytest.mark.sandbox(shared=True)
def test_shared_threads_that_nobody_named_write_at_once() -> None:
    start = threading.Barrier(4)

    def plan(n: int) -> None:
        start.wait(10)
        for m in range(5):
            with WarehouseSession.begin() as session:
                create_shipment(session, message(f"BS-{n}-{m}"))

    threads = [threading.Thread(target=plan, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert count(Shipment) == 20
    assert kinds() == ["planned"] * 20

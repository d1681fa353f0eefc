"""What the warehouse does, in plain synchronous code."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session, selectinload

from bookshop.errors import ConflictError, NotFoundError
from bookshop.warehouse.messages import OrderPaid
from bookshop.warehouse.models import FulfilmentEvent, PickTask, Shipment, ShipmentStatus

# One trolley holds this many copies; more has to be split by a person.
MAX_COPIES_PER_SHIPMENT = 200


class FulfilmentError(Exception):
    """The warehouse cannot ship this order."""


def create_shipment(session: Session, message: OrderPaid) -> Shipment:
    """Plan the picking of a paid order. Raises `FulfilmentError`; the caller ends the transaction.

    A second message of the same order breaks the unique key of `shipments`.
    """
    shipment = Shipment(
        order_number=message.order_number, recipient=message.recipient, ship_to=message.ship_to
    )
    session.add(shipment)
    session.flush()
    for line in message.lines:
        shipment.pick_tasks.append(PickTask(isbn=line.isbn, quantity=line.quantity))
    session.flush()
    copies = session.scalar(
        select(func.sum(PickTask.quantity)).where(PickTask.shipment_id == shipment.id)
    )
    if not copies:
        raise FulfilmentError("nothing to pick")
    if copies > MAX_COPIES_PER_SHIPMENT:
        raise FulfilmentError(f"{copies} copies do not fit on a trolley")
    record(session, message.order_number, "planned", f"{copies} copies")
    return shipment


def record(session: Session, order_number: str, kind: str, detail: str = "") -> None:
    session.add(FulfilmentEvent(order_number=order_number, kind=kind, detail=detail))


def shipment_of(session: Session, order_number: str) -> Shipment:
    """Raises `NotFoundError`."""
    shipment = session.scalar(
        select(Shipment)
        .where(Shipment.order_number == order_number)
        .options(selectinload(Shipment.pick_tasks))
    )
    if shipment is None:
        raise NotFoundError(f"No shipment for {order_number}")
    return shipment


def events_of(session: Session, order_number: str) -> Sequence[FulfilmentEvent]:
    return session.scalars(
        select(FulfilmentEvent)
        .where(FulfilmentEvent.order_number == order_number)
        .order_by(FulfilmentEvent.id)
    ).all()


def claim_task(session: Session, picker: str) -> PickTask | None:
    """The oldest task nobody works on; two pickers who ask at once get different ones."""
    task = session.scalar(
        select(PickTask)
        .where(PickTask.picker.is_(None))
        .order_by(PickTask.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    if task is not None:
        task.picker = picker
    return task


def finish_task(session: Session, task_id: int, picker: str) -> Shipment:
    """Mark a task done; the last one packs the shipment."""
    task = session.get(PickTask, task_id, with_for_update=True)
    if task is None:
        raise NotFoundError(f"No pick task {task_id}")
    if task.picker != picker:
        raise ConflictError(f"Pick task {task_id} belongs to {task.picker}")
    task.done = True
    shipment = task.shipment
    if all(task.done for task in shipment.pick_tasks):
        shipment.status = ShipmentStatus.PACKED
        record(session, shipment.order_number, "packed")
    return shipment

"""The warehouse's endpoints: plain functions, which Starlette runs in its threads."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Annotated

from fastapi import APIRouter, Body, Depends
from sqlalchemy.orm import Session

from bookshop.db import WarehouseSession
from bookshop.schemas import (
    ClaimedTaskOut,
    EventOut,
    PriceListReport,
    ShipmentOut,
    SupplierPriceOut,
)
from bookshop.warehouse import prices, service
from bookshop.warehouse.models import FulfilmentEvent, PickTask, Shipment, SupplierPrice

router = APIRouter(tags=["warehouse"])


def get_warehouse_session() -> Iterator[Session]:
    with WarehouseSession() as session:
        yield session


WarehouseDep = Annotated[Session, Depends(get_warehouse_session)]


@router.get("/shipments/{order_number}", response_model=ShipmentOut)
def get_shipment(order_number: str, session: WarehouseDep) -> Shipment:
    return service.shipment_of(session, order_number)


@router.get("/shipments/{order_number}/events", response_model=list[EventOut])
def get_events(order_number: str, session: WarehouseDep) -> list[FulfilmentEvent]:
    return list(service.events_of(session, order_number))


@router.post("/pickers/{picker}/claim", response_model=ClaimedTaskOut | None)
def claim_task(picker: str, session: WarehouseDep) -> PickTask | None:
    task = service.claim_task(session, picker)
    session.commit()
    return task


@router.post("/pickers/{picker}/tasks/{task_id}/done", response_model=ShipmentOut)
def finish_task(picker: str, task_id: int, session: WarehouseDep) -> Shipment:
    shipment = service.finish_task(session, task_id, picker)
    session.commit()
    return shipment


@router.put("/suppliers/{supplier}/prices")
async def import_prices(
    supplier: str, text: Annotated[str, Body(media_type="text/csv")]
) -> PriceListReport:
    count = await asyncio.to_thread(prices.import_prices, WarehouseSession, supplier, text)
    return PriceListReport(supplier=supplier, prices=count)


@router.get("/supplier-prices/{isbn}", response_model=list[SupplierPriceOut])
def get_supplier_prices(isbn: str, session: WarehouseDep) -> list[SupplierPrice]:
    return list(prices.prices_of(session, isbn))

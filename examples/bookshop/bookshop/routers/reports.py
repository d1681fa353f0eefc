from __future__ import annotations

from datetime import date
from typing import Annotated

from fastapi import APIRouter, Depends, status
from fastapi.responses import StreamingResponse
from sqlalchemy import select, text

from bookshop.db import SessionDep, ShopSession, async_engine
from bookshop.models import AuditEntry
from bookshop.schemas import AuditOut, BestsellerRow, Dashboard, SalesRow
from bookshop.services.reports import Reports

router = APIRouter(tags=["reports"])


def get_reports() -> Reports:
    return Reports(async_engine, ShopSession)


ReportsDep = Annotated[Reports, Depends(get_reports)]


@router.get("/health")
async def health() -> dict[str, str]:
    """Outside any transaction: a health check must not hold one open."""
    connection = await async_engine.connect()
    try:
        connection = await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(text("SELECT 1"))
    finally:
        await connection.close()
    return {"database": "ok"}


@router.get("/dashboard")
async def dashboard(reports: ReportsDep) -> Dashboard:
    return await reports.dashboard()


@router.get("/reports/sales")
async def sales(reports: ReportsDep) -> list[SalesRow]:
    return [
        SalesRow(isbn=row.isbn, title=row.title, copies=row.copies, revenue=row.revenue)
        for row in await reports.sales()
    ]


@router.get("/reports/bestsellers")
async def bestseller_list(reports: ReportsDep) -> list[BestsellerRow]:
    return [
        BestsellerRow(isbn=row.isbn, title=row.title, copies=row.copies)
        for row in await reports.bestsellers()
    ]


@router.get("/reports/orders.csv")
async def orders_csv(reports: ReportsDep) -> StreamingResponse:
    return StreamingResponse(reports.orders_csv(), media_type="text/csv")


@router.post("/reports/days/{day}")
async def close_day(day: date, reports: ReportsDep) -> dict[str, int]:
    return {"books": await reports.close_day(day)}


@router.post("/maintenance/refresh", status_code=status.HTTP_202_ACCEPTED)
async def refresh(reports: ReportsDep) -> dict[str, str]:
    await reports.refresh()
    return {"refreshed": "bestsellers"}


@router.get("/audit/{table_name}", response_model=list[AuditOut])
async def audit(table_name: str, session: SessionDep) -> list[AuditEntry]:
    return list(
        await session.scalars(
            select(AuditEntry).where(AuditEntry.table_name == table_name).order_by(AuditEntry.id)
        )
    )

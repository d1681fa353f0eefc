"""The ASGI application: `uvicorn bookshop.app:app`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from bookshop.db import WarehouseSession, async_engine, settings, sync_engine
from bookshop.errors import ShopError
from bookshop.routers import books, customers, orders, reports
from bookshop.warehouse import router as warehouse
from bookshop.warehouse.pool import FulfilmentPool


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.fulfilment = FulfilmentPool(WarehouseSession, settings.fulfilment_workers)
    try:
        yield
    finally:
        # Orders that were paid are planned before the process ends.
        await run_in_threadpool(app.state.fulfilment.shutdown)
        await async_engine.dispose()
        await run_in_threadpool(sync_engine.dispose)


async def report_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ShopError)
    return JSONResponse({"detail": str(error)}, status_code=error.status_code)


def create_app() -> FastAPI:
    app = FastAPI(title="Bookshop", lifespan=lifespan)
    app.add_exception_handler(ShopError, report_error)
    for module in (books, customers, orders, reports, warehouse):
        app.include_router(module.router)
    return app


app = create_app()

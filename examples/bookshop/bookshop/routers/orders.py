from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, status

from bookshop.db import SessionDep
from bookshop.models import Order
from bookshop.repositories.orders import OrderRepository
from bookshop.schemas import CheckoutIn, OrderLineOut, OrderOut
from bookshop.services.checkout import CheckoutService
from bookshop.services.payments import CardProcessor, PaymentGateway

router = APIRouter(tags=["orders"])


def get_gateway() -> PaymentGateway:
    return CardProcessor()


def get_checkout(
    request: Request,
    session: SessionDep,
    gateway: Annotated[PaymentGateway, Depends(get_gateway)],
) -> CheckoutService:
    return CheckoutService(session, gateway, request.app.state.fulfilment)


CheckoutDep = Annotated[CheckoutService, Depends(get_checkout)]


@router.post("/customers/{customer_id}/checkout", status_code=status.HTTP_201_CREATED)
async def place_order(customer_id: int, data: CheckoutIn, checkout: CheckoutDep) -> OrderOut:
    return _order_out(await checkout.place(customer_id, data.card))


@router.get("/customers/{customer_id}/orders")
async def list_orders(customer_id: int, session: SessionDep) -> list[OrderOut]:
    return [_order_out(order) for order in await OrderRepository(session).of_customer(customer_id)]


@router.get("/orders/{number}")
async def get_order(number: str, session: SessionDep) -> OrderOut:
    return _order_out(await OrderRepository(session).by_number(number))


@router.post("/orders/{number}/cancel")
async def cancel_order(number: str, checkout: CheckoutDep) -> OrderOut:
    return _order_out(await checkout.cancel(number))


def _order_out(order: Order) -> OrderOut:
    return OrderOut(
        number=order.number,
        status=order.status.value,
        total=order.total,
        ship_to=order.ship_to,
        lines=[
            OrderLineOut(isbn=line.book.isbn, quantity=line.quantity, unit_price=line.unit_price)
            for line in order.lines
        ],
    )

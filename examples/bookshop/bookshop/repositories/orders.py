from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import selectinload

from bookshop.errors import NotFoundError
from bookshop.models import Cart, CartItem, Order, OrderLine, order_numbers


class CartRepository:
    def __init__(self, session: AsyncSession) -> None:
        self.session = session

    async def open_cart(self, customer_id: int, *, lock: bool = False) -> Cart | None:
        query = (
            select(Cart)
            .where(Cart.customer_id == customer_id, ~Cart.ordered)
            .options(selectinload(Cart.items).selectinload(CartItem.book))
            .execution_options(populate_existing=True)
        )
        return await self.session.scalar(query.with_for_update() if lock else query)


class OrderRepository:
    def __init__(self, session: AsyncSession) -> None:
        self.session = session

    async def next_number(self) -> str:
        value = await self.session.scalar(order_numbers.next_value().select())
        return f"BS-{value:06d}"

    async def by_number(self, number: str) -> Order:
        """Raises `NotFoundError`."""
        order = await self.session.scalar(
            select(Order)
            .where(Order.number == number)
            .options(selectinload(Order.lines).selectinload(OrderLine.book))
            .options(selectinload(Order.payments))
        )
        if order is None:
            raise NotFoundError(f"No order {number}")
        return order

    async def of_customer(self, customer_id: int) -> Sequence[Order]:
        orders = await self.session.scalars(
            select(Order)
            .where(Order.customer_id == customer_id)
            .options(selectinload(Order.lines).selectinload(OrderLine.book))
            .order_by(Order.id)
        )
        return orders.all()

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import selectinload

from bookshop.errors import NotFoundError
from bookshop.models import Customer


class CustomerRepository:
    def __init__(self, session: AsyncSession) -> None:
        self.session = session

    async def get(self, customer_id: int) -> Customer:
        """Raises `NotFoundError`."""
        customer = await self.session.scalar(
            select(Customer)
            .where(Customer.id == customer_id)
            .options(selectinload(Customer.default_address))
        )
        if customer is None:
            raise NotFoundError(f"No customer {customer_id}")
        return customer

    async def by_email(self, email: str) -> Customer | None:
        return await self.session.scalar(
            select(Customer)
            .where(func.lower(Customer.email) == email.lower())
            .options(selectinload(Customer.default_address))
        )

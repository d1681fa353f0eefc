from __future__ import annotations

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from bookshop.errors import DuplicateError
from bookshop.models import Address, Customer
from bookshop.repositories.customers import CustomerRepository
from bookshop.schemas import AddressIn, CustomerIn


class CustomerService:
    def __init__(self, session: AsyncSession) -> None:
        self.session = session
        self.customers = CustomerRepository(session)

    async def register(self, data: CustomerIn) -> Customer:
        """Raises `DuplicateError` where the e-mail address is known, in any case of letters."""
        customer = Customer(email=data.email, name=data.name)
        self.session.add(customer)
        try:
            await self.session.flush()
            if data.address:
                await self._prefer(customer, data.address)
            await self.session.commit()
        except IntegrityError as error:
            await self.session.rollback()
            raise DuplicateError(f"{data.email} is registered already") from error
        return await self.customers.get(customer.id)

    async def move(self, customer_id: int, data: AddressIn) -> Customer:
        """From now on orders go to the new address; old orders keep theirs."""
        customer = await self.customers.get(customer_id)
        await self._prefer(customer, data)
        await self.session.commit()
        return customer

    async def _prefer(self, customer: Customer, data: AddressIn) -> None:
        address = Address(customer_id=customer.id, **data.model_dump())
        self.session.add(address)
        await self.session.flush()
        customer.default_address = address
        await self.session.flush()

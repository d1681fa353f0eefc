from __future__ import annotations

from decimal import Decimal

from fastapi import APIRouter, status

from bookshop.db import SessionDep
from bookshop.errors import NotFoundError
from bookshop.models import Cart, Customer
from bookshop.repositories.customers import CustomerRepository
from bookshop.repositories.orders import CartRepository
from bookshop.schemas import (
    AddressIn,
    CartItemIn,
    CartLine,
    CartOut,
    CustomerIn,
    CustomerOut,
)
from bookshop.services.checkout import CartService
from bookshop.services.customers import CustomerService

router = APIRouter(prefix="/customers", tags=["customers"])


@router.post("", response_model=CustomerOut, status_code=status.HTTP_201_CREATED)
async def register(data: CustomerIn, session: SessionDep) -> Customer:
    return await CustomerService(session).register(data)


@router.get("/{customer_id}", response_model=CustomerOut)
async def get_customer(customer_id: int, session: SessionDep) -> Customer:
    return await CustomerRepository(session).get(customer_id)


@router.put("/{customer_id}/address", response_model=CustomerOut)
async def move(customer_id: int, data: AddressIn, session: SessionDep) -> Customer:
    return await CustomerService(session).move(customer_id, data)


@router.put("/{customer_id}/cart")
async def put_into_cart(customer_id: int, data: CartItemIn, session: SessionDep) -> CartOut:
    return _cart_out(await CartService(session).put(customer_id, data.isbn, data.quantity))


@router.get("/{customer_id}/cart")
async def get_cart(customer_id: int, session: SessionDep) -> CartOut:
    cart = await CartRepository(session).open_cart(customer_id)
    if cart is None:
        raise NotFoundError(f"Customer {customer_id} has no open cart")
    return _cart_out(cart)


def _cart_out(cart: Cart) -> CartOut:
    lines = [
        CartLine(
            isbn=item.book.isbn,
            title=item.book.title,
            quantity=item.quantity,
            unit_price=item.book.price,
        )
        for item in cart.items
    ]
    total = sum((line.quantity * line.unit_price for line in lines), Decimal(0))
    return CartOut(customer_id=cart.customer_id, lines=lines, total=total)

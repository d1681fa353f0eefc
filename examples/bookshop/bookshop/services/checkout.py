from __future__ import annotations

from decimal import Decimal

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from bookshop.errors import (
    ConflictError,
    EmptyCartError,
    OutOfStockError,
    PaymentDeclinedError,
)
from bookshop.models import Cart, CartItem, Order, OrderLine, OrderStatus, Payment
from bookshop.repositories.catalogue import CatalogueRepository
from bookshop.repositories.customers import CustomerRepository
from bookshop.repositories.orders import CartRepository, OrderRepository
from bookshop.repositories.stock import StockRepository
from bookshop.services.payments import Charge, PaymentGateway
from bookshop.warehouse.messages import OrderPaid, PaidLine
from bookshop.warehouse.pool import FulfilmentPool


class CartService:
    def __init__(self, session: AsyncSession) -> None:
        self.session = session
        self.carts = CartRepository(session)

    async def put(self, customer_id: int, isbn: str, quantity: int) -> Cart:
        """Set the quantity of a book in the customer's open cart, which is made when needed."""
        await CustomerRepository(self.session).get(customer_id)
        book = await CatalogueRepository(self.session).by_isbn(isbn)
        cart = await self.carts.open_cart(customer_id)
        if cart is None:
            cart = Cart(customer_id=customer_id, items=[])
            self.session.add(cart)
        item = next((item for item in cart.items if item.book_id == book.id), None)
        if item is None:
            cart.items.append(CartItem(book_id=book.id, quantity=quantity))
        else:
            item.quantity = quantity
        try:
            await self.session.commit()
        except IntegrityError as error:
            # Another request of this customer opened a cart or added the same book.
            await self.session.rollback()
            raise ConflictError("The cart was changed by another request") from error
        return await self._reload(customer_id)

    async def _reload(self, customer_id: int) -> Cart:
        cart = await self.carts.open_cart(customer_id)
        assert cart is not None
        return cart


class CheckoutService:
    """From a cart to a paid order, in three transactions with the charge between them."""

    def __init__(
        self, session: AsyncSession, gateway: PaymentGateway, fulfilment: FulfilmentPool
    ) -> None:
        self.session = session
        self.gateway = gateway
        self.fulfilment = fulfilment
        self.orders = OrderRepository(session)
        self.stock = StockRepository(session)

    async def place(self, customer_id: int, card: str) -> Order:
        """Raises `EmptyCartError`, `OutOfStockError` or `PaymentDeclinedError`."""
        order = await self._reserve(customer_id)
        # No transaction is open while we talk to the outside world.
        charge = await self.gateway.charge(order.number, order.total, card)
        if not charge.accepted:
            await self._fail(order, charge)
            raise PaymentDeclinedError(order.number, charge.reference)
        message = await self._settle(order, charge)
        self.fulfilment.submit(message)
        return await self.orders.by_number(order.number)

    async def cancel(self, number: str) -> Order:
        """Only an order that was never paid."""
        order = await self.orders.by_number(number)
        if order.status is not OrderStatus.PENDING:
            raise ConflictError(f"{number} is {order.status}, it cannot be cancelled")
        await self._give_back(order, OrderStatus.CANCELLED)
        await self.session.commit()
        return order

    async def _reserve(self, customer_id: int) -> Order:
        customer = await CustomerRepository(self.session).get(customer_id)
        if customer.default_address is None:
            raise ConflictError(f"Customer {customer_id} has no address to ship to")
        cart = await CartRepository(self.session).open_cart(customer_id, lock=True)
        if cart is None or not cart.items:
            await self.session.rollback()
            raise EmptyCartError(f"Customer {customer_id} has nothing in the cart")
        order = Order(
            number=await self.orders.next_number(),
            customer_id=customer_id,
            status=OrderStatus.PENDING,
            total=sum((item.quantity * item.book.price for item in cart.items), Decimal(0)),
            ship_to=customer.default_address.one_line(),
            lines=[
                OrderLine(book=item.book, quantity=item.quantity, unit_price=item.book.price)
                for item in cart.items
            ],
        )
        self.session.add(order)
        try:
            await self._take_from_stock(cart)
        except OutOfStockError:
            await self.session.rollback()
            raise
        cart.ordered = True
        await self.session.commit()
        return order

    async def _take_from_stock(self, cart: Cart) -> None:
        locked = await self.stock.lock(item.book_id for item in cart.items)
        for item in cart.items:
            stock = locked[item.book_id]
            if stock.quantity < item.quantity:
                raise OutOfStockError(item.book.isbn, item.quantity, stock.quantity)
            self.stock.move(stock, -item.quantity, "sold")

    async def _settle(self, order: Order, charge: Charge) -> OrderPaid:
        order = await self.orders.by_number(order.number)
        self._record(order, charge)
        order.status = OrderStatus.PAID
        customer = await CustomerRepository(self.session).get(order.customer_id)
        message = OrderPaid(
            order_number=order.number,
            recipient=customer.name,
            ship_to=order.ship_to,
            lines=tuple(PaidLine(line.book.isbn, line.quantity) for line in order.lines),
        )
        await self.session.commit()
        return message

    async def _fail(self, order: Order, charge: Charge) -> None:
        order = await self.orders.by_number(order.number)
        self._record(order, charge)
        await self._give_back(order, OrderStatus.FAILED)
        await self.session.commit()

    async def _give_back(self, order: Order, status: OrderStatus) -> None:
        locked = await self.stock.lock(line.book_id for line in order.lines)
        for line in order.lines:
            self.stock.move(locked[line.book_id], line.quantity, f"order {status}")
        order.status = status

    def _record(self, order: Order, charge: Charge) -> None:
        self.session.add(
            Payment(
                order_id=order.id,
                amount=order.total,
                accepted=charge.accepted,
                reference=charge.reference,
            )
        )

"""The application as a whole, through Starlette's test client, in tests that are no coroutines."""

from __future__ import annotations

import unittest

import pytest
from shop import ISBN, book, customer
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from starlette.testclient import TestClient

from bookshop.app import app
from bookshop.db import WarehouseSession
from bookshop.warehouse.models import FulfilmentEvent, Shipment


def test_a_visitor_buys_a_book(browser: TestClient) -> None:
    assert browser.get("/books").json() == []
    browser.post("/books", json=book(copies=2))
    customer_id = browser.post("/customers", json=customer()).json()["id"]
    browser.put(f"/customers/{customer_id}/cart", json={"isbn": ISBN, "quantity": 2})

    order = browser.post(f"/customers/{customer_id}/checkout", json={"card": "visa"})

    assert order.status_code == 201
    number = order.json()["number"]
    app.state.fulfilment.drain(10)
    assert browser.get(f"/shipments/{number}").json()["status"] == "picking"
    assert browser.get(f"/books/{ISBN}/stock").json()["quantity"] == 0


def test_a_visitor_is_told_what_is_wrong(browser: TestClient) -> None:
    browser.post("/books", json=book())

    assert browser.post("/books", json=book()).status_code == 409
    assert browser.post("/books", json=book(isbn="x")).status_code == 422
    assert browser.get("/books/9999999999999").status_code == 404
    assert len(browser.get("/books").json()) == 1


@pytest.mark.parametrize("copies", [0, 1, 2])
def test_stock_is_what_was_delivered(browser: TestClient, copies: int) -> None:
    browser.post("/books", json=book(copies=copies))

    assert browser.get(f"/books/{ISBN}/stock").json() == {"isbn": ISBN, "quantity": copies}


def test_the_application_starts_again_after_it_was_stopped(fulfilment_allowed: None) -> None:
    with TestClient(app) as browser:
        browser.post("/books", json=book())

    with TestClient(app) as browser:
        assert browser.get(f"/books/{ISBN}").status_code == 200


def test_the_interface_is_documented(browser: TestClient) -> None:
    paths = browser.get("/openapi.json").json()["paths"]

    assert "/shipments/{order_number}" in paths
    assert "/customers/{customer_id}/checkout" in paths


class WarehouseTableTests(unittest.TestCase):
    """What the warehouse's tables themselves promise."""

    def setUp(self) -> None:
        self.session = WarehouseSession()
        self.addCleanup(self.session.close)
        self.assertEqual(self.session.scalar(select(func.count(Shipment.id))), 0)
        self.session.add(Shipment(order_number="BS-000001", recipient="Ada", ship_to="London"))
        self.session.commit()

    def test_an_order_has_one_shipment(self) -> None:
        self.session.add(Shipment(order_number="BS-000001", recipient="Bob", ship_to="Paris"))
        with self.assertRaises(IntegrityError):
            self.session.commit()
        self.session.rollback()
        self.assertEqual(self.session.scalars(select(Shipment.recipient)).all(), ["Ada"])

    def test_an_event_needs_no_shipment(self) -> None:
        self.session.add(FulfilmentEvent(order_number="BS-000002", kind="failed"))
        self.session.commit()
        self.assertEqual(self.session.scalar(select(func.count(FulfilmentEvent.id))), 1)

    def test_a_removed_shipment_takes_its_tasks_along(self) -> None:
        self.session.delete(self.session.scalars(select(Shipment)).one())
        self.session.commit()
        self.assertEqual(self.session.scalar(select(func.count(Shipment.id))), 0)

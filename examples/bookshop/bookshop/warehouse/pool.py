"""The threads that turn paid orders into shipments."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from bookshop.warehouse.messages import OrderPaid
from bookshop.warehouse.service import FulfilmentError, create_shipment, record

logger = logging.getLogger(__name__)


class FulfilmentPool:
    """Works through messages on threads named `fulfilment_0`, `fulfilment_1`, …

    `submit` may be called from any thread or task. A job that fails leaves a `failed` event and
    its exception in the future; nobody has to look at the future.
    """

    def __init__(self, sessions: sessionmaker[Session], max_workers: int = 2) -> None:
        self._sessions = sessions
        self._executor = ThreadPoolExecutor(max_workers, thread_name_prefix="fulfilment")
        self._lock = threading.Lock()
        self._running: set[Future[int]] = set()

    def submit(self, message: OrderPaid) -> Future[int]:
        """The future holds the shipment's id."""
        future = self._executor.submit(self._fulfil, message)
        with self._lock:
            self._running.add(future)
        future.add_done_callback(self._forget)
        return future

    def drain(self, timeout: float | None = None) -> None:
        """Wait for everything submitted so far. Raises `TimeoutError`."""
        with self._lock:
            running = set(self._running)
        if wait(running, timeout).not_done:
            raise TimeoutError("The warehouse is still working")

    def shutdown(self) -> None:
        """Finish what was submitted, accept nothing more."""
        self._executor.shutdown(wait=True)

    def _fulfil(self, message: OrderPaid) -> int:
        try:
            with self._sessions.begin() as session:
                return create_shipment(session, message).id
        except (FulfilmentError, SQLAlchemyError) as error:
            logger.warning("Order %s cannot be shipped: %s", message.order_number, error)
            with self._sessions.begin() as session:
                record(session, message.order_number, "failed", str(error))
            raise

    def _forget(self, future: Future[int]) -> None:
        with self._lock:
            self._running.discard(future)

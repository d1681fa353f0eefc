"""The shop's view of whoever charges cards."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Charge:
    accepted: bool
    reference: str


class PaymentGateway(Protocol):
    async def charge(self, order_number: str, amount: Decimal, card: str) -> Charge: ...


class CardProcessor:
    """The processor's test environment: cards that begin with `declined` are declined."""

    async def charge(self, order_number: str, amount: Decimal, card: str) -> Charge:
        if card.startswith("declined"):
            return Charge(accepted=False, reference="insufficient funds")
        return Charge(accepted=True, reference=f"{order_number}:{uuid.uuid4().hex[:12]}")

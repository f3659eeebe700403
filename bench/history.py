"""A shop's history, made up: the same seed gives the same events, to the byte."""

from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import accumulate
from random import Random
from typing import Final
from uuid import UUID

from ledger.core.events import (
    CustomerRegistered,
    OrderCancelRequested,
    OrderPlaced,
    PriceChanged,
    ProductListed,
    StockReceived,
    SubmittedPayload,
    WalletCredited,
)
from ledger.eventlog.records import Submitted

START_US: Final = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000
META: Final = b'{"source":"/shop"}'
THINGS: Final = ("Lamp", "Teapot", "Kite", "Compass", "Blanket", "Notebook", "Radio", "Bicycle")
NAMES: Final = ("Ada", "Bo", "Cem", "Dina", "Eli", "Fay", "Gus", "Hana", "Ivo", "Juno")
RECENT: Final = 500


class Shop:
    """Draws what customers do next: mostly they order, and mostly the same few products.

    Shelves are filled before they are quite empty, so that prices rise and fall again, and now and
    then an order finds too little stock or money. `span_us` is the time between two submissions.
    """

    def __init__(self, seed: int, customers: int, products: int, span_us: int) -> None:
        self._chance = Random(seed)
        self._now_us = START_US
        self._span_us = span_us
        self._customers = [self._id() for _ in range(customers)]
        self._products = [self._id() for _ in range(products)]
        self._popular = list(accumulate(1 / rank for rank in range(1, products + 1)))
        self._left = dict.fromkeys(self._products, 0)
        self._placed: deque[UUID] = deque(maxlen=RECENT)

    def events(self) -> Iterator[Submitted]:
        """The history, without end: the catalogue, the customers, and then their orders."""
        for number, product_id in enumerate(self._products):
            yield self._event(product_id, self._listed(number))
        for number, customer_id in enumerate(self._customers):
            yield self._event(customer_id, self._registered(number))
        while True:
            yield self._event(*self._next())

    def _listed(self, number: int) -> ProductListed:
        stock = self._chance.randrange(20, 200)
        self._left[self._products[number]] = stock
        name = f"{THINGS[number % len(THINGS)]} {number // len(THINGS) + 1}"
        return ProductListed(name, "", self._chance.randrange(500, 20_000), stock)

    def _registered(self, number: int) -> CustomerRegistered:
        name = f"{NAMES[number % len(NAMES)]} {number // len(NAMES) + 1}"
        return CustomerRegistered(name, self._chance.randrange(20_000, 500_000))

    def _next(self) -> tuple[UUID, SubmittedPayload]:
        draw = self._chance.random()
        if draw < 0.03 and self._placed:
            return self._chance.choice(self._placed), OrderCancelRequested()
        if draw < 0.08:
            amount_minor = self._chance.randrange(10_000, 200_000)
            return self._chance.choice(self._customers), WalletCredited(amount_minor)
        product_id = self._chance.choices(self._products, cum_weights=self._popular)[0]
        if draw < 0.085:
            return product_id, PriceChanged(self._chance.randrange(500, 20_000))
        if self._left[product_id] < 5 and draw < 0.6:
            return product_id, self._received(product_id)
        return self._id(), self._ordered(product_id)

    def _received(self, product_id: UUID) -> StockReceived:
        quantity = self._chance.randrange(50, 200)
        self._left[product_id] += quantity
        return StockReceived(quantity)

    def _ordered(self, product_id: UUID) -> OrderPlaced:
        quantity = 1 + self._chance.randrange(10) // 7
        self._left[product_id] -= quantity
        return OrderPlaced(self._chance.choice(self._customers), product_id, quantity)

    def _event(self, stream_id: UUID, payload: SubmittedPayload) -> Submitted:
        self._now_us += 1 + self._chance.randrange(2 * self._span_us)
        if isinstance(payload, OrderPlaced):
            self._placed.append(stream_id)
        return Submitted(self._id(), stream_id, self._now_us, payload, META)

    def _id(self) -> UUID:
        """A UUID of version 7: by its time, in milliseconds, and then by chance."""
        bits = self._chance.getrandbits(80)
        number = (self._now_us // 1000) << 80 | bits
        return UUID(int=number & ~(0xF << 76) & ~(0x3 << 62) | 0x7 << 76 | 0x2 << 62)

"""Submissions as clients would send them, random histories of such, and the ids they are about."""

import random
from collections.abc import Iterator
from typing import Literal
from uuid import UUID, uuid4

from msgspec import structs

from ledger.core.events import (
    CustomerErased,
    CustomerRegistered,
    OrderCancelRequested,
    OrderHistory,
    OrderPlaced,
    PriceChanged,
    ProductListed,
    StockReceived,
    SubmittedPayload,
    WalletCredited,
)
from ledger.eventlog.records import Submitted
from ledger.runtime.timestamps import now_us

ANN, BOB = UUID(int=0xA1), UUID(int=0xA2)
PEN, INK = UUID(int=0xB1), UUID(int=0xB2)
ORDER, OTHER_ORDER = UUID(int=0xC1), UUID(int=0xC2)
NOBODY = UUID(int=0xD1)
CUSTOMERS = [UUID(int=0xA1 + n) for n in range(3)]
PRODUCTS = [UUID(int=0xB1 + n) for n in range(3)]
ORDERS = [UUID(int=0xC1 + n) for n in range(12)]

Submission = tuple[UUID, SubmittedPayload]


def customer(balance_minor: int = 500_000, at: UUID = ANN) -> Submission:
    return at, CustomerRegistered("ann", balance_minor)


def erasure(at: UUID = ANN) -> Submission:
    return at, CustomerErased()


def credit(amount_minor: int, at: UUID = ANN) -> Submission:
    return at, WalletCredited(amount_minor)


def product(price_minor: int = 1000, stock: int = 10, at: UUID = PEN) -> Submission:
    return at, ProductListed("pen", "", price_minor, stock)


def receipt(quantity: int, at: UUID = PEN) -> Submission:
    return at, StockReceived(quantity)


def price(price_minor: int, at: UUID = PEN) -> Submission:
    return at, PriceChanged(price_minor)


def order(quantity: int = 1, at: UUID = ORDER, by: UUID = ANN, of: UUID = PEN) -> Submission:
    return at, OrderPlaced(by, of, quantity)


def imported_product(stock: int, initial_stock: int, at: UUID = PEN) -> Submission:
    return at, ProductListed("pen", "", 1000, initial_stock, stock)


def imported_order(
    status: Literal["COMPLETED", "FAILED", "CANCELLED"] = "COMPLETED",
    at: UUID = ORDER,
    by: UUID = ANN,
    of: UUID = PEN,
) -> Submission:
    return at, OrderPlaced(by, of, 2, OrderHistory(status, 1_600_000_000_000_000))


def cancel(at: UUID = ORDER) -> Submission:
    return at, OrderCancelRequested()


def event_of(submission: Submission, event_id: UUID | None = None) -> Submitted:
    """An event that a client submits now."""
    stream_id, payload = submission
    return Submitted(event_id or uuid4(), stream_id, now_us(), payload)


def conditional(submission: Submission, expected_position: int) -> Submission:
    """The submission of a client that saw what the event at this position left."""
    stream_id, payload = submission
    return stream_id, structs.replace(payload, expected_position=expected_position)


def opening(balance_minor: int = 10**9, stock: int = 10_000) -> list[Submitted]:
    """A customer who can pay and a product that is there."""
    return [event_of(customer(balance_minor)), event_of(product(1000, stock))]


def orders(count: int) -> list[Submitted]:
    """Orders of one unit each, by the customer of `opening`."""
    return [event_of(order(at=uuid4())) for _ in range(count)]


def history(seed: int, length: int) -> list[Submitted]:
    """A random history on few ids, so that every refusal and every collision of ids is in it."""
    chance = random.Random(seed)
    submissions = _submissions(chance)
    numbers = random.Random(seed + 1)
    return [
        event_of(next(submissions), UUID(int=numbers.getrandbits(128), version=4))
        for _ in range(length)
    ]


def _submissions(chance: random.Random) -> Iterator[Submission]:
    placed = list(ORDERS)
    while True:
        at = chance.choice([*ORDERS, *CUSTOMERS, *PRODUCTS])
        by, of = chance.choice([*CUSTOMERS, at]), chance.choice([*PRODUCTS, at])
        new = UUID(int=chance.getrandbits(128), version=4)
        entries = [
            customer(chance.choice([0, 5_000, 50_000]), by),
            credit(chance.randint(1, 9_999), by),
            erasure(by),
            product(chance.randint(1, 999), chance.randint(0, 20), of),
            imported_product(chance.randint(0, 9), chance.randint(0, 9), of),
            receipt(chance.randint(1, 9), of),
            price(chance.randint(1, 999), of),
            imported_order(chance.choice(["COMPLETED", "FAILED", "CANCELLED"]), new, by, of),
        ]
        orders = [order(chance.randint(1, 4), each, by, of) for each in (new, new, new, at)]
        cancels = [cancel(each) for each in (*placed[-8:], at)]
        chosen = chance.choice([*entries, *orders, chance.choice(cancels), chance.choice(cancels)])
        if chosen[0] == new:
            placed.append(new)
        yield chosen

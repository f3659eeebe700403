"""The journal view: double entry of all money and units that events move; lines never change."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final, Literal, assert_never
from uuid import UUID

from msgspec import Struct
from sqlalchemy import BigInteger, Column, Index, Table
from sqlalchemy.dialects.mysql import TINYINT

from ledger.core.events import (
    AnyPayload,
    CustomerErased,
    CustomerRegistered,
    OrderCancelled,
    OrderCancelRefused,
    OrderCancelRequested,
    OrderCompleted,
    OrderFailed,
    OrderPlaced,
    PriceChanged,
    ProductListed,
    Recorded,
    StockReceived,
    SubmissionRefused,
    WalletCredited,
)
from ledger.runtime.timestamps import from_us
from projections.views.projection import (
    METADATA,
    LineProjection,
    enum_column,
    id_column,
    position_column,
    timestamp_column,
)

# Analysts query by these words, so they never change.
Account = Literal["wallet", "deposits", "revenue", "refunds", "stock", "received", "sold"]
# Money in minor units, or units of a product.
Unit = Literal["minor", "units"]
UNIT_OF: Final[dict[Account, Unit]] = {
    "wallet": "minor",
    "deposits": "minor",
    "revenue": "minor",
    "refunds": "minor",
    "stock": "units",
    "received": "units",
    "sold": "units",
}


class JournalLine(Struct, frozen=True, gc=False):
    """One side of an amount that moved: its debit or its credit is 0."""

    position: int
    line: int
    recorded_at: datetime
    order_id: UUID | None
    account: Account
    account_id: UUID
    unit: Unit
    debit: int
    credit: int


TABLE: Final = Table(
    "journal",
    METADATA,
    position_column("position", "position of the event that moved it", primary_key=True),
    Column(
        "line",
        TINYINT(unsigned=True),
        primary_key=True,
        comment="number of the line within the event, from 1",
    ),
    timestamp_column("recorded_at", "recorded time of the event"),
    id_column("order_id", "the order that it belongs to, if any", nullable=True),
    enum_column("account", "wallet, deposits, revenue, refunds, stock, received or sold"),
    id_column("account_id", "whose account: a customer's or a product's"),
    enum_column("unit", "minor (money in minor units) or units (of the product)"),
    Column("debit", BigInteger, nullable=False, comment="amount on the left side, or 0"),
    Column("credit", BigInteger, nullable=False, comment="amount on the right side, or 0"),
    Index("journal_account", "account_id"),
    Index("journal_recorded", "account", "recorded_at"),
)

# An amount, the account and id that are debited with it, and those that are credited.
Side = tuple[Account, UUID]
Move = tuple[int, Side, Side]


def lines(event: Recorded) -> Sequence[JournalLine]:
    """A debit and a credit of each amount that an event moves; no line of an amount of 0."""
    moves = _moves(event.stream_id, event.payload)
    if not moves:
        return ()
    order_id = None
    if isinstance(event.payload, OrderCompleted | OrderCancelled):
        order_id = event.stream_id
    recorded_at = from_us(event.recorded_at_us)
    entries: list[JournalLine] = []
    for amount, debit, credit in moves:
        if amount:
            number, unit = len(entries) + 1, UNIT_OF[debit[0]]
            entries += (
                JournalLine(event.position, number, recorded_at, order_id, *debit, unit, amount, 0),
                JournalLine(
                    event.position, number + 1, recorded_at, order_id, *credit, unit, 0, amount
                ),
            )
    return entries


def _moves(stream_id: UUID, event: AnyPayload) -> tuple[Move, ...]:
    match event:
        # In order of how often they come: every event that is projected passes here.
        case OrderCompleted(customer_id=customer, product_id=product, quantity=quantity):
            return (
                (event.total_minor, ("wallet", customer), ("revenue", product)),
                (quantity, ("sold", product), ("stock", product)),
            )
        case (
            OrderPlaced()
            | CustomerErased()
            | PriceChanged()
            | OrderCancelRequested()
            | OrderFailed()
            | OrderCancelRefused()
            | SubmissionRefused()
        ):
            return ()
        case OrderCancelled(customer_id=customer, product_id=product, quantity=quantity):
            return (
                (event.refund_minor, ("refunds", product), ("wallet", customer)),
                (quantity, ("stock", product), ("sold", product)),
            )
        case CustomerRegistered(opening_balance_minor=amount) | WalletCredited(amount_minor=amount):
            return ((amount, ("deposits", stream_id), ("wallet", stream_id)),)
        case ProductListed(opening_stock=units) | StockReceived(quantity=units):
            return ((units, ("stock", stream_id), ("received", stream_id)),)
    assert_never(event)


JOURNAL: Final = LineProjection("journal", 1, TABLE, JournalLine, lines)

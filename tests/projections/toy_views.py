"""Two views as somebody might add them: one file with them, and a registry with their lines."""

from typing import Final
from uuid import UUID

from msgspec import Struct, structs
from sqlalchemy import Column, MetaData, String, Table

from ledger.core.events import (
    MAX_USERNAME,
    CustomerErased,
    CustomerRegistered,
    OrderCompleted,
    ProductListed,
    Recorded,
    StockReceived,
)
from projections.views.projection import (
    CUSTOMER,
    STREAM,
    KeyedProjection,
    LineProjection,
    amount_column,
    id_column,
    position_column,
    require_row,
)
from projections.views.registry import PROJECTIONS


class SpendingRow(Struct, frozen=True, gc=False):
    """A customer, and what was ever spent."""

    customer_id: UUID
    username: str
    spent_minor: int
    position: int


SPENDING_TABLE: Final = Table(
    "spending",
    MetaData(),
    id_column("customer_id", "the customer", primary_key=True),
    Column("username", String(MAX_USERNAME), nullable=False, comment="name, or erased"),
    amount_column("spent_minor", "the sum of all completed orders"),
    position_column("position", "position of the event that last changed the row"),
)


def apply(row: SpendingRow | None, event: Recorded) -> SpendingRow:
    """The customer's row after an event."""
    payload = event.payload
    if isinstance(payload, CustomerRegistered):
        return SpendingRow(event.stream_id, payload.username or "erased", 0, event.position)
    row = require_row(row, event)
    if isinstance(payload, OrderCompleted):
        row = structs.replace(row, spent_minor=row.spent_minor + payload.total_minor)
    else:
        row = structs.replace(row, username="erased")
    return structs.replace(row, position=event.position)


SPENDING: Final = KeyedProjection(
    "spending",
    1,
    SPENDING_TABLE,
    SpendingRow,
    CustomerRegistered,
    {CustomerRegistered: STREAM, CustomerErased: STREAM, OrderCompleted: CUSTOMER},
    apply,
    personal="username",
    announces_keys=True,
)


class ReceiptLine(Struct, frozen=True, gc=False):
    """Units of a product that came in."""

    position: int
    product_id: UUID
    quantity: int


RECEIPTS_TABLE: Final = Table(
    "receipts",
    MetaData(),
    position_column("position", "position of the event", primary_key=True),
    id_column("product_id", "the product"),
    amount_column("quantity", "units that came in"),
)


def lines(event: Recorded) -> list[ReceiptLine]:
    """The line of a receipt, which a listing is too."""
    match event.payload:
        case ProductListed(opening_stock=quantity) | StockReceived(quantity=quantity):
            return [ReceiptLine(event.position, event.stream_id, quantity)]
        case _:
            return []


RECEIPTS: Final = LineProjection("receipts", 1, RECEIPTS_TABLE, ReceiptLine, lines)

REGISTRY: Final = (*PROJECTIONS, SPENDING, RECEIPTS)

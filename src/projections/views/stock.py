"""The stock view: every product with its stock and its price."""

from datetime import datetime
from typing import Final
from uuid import UUID

from msgspec import Struct
from sqlalchemy import BigInteger, Column, String, Table

from ledger.core.events import (
    MAX_DESCRIPTION,
    MAX_NAME,
    OrderCancelled,
    OrderCompleted,
    PriceChanged,
    ProductListed,
    Recorded,
    StockReceived,
)
from ledger.core.pricing import unit_price_minor
from ledger.core.rules import IN_FORCE
from ledger.runtime.timestamps import from_us
from projections.views.projection import (
    METADATA,
    PRODUCT,
    STREAM,
    KeyedBy,
    KeyedProjection,
    amount_column,
    id_column,
    moment_column,
    position_column,
    present,
)


class StockRow(Struct, frozen=True, gc=False):
    """A product as it is for sale; `current_price_minor` is that of each unit of the next sale."""

    product_id: UUID
    name: str
    description: str
    base_price_minor: int
    current_price_minor: int
    stock: int
    initial_stock: int
    updated_at: datetime
    position: int


TABLE: Final = Table(
    "stock",
    METADATA,
    id_column("product_id", "the product", primary_key=True),
    Column("name", String(MAX_NAME), nullable=False, comment="name of the product"),
    Column("description", String(MAX_DESCRIPTION), nullable=False, comment="what it is"),
    amount_column("base_price_minor", "price of a unit while stock is plenty, in minor units"),
    amount_column("current_price_minor", "price of each unit of the next sale, in minor units"),
    Column("stock", BigInteger, nullable=False, comment="units left"),
    Column("initial_stock", BigInteger, nullable=False, comment="units after the last receipt"),
    moment_column("updated_at", "recorded time of the last change"),
    position_column("position", "position of the event that last changed the row"),
)


KEYED_BY: Final[KeyedBy] = {
    ProductListed: STREAM,
    StockReceived: STREAM,
    PriceChanged: STREAM,
    OrderCompleted: PRODUCT,
    OrderCancelled: PRODUCT,
}
"""The product whose row an event changes."""


def apply(row: StockRow | None, event: Recorded) -> StockRow:
    """The product's row after an event."""
    if isinstance(event.payload, ProductListed):
        listed = event.payload
        stock = initial_stock = listed.initial_stock
        name, description, base_price_minor = (
            listed.name,
            listed.description,
            listed.base_price_minor,
        )
    else:
        row = present(row, event)
        name, description = row.name, row.description
        base_price_minor, stock, initial_stock = _supply(row, event)
    return StockRow(
        event.stream_id if row is None else row.product_id,
        name,
        description,
        base_price_minor,
        unit_price_minor(base_price_minor, stock, initial_stock),
        stock,
        initial_stock,
        from_us(event.recorded_at_us),
        event.position,
    )


def _supply(row: StockRow, event: Recorded) -> tuple[int, int, int]:
    base_price_minor, stock, initial_stock = row.base_price_minor, row.stock, row.initial_stock
    match event.payload:
        case StockReceived(quantity=quantity):
            stock = initial_stock = stock + quantity
        case PriceChanged():
            base_price_minor = event.payload.base_price_minor
        case OrderCompleted(quantity=quantity):
            stock -= quantity
        case OrderCancelled(quantity=quantity):
            stock += quantity
        case _:
            pass
    return base_price_minor, stock, initial_stock


VERSION: Final = IN_FORCE.version
"""Rows hold the price by the rules in force: with new rules the view must be made anew."""

STOCK: Final = KeyedProjection("stock", VERSION, TABLE, StockRow, ProductListed, KEYED_BY, apply)

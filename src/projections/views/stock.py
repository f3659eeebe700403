"""The stock view: every product with its stock and its price."""

from datetime import datetime
from typing import Final, assert_never
from uuid import UUID

from msgspec import Struct, structs
from sqlalchemy import BigInteger, Column, Index, String, Table

from ledger.core.decider import ProductState
from ledger.core.events import (
    MAX_DESCRIPTION,
    MAX_NAME,
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
from ledger.core.pricing import CURRENT_RULES, Rules, unit_price_minor
from ledger.runtime.timestamps import from_us
from projections.views.projection import (
    METADATA,
    PRODUCT,
    STREAM,
    KeyedBy,
    KeyedProjection,
    amount_column,
    id_column,
    position_column,
    require_row,
    timestamp_column,
)


class StockRow(Struct, frozen=True, gc=False):
    """A product for sale; `current_price_minor` is the price of each unit of the next sale."""

    product_id: UUID
    name: str
    description: str
    base_price_minor: int
    current_price_minor: int
    stock: int
    initial_stock: int
    updated_at: datetime
    listed_position: int
    position: int


class ProductAsOf(Struct, frozen=True, gc=False):
    """A product at a position; `current_price_minor` is by the rules in force there."""

    product_id: UUID
    name: str
    description: str
    base_price_minor: int
    current_price_minor: int
    stock: int
    initial_stock: int
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
    timestamp_column("updated_at", "recorded time of the last change"),
    position_column("listed_position", "position of its product.listed; never changes"),
    position_column("position", "position of the event that last changed the row"),
    # No unique one: with a second unique key, REPLACE would delete a row and insert it anew.
    Index("stock_listed", "listed_position"),
)

# Where an event has the product whose row it changes.
KEYED_BY: Final[KeyedBy] = {
    ProductListed: STREAM,
    StockReceived: STREAM,
    PriceChanged: STREAM,
    OrderCompleted: PRODUCT,
    OrderCancelled: PRODUCT,
}


def apply(row: StockRow | None, event: Recorded) -> StockRow:
    """The product's row after an event."""
    payload = event.payload
    if isinstance(payload, ProductListed):
        key, name, description = event.stream_id, payload.name, payload.description
        base_price_minor = payload.base_price_minor
        stock, initial_stock = payload.opening_stock, payload.initial_stock
        listed_position = event.position
    else:
        row = require_row(row, event)
        key, name, description = row.product_id, row.name, row.description
        base_price_minor, stock, initial_stock = row.base_price_minor, row.stock, row.initial_stock
        listed_position = row.listed_position
        match payload:
            case StockReceived(quantity=quantity):
                stock = initial_stock = stock + quantity
            case PriceChanged():
                base_price_minor = payload.base_price_minor
            case OrderCompleted(quantity=quantity):
                stock -= quantity
            case OrderCancelled(quantity=quantity):
                stock += quantity
            case (
                CustomerRegistered()
                | CustomerErased()
                | WalletCredited()
                | OrderPlaced()
                | OrderCancelRequested()
                | OrderFailed()
                | OrderCancelRefused()
                | SubmissionRefused()
            ):
                pass  # KEYED_BY has no row of theirs
            case _:
                assert_never(payload)
    return StockRow(
        key,
        name,
        description,
        base_price_minor,
        unit_price_minor(base_price_minor, stock, initial_stock),
        stock,
        initial_stock,
        from_us(event.recorded_at_us),
        listed_position,
        event.position,
    )


def priced_by(row: StockRow, rules: Rules) -> StockRow:
    """The row with the price of the next sale by other rules."""
    price_minor = unit_price_minor(row.base_price_minor, row.stock, row.initial_stock, rules)
    return structs.replace(row, current_price_minor=price_minor)


# Rows hold the price by the rules in force: with new rules the view must be rebuilt. The number
# added is that of other changes of this code.
VERSION: Final = CURRENT_RULES.version + 1

STOCK: Final = KeyedProjection(
    "stock",
    VERSION,
    TABLE,
    StockRow,
    ProductListed,
    KEYED_BY,
    apply,
    # The API's product cache drops what changed.
    announces_keys=True,
    as_of_row=ProductAsOf,
    snapshot_entry=ProductState,
    by_rules=priced_by,
)

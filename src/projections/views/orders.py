"""The orders view: every order with its status, and its price or the reason it failed."""

from datetime import datetime
from typing import Final, assert_never
from uuid import UUID

from msgspec import UNSET, Struct, structs
from sqlalchemy import Column, Index, Integer, Table

from ledger.core.decider import Status
from ledger.core.events import (
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
    STREAM,
    KeyedBy,
    KeyedProjection,
    amount_column,
    enum_column,
    id_column,
    position_column,
    require_row,
    timestamp_column,
)


class OrderRow(Struct, frozen=True, gc=False):
    """An order; the prices are those it was completed at, and stay when it is cancelled."""

    order_id: UUID
    customer_id: UUID
    product_id: UUID
    quantity: int
    status: str
    unit_price_minor: int | None
    total_minor: int | None
    failure_reason: str | None
    created_at: datetime
    updated_at: datetime
    placed_position: int
    position: int


TABLE: Final = Table(
    "orders",
    METADATA,
    id_column("order_id", "the order", primary_key=True),
    id_column("customer_id", "who placed it"),
    id_column("product_id", "what was ordered"),
    Column("quantity", Integer, nullable=False, comment="units asked for"),
    enum_column("status", "PENDING, COMPLETED, FAILED or CANCELLED"),
    amount_column("unit_price_minor", "price of each unit, once completed", nullable=True),
    amount_column("total_minor", "what was paid, once completed", nullable=True),
    enum_column("failure_reason", "why it failed", nullable=True),
    timestamp_column("created_at", "when it was placed, as the client's API told"),
    timestamp_column("updated_at", "recorded time of the last change"),
    position_column("placed_position", "position of its order.placed; never changes"),
    position_column("position", "position of the event that last changed the row"),
    Index("orders_placed", "placed_position", unique=True),
    # One of these serves each combination of filters: see `Views.orders`.
    Index("orders_customer", "customer_id", "status", "placed_position"),
    Index("orders_product", "product_id", "status", "placed_position"),
    Index("orders_customer_product", "customer_id", "product_id", "status", "placed_position"),
    Index("orders_status", "status", "placed_position"),
    Index("orders_updated", "status", "updated_at"),
)

# Where an event has the order whose row it changes.
KEYED_BY: Final[KeyedBy] = {
    OrderPlaced: STREAM,
    OrderCompleted: STREAM,
    OrderFailed: STREAM,
    OrderCancelled: STREAM,
}


def apply(row: OrderRow | None, event: Recorded) -> OrderRow:
    """The order's row after an event."""
    payload = event.payload
    if isinstance(payload, OrderPlaced):
        status, updated_at_us = Status.PENDING.value, event.recorded_at_us
        if payload.history is not UNSET:
            status, updated_at_us = payload.history.status, payload.history.updated_at_us
        return OrderRow(
            order_id=event.stream_id,
            customer_id=payload.customer_id,
            product_id=payload.product_id,
            quantity=payload.quantity,
            status=status,
            unit_price_minor=None,
            total_minor=None,
            failure_reason=None,
            created_at=from_us(event.occurred_at_us),
            updated_at=from_us(updated_at_us),
            placed_position=event.position,
            position=event.position,
        )
    row = require_row(row, event)
    changes: dict[str, object] = {}
    match payload:
        case OrderCompleted(unit_price_minor=unit_price_minor, total_minor=total_minor):
            changes = {
                "status": Status.COMPLETED.value,
                "unit_price_minor": unit_price_minor,
                "total_minor": total_minor,
            }
        case OrderFailed(reason=reason):
            changes = {"status": Status.FAILED.value, "failure_reason": reason.value}
        case OrderCancelled():
            changes = {"status": Status.CANCELLED.value}
        case (
            CustomerRegistered()
            | CustomerErased()
            | WalletCredited()
            | ProductListed()
            | StockReceived()
            | PriceChanged()
            | OrderCancelRequested()
            | OrderCancelRefused()
            | SubmissionRefused()
        ):
            pass  # KEYED_BY has no row of theirs
        case _:
            assert_never(payload)
    updated_at = from_us(event.recorded_at_us)
    return structs.replace(row, updated_at=updated_at, position=event.position, **changes)


ORDERS: Final = KeyedProjection("orders", 1, TABLE, OrderRow, OrderPlaced, KEYED_BY, apply)

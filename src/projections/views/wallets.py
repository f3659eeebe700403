"""The wallets view: every customer with the balance of the wallet."""

from datetime import datetime
from typing import Final
from uuid import UUID

from msgspec import Struct
from sqlalchemy import Column, String, Table

from ledger.core.decider import CustomerState
from ledger.core.events import (
    MAX_USERNAME,
    CustomerErased,
    CustomerRegistered,
    OrderCancelled,
    OrderCompleted,
    Recorded,
    WalletCredited,
)
from ledger.core.invariants import money_moved_minor
from ledger.runtime.timestamps import from_us
from projections.views.projection import (
    CUSTOMER,
    ERASED,
    METADATA,
    STREAM,
    KeyedBy,
    KeyedProjection,
    amount_column,
    id_column,
    position_column,
    require_row,
    timestamp_column,
)


class WalletRow(Struct, frozen=True, gc=False):
    """A customer and the balance of the wallet."""

    customer_id: UUID
    username: str
    balance_minor: int
    created_at: datetime
    updated_at: datetime
    position: int


class WalletAsOf(Struct, frozen=True, gc=False):
    """A customer and the balance of the wallet at a position."""

    customer_id: UUID
    username: str
    balance_minor: int
    created_at: datetime
    position: int


TABLE: Final = Table(
    "wallets",
    METADATA,
    id_column("customer_id", "the customer", primary_key=True),
    Column(
        "username", String(MAX_USERNAME), nullable=False, comment="name of the customer, or erased"
    ),
    amount_column("balance_minor", "what the wallet holds, in minor units"),
    timestamp_column("created_at", "when the customer was registered, as the client's API told"),
    timestamp_column("updated_at", "recorded time of the last change"),
    position_column("position", "position of the event that last changed the row"),
)

# Where an event has the customer whose row it changes.
KEYED_BY: Final[KeyedBy] = {
    CustomerRegistered: STREAM,
    CustomerErased: STREAM,
    WalletCredited: STREAM,
    OrderCompleted: CUSTOMER,
    OrderCancelled: CUSTOMER,
}


def apply(row: WalletRow | None, event: Recorded) -> WalletRow:
    """The customer's row after an event."""
    recorded_at = from_us(event.recorded_at_us)
    if isinstance(event.payload, CustomerRegistered):
        return WalletRow(
            event.stream_id,
            event.payload.username or ERASED,
            event.payload.opening_balance_minor,
            from_us(event.occurred_at_us),
            recorded_at,
            event.position,
        )
    row = require_row(row, event)
    return WalletRow(
        row.customer_id,
        ERASED if isinstance(event.payload, CustomerErased) else row.username,
        row.balance_minor + money_moved_minor(event.payload),
        row.created_at,
        recorded_at,
        event.position,
    )


WALLETS: Final = KeyedProjection(
    "wallets",
    1,
    TABLE,
    WalletRow,
    CustomerRegistered,
    KEYED_BY,
    apply,
    personal="username",
    as_of_row=WalletAsOf,
    snapshot_entry=CustomerState,
)

"""Every event of the ledger: what clients submit, and what the fold decides.

The limits stand on the fields, so that bytes which break one can't become an event.
"""

from enum import StrEnum
from typing import Annotated, Final, Literal
from uuid import UUID

from msgspec import UNSET, Meta, Struct, UnsetType

MAX_AMOUNT_MINOR: Final = 10**12
MAX_BALANCE_MINOR: Final = 10**15
MAX_QUANTITY: Final = 10**6
MAX_STOCK: Final = 10**9
MAX_USERNAME: Final = 100
MAX_NAME: Final = 200
MAX_DESCRIPTION: Final = 2000
# The end of the year 9999, in µs since the Unix epoch: no later time can be shown.
MAX_TIME_US: Final = 253_402_300_799_999_999
DEFAULT_BALANCE_MINOR: Final = 500_000
# Stands for a name that can't be decrypted: shorter than any that a client can send.
NO_NAME: Final = ""

Amount = Annotated[int, Meta(ge=1, le=MAX_AMOUNT_MINOR)]
Units = Annotated[int, Meta(ge=1, le=MAX_STOCK)]
Position = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class Reason(StrEnum):
    """Why the fold said no. Clients see these words, so they never change."""

    UNKNOWN_PRODUCT = "UNKNOWN_PRODUCT"
    UNKNOWN_CUSTOMER = "UNKNOWN_CUSTOMER"
    UNKNOWN_ORDER = "UNKNOWN_ORDER"
    INSUFFICIENT_STOCK = "INSUFFICIENT_STOCK"
    INSUFFICIENT_BALANCE = "INSUFFICIENT_BALANCE"
    DUPLICATE_CUSTOMER = "DUPLICATE_CUSTOMER"
    DUPLICATE_PRODUCT = "DUPLICATE_PRODUCT"
    DUPLICATE_ORDER = "DUPLICATE_ORDER"
    BALANCE_LIMIT = "BALANCE_LIMIT"
    STOCK_LIMIT = "STOCK_LIMIT"
    NOT_COMPLETED = "NOT_COMPLETED"
    ALREADY_CANCELLED = "ALREADY_CANCELLED"
    BATCH_FAILED = "BATCH_FAILED"
    PRECONDITION_FAILED = "PRECONDITION_FAILED"
    IMPORTED = "IMPORTED"


class Payload(Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """The `data` of an event."""


class Conditional(Payload, frozen=True, kw_only=True, omit_defaults=True):
    """An event that may have a precondition, which the fold checks as it decides.

    `expected_position` is that of the event which last changed the customer, product or order, as
    the client saw it: if another one has changed it since, the submission is refused.
    """

    expected_position: Position | None = None


class CustomerRegistered(Payload, frozen=True):
    """A client asked for a customer with a wallet."""

    username: Annotated[str, Meta(min_length=1, max_length=MAX_USERNAME)]
    opening_balance_minor: Annotated[int, Meta(ge=0, le=MAX_AMOUNT_MINOR)] = DEFAULT_BALANCE_MINOR


class CustomerErased(Payload, frozen=True):
    """The customer's name is to be forgotten; wallet and orders stay as they are."""


class WalletCredited(Conditional, frozen=True):
    """A client paid money in."""

    amount_minor: Amount


class ProductListed(Payload, frozen=True):
    """A client put a product on sale.

    It begins with `initial_stock` units, or with `stock` if another system has sold some of them.
    """

    name: Annotated[str, Meta(min_length=1, max_length=MAX_NAME)]
    description: Annotated[str, Meta(max_length=MAX_DESCRIPTION)]
    base_price_minor: Amount
    initial_stock: Annotated[int, Meta(ge=0, le=MAX_STOCK)]
    stock: Annotated[int, Meta(ge=0, le=MAX_STOCK)] | UnsetType = UNSET

    @property
    def opening_stock(self) -> int:
        """The units that there are to begin with."""
        return self.initial_stock if self.stock is UNSET else self.stock


class StockReceived(Conditional, frozen=True):
    """Units came in; the sum becomes the new `initial_stock` of the pricing rule."""

    quantity: Units


class PriceChanged(Conditional, frozen=True):
    """A client set a new base price."""

    base_price_minor: Amount


class OrderHistory(Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """What another system made of an order, and when it did so, in µs since the Unix epoch."""

    status: Literal["COMPLETED", "FAILED", "CANCELLED"]
    updated_at_us: Annotated[int, Meta(ge=0, le=MAX_TIME_US)]


class OrderPlaced(Payload, frozen=True):
    """A client asked for `quantity` units, all or nothing.

    With `history` another system has decided it: it is recorded as it was, and moves nothing here.
    """

    customer_id: UUID
    product_id: UUID
    quantity: Annotated[int, Meta(ge=1, le=MAX_QUANTITY)] = 1
    history: OrderHistory | UnsetType = UNSET


class OrderCancelRequested(Conditional, frozen=True):
    """A client asked to undo an order."""


class OrderCompleted(Payload, frozen=True):
    """The order was paid from the wallet and taken from stock."""

    customer_id: UUID
    product_id: UUID
    quantity: int
    unit_price_minor: int
    total_minor: int


class OrderFailed(Payload, frozen=True):
    """The order was refused; nothing moved."""

    reason: Reason


class OrderCancelled(Payload, frozen=True):
    """The order was undone: exactly its total went back to the wallet, its units to stock."""

    customer_id: UUID
    product_id: UUID
    quantity: int
    refund_minor: int


class OrderCancelRefused(Payload, frozen=True):
    """The order stands as it was."""

    reason: Reason


class SubmissionRefused(Payload, frozen=True):
    """The submission right before it has no effect at all."""

    reason: Reason


SubmittedPayload = (
    CustomerRegistered
    | CustomerErased
    | WalletCredited
    | ProductListed
    | StockReceived
    | PriceChanged
    | OrderPlaced
    | OrderCancelRequested
)
DecidedPayload = (
    OrderCompleted | OrderFailed | OrderCancelled | OrderCancelRefused | SubmissionRefused
)
AnyPayload = SubmittedPayload | DecidedPayload

SUBMITTED: Final[dict[str, type[SubmittedPayload]]] = {
    "customer.registered": CustomerRegistered,
    "customer.erased": CustomerErased,
    "wallet.credited": WalletCredited,
    "product.listed": ProductListed,
    "stock.received": StockReceived,
    "price.changed": PriceChanged,
    "order.placed": OrderPlaced,
    "order.cancel-requested": OrderCancelRequested,
}
DECIDED: Final[dict[str, type[DecidedPayload]]] = {
    "order.completed": OrderCompleted,
    "order.failed": OrderFailed,
    "order.cancelled": OrderCancelled,
    "order.cancel-refused": OrderCancelRefused,
    "submission.refused": SubmissionRefused,
}
TYPE_OF: Final[dict[type[AnyPayload], str]] = {
    payload: name for name, payload in (*SUBMITTED.items(), *DECIDED.items())
}


class Recorded(Struct, frozen=True, gc=False):
    """An event as state and views are made of it; times are µs since the Unix epoch, UTC."""

    position: int
    stream_id: UUID
    occurred_at_us: int
    recorded_at_us: int
    payload: AnyPayload

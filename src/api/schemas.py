"""The shapes of requests (pydantic) and of answers (msgspec); limits are those of the events."""

from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal, Inexact, InvalidOperation
from functools import partial
from typing import Annotated, Final
from uuid import UUID

from msgspec import Struct
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from ledger.core.events import (
    MAX_AMOUNT_MINOR,
    MAX_DESCRIPTION,
    MAX_NAME,
    MAX_QUANTITY,
    MAX_STOCK,
    MAX_USERNAME,
    OrderPlaced,
)
from ledger.core.money import to_minor
from projections.orders import OrderRow
from projections.stock import StockRow
from projections.wallets import WalletRow

MAX_BATCH: Final = 1_000
_CENT = Decimal("0.01")
_EXACT = Context(prec=28, traps=[Inexact, InvalidOperation])
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def money(minor: int) -> Decimal:
    """Minor units as the number with two decimals that clients see."""
    return Decimal(minor).scaleb(-2)


def moment(time: datetime) -> str:
    """A time in UTC as RFC 3339, always with microseconds."""
    return f"{time.isoformat(timespec='microseconds')[:26]}Z"


def moment_us(time_us: int) -> str:
    """As `moment`, for µs since the Unix epoch."""
    return moment(_EPOCH + timedelta(microseconds=time_us))


def _amount(low_minor: int, value: object) -> int:
    """Minor units of a JSON number, exactly; the body was parsed with `Decimal` for floats."""
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise PydanticCustomError("money_type", "not a number")
    try:
        minor = to_minor(_EXACT.quantize(Decimal(value), _CENT))
    except Inexact:
        raise PydanticCustomError("money_decimals", "not exact", {"decimals": 2}) from None
    except InvalidOperation:
        minor = MAX_AMOUNT_MINOR + 1 if value > 0 else low_minor - 1
    if minor < low_minor:
        limit = str(money(low_minor))
        raise PydanticCustomError("greater_than_equal", "too small", {"ge": limit})
    if minor > MAX_AMOUNT_MINOR:
        limit = str(money(MAX_AMOUNT_MINOR))
        raise PydanticCustomError("less_than_equal", "too large", {"le": limit})
    return minor


_NUMBER = {
    "type": "number",
    "minimum": 0.01,
    "maximum": MAX_AMOUNT_MINOR // 100,
    "multipleOf": 0.01,
}
Amount = Annotated[int, PlainValidator(partial(_amount, 1)), WithJsonSchema(_NUMBER)]
"""An amount of money: two decimals in JSON, minor units in the model."""


class Body(BaseModel):
    """A request body: exactly these fields, exactly these types."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Nothing(Body):
    """The body of a request that says all in its path."""


class RegisterCustomer(Body):
    """POST /customers."""

    username: str = Field(strict=True, min_length=1, max_length=MAX_USERNAME)


class Deposit(Body):
    """POST /customers/{customer_id}/deposits."""

    amount: Amount


class ListProduct(Body):
    """POST /products."""

    name: str = Field(strict=True, min_length=1, max_length=MAX_NAME)
    description: str = Field("", strict=True, max_length=MAX_DESCRIPTION)
    base_price: Amount
    stock: int = Field(strict=True, ge=0, le=MAX_STOCK)


class ReceiveStock(Body):
    """POST /products/{product_id}/receipts."""

    quantity: int = Field(strict=True, ge=1, le=MAX_STOCK)


class ChangePrice(Body):
    """PATCH /products/{product_id}."""

    base_price: Amount


class PlaceOrder(Body):
    """POST /orders."""

    customer_id: UUID
    product_id: UUID
    quantity: int = Field(1, strict=True, ge=1, le=MAX_QUANTITY)


class PlaceOrders(Body):
    """POST /orders/batch."""

    orders: list[PlaceOrder] = Field(strict=True, min_length=1, max_length=MAX_BATCH)
    atomic: bool = Field(False, strict=True)


class Customer(Struct, frozen=True):
    """A customer with the wallet."""

    customer_id: UUID
    username: str
    wallet_balance: Decimal
    position: int


class Product(Struct, frozen=True):
    """A product with what a unit costs now."""

    product_id: UUID
    name: str
    description: str
    base_price: Decimal
    current_price: Decimal
    stock: int
    position: int


class Order(Struct, frozen=True):
    """An order as the view shows it; `price_paid` is the total, none until it is completed."""

    order_id: UUID
    product_id: UUID
    customer_id: UUID
    quantity: int
    status: str
    created_at: str
    updated_at: str
    unit_price: Decimal | None = None
    price_paid: Decimal | None = None
    failure_reason: str | None = None
    position: int | None = None


class PlacedOrders(Struct, frozen=True):
    """The orders of a batch, in its order; those that are not decided yet are PENDING."""

    orders: list[Order]


class AcceptedOrder(Struct, frozen=True):
    """An order that is in the inbox, and will be decided."""

    order_id: UUID
    product_id: UUID
    customer_id: UUID
    quantity: int
    status: str
    created_at: str
    updated_at: str


class AcceptedCancel(Struct, frozen=True):
    """A cancel that is in the inbox, and will be decided."""

    order_id: UUID
    message: str


class AcceptedCustomer(Struct, frozen=True):
    """Something about a customer that is in the inbox, and will be decided."""

    customer_id: UUID
    message: str


class AcceptedProduct(Struct, frozen=True):
    """Something about a product that is in the inbox, and will be decided."""

    product_id: UUID
    message: str


class Products(Struct, frozen=True):
    """A page of the catalogue; `next_after` is the `after` of the next page."""

    items: list[Product]
    next_after: UUID | None


class Orders(Struct, frozen=True):
    """A page of orders, newest first; `next_after` is the `after` of the next page."""

    items: list[Order]
    next_after: int | None


ACCEPTED: Final = "accepted: it will be decided; follow Location"


def customer(row: WalletRow) -> Customer:
    """The customer of a row."""
    return Customer(row.customer_id, row.username, money(row.balance_minor), row.position)


def product(row: StockRow) -> Product:
    """The product of a row."""
    return Product(
        row.product_id,
        row.name,
        row.description,
        money(row.base_price_minor),
        money(row.current_price_minor),
        row.stock,
        row.position,
    )


def order(row: OrderRow) -> Order:
    """The order of a row."""
    return Order(
        row.order_id,
        row.product_id,
        row.customer_id,
        row.quantity,
        row.status,
        moment(row.created_at),
        moment(row.updated_at),
        None if row.unit_price_minor is None else money(row.unit_price_minor),
        None if row.total_minor is None else money(row.total_minor),
        row.failure_reason,
        row.position,
    )


def pending_order(order_id: UUID, placed: OrderPlaced, created_at_us: int) -> Order:
    """The order that was accepted here and that no view shows yet."""
    created_at = moment_us(created_at_us)
    return Order(
        order_id,
        placed.product_id,
        placed.customer_id,
        placed.quantity,
        "PENDING",
        created_at,
        created_at,
    )


def accepted_order(order_id: UUID, placed: OrderPlaced, created_at_us: int) -> AcceptedOrder:
    """The answer to an order that the broker has confirmed."""
    created_at = moment_us(created_at_us)
    return AcceptedOrder(
        order_id,
        placed.product_id,
        placed.customer_id,
        placed.quantity,
        "PENDING",
        created_at,
        created_at,
    )

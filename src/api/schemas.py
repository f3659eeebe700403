"""The shapes of requests (pydantic) and of answers (msgspec); limits are those of the events."""

from decimal import Decimal
from typing import Final
from uuid import UUID

from msgspec import Struct
from pydantic import BaseModel, ConfigDict, Field

from api.json_forms import Amount, Moment, StatusName, money
from ledger.core.events import (
    MAX_DESCRIPTION,
    MAX_NAME,
    MAX_QUANTITY,
    MAX_STOCK,
    MAX_USERNAME,
    OrderPlaced,
)
from ledger.runtime.timestamps import format_rfc3339, format_us
from projections.views.orders import OrderRow
from projections.views.stock import ProductAsOf, StockRow
from projections.views.wallets import WalletAsOf, WalletRow

MAX_BATCH: Final = 1_000


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
    """A customer with the wallet; the username is `erased` once that was asked for."""

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
    status: StatusName
    created_at: Moment
    updated_at: Moment
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
    status: StatusName
    created_at: Moment
    updated_at: Moment


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


def customer(row: WalletRow | WalletAsOf) -> Customer:
    """The customer of a row."""
    return Customer(row.customer_id, row.username, money(row.balance_minor), row.position)


def product(row: StockRow | ProductAsOf) -> Product:
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
        format_rfc3339(row.created_at),
        format_rfc3339(row.updated_at),
        None if row.unit_price_minor is None else money(row.unit_price_minor),
        None if row.total_minor is None else money(row.total_minor),
        row.failure_reason,
        row.position,
    )


def pending_order(order_id: UUID, placed: OrderPlaced, created_at_us: int) -> Order:
    """The order that was accepted here and that no view shows yet."""
    created_at = format_us(created_at_us)
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
    created_at = format_us(created_at_us)
    return AcceptedOrder(
        order_id,
        placed.product_id,
        placed.customer_id,
        placed.quantity,
        "PENDING",
        created_at,
        created_at,
    )

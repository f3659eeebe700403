"""What the fold remembers, as small frozen records."""

from enum import StrEnum
from uuid import UUID

from msgspec import Struct


class Status(StrEnum):
    """The status of an order."""

    PENDING = "PENDING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


class CustomerState(Struct, frozen=True, gc=False):
    """A customer's wallet."""

    balance_minor: int


class ProductState(Struct, frozen=True, gc=False):
    """A product's stock and the two numbers that price it."""

    base_price_minor: int
    stock: int
    initial_stock: int


class OrderState(Struct, frozen=True, gc=False):
    """An order; `total_minor` is what a cancel pays back."""

    customer_id: UUID
    product_id: UUID
    quantity: int
    status: Status = Status.PENDING
    total_minor: int = 0


Subject = CustomerState | ProductState | OrderState | None


class State(Struct, frozen=True, gc=False):
    """All that one event can see and change.

    `subject` is what the event's own stream holds; `customer` and `product` are those that an
    order names.
    """

    subject: Subject = None
    customer: CustomerState | None = None
    product: ProductState | None = None

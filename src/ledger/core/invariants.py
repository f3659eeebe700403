"""The invariants: what holds at every position, checked in production too."""

from collections.abc import Callable, Iterable, Mapping
from typing import assert_never
from uuid import UUID

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
    StockReceived,
    SubmissionRefused,
    WalletCredited,
)
from ledger.core.state import CustomerState, ProductState


class InvariantViolated(Exception):
    """The history breaks an invariant: it was changed, or decided by other rules."""


def customer_with(balance_minor: int) -> CustomerState:
    """A customer with this balance; raises InvariantViolated below zero."""
    if balance_minor < 0:
        raise InvariantViolated(f"a wallet would hold {balance_minor}")
    return CustomerState(balance_minor)


def product_with(product: ProductState, stock: int) -> ProductState:
    """The product with this stock; raises InvariantViolated below zero."""
    if stock < 0:
        raise InvariantViolated(f"a stock would be {stock}")
    return ProductState(product.base_price_minor, stock, product.initial_stock)


def money_moved_minor(event: AnyPayload) -> int:
    """By how much an event that took effect changes the sum of all wallets, in minor units."""
    match event:
        case OrderCompleted():
            return -event.total_minor
        case OrderCancelled():
            return event.refund_minor
        case CustomerRegistered():
            return event.opening_balance_minor
        case WalletCredited():
            return event.amount_minor
        case (
            CustomerErased()
            | ProductListed()
            | StockReceived()
            | PriceChanged()
            | OrderPlaced()
            | OrderCancelRequested()
            | OrderFailed()
            | OrderCancelRefused()
            | SubmissionRefused()
        ):
            return 0
    assert_never(event)


def units_moved(event: AnyPayload) -> int:
    """By how much an event that took effect changes the sum of all stocks."""
    match event:
        case OrderCompleted():
            return -event.quantity
        case OrderCancelled():
            return event.quantity
        case ProductListed():
            return event.initial_stock
        case StockReceived():
            return event.quantity
        case (
            CustomerRegistered()
            | CustomerErased()
            | WalletCredited()
            | PriceChanged()
            | OrderPlaced()
            | OrderCancelRequested()
            | OrderFailed()
            | OrderCancelRefused()
            | SubmissionRefused()
        ):
            return 0
    assert_never(event)


class ConservationCheck:
    """Adds up what each wallet and each stock must be by the amounts in the events alone.

    The sums are kept apart from `evolve`, so that money or units which either of the two makes up
    or loses show as a difference.
    """

    __slots__ = ("_money", "_units")

    def __init__(
        self, customers: Mapping[UUID, CustomerState], products: Mapping[UUID, ProductState]
    ) -> None:
        self._money = _Sums((key, customer.balance_minor) for key, customer in customers.items())
        self._units = _Sums((key, product.stock) for key, product in products.items())

    def add(self, stream_id: UUID, event: AnyPayload) -> None:
        """Add an event that took effect; raises InvariantViolated for a sum below zero."""
        match event:
            case OrderCompleted() | OrderCancelled():
                self._money.add(event.customer_id, money_moved_minor(event))
                self._units.add(event.product_id, units_moved(event))
            case CustomerRegistered() | WalletCredited():
                self._money.add(stream_id, money_moved_minor(event))
            case ProductListed() | StockReceived():
                self._units.add(stream_id, units_moved(event))
            case (
                CustomerErased()
                | PriceChanged()
                | OrderPlaced()
                | OrderCancelRequested()
                | OrderFailed()
                | OrderCancelRefused()
                | SubmissionRefused()
            ):
                pass
            case _:
                assert_never(event)

    def compare(
        self, customers: Mapping[UUID, CustomerState], products: Mapping[UUID, ProductState]
    ) -> None:
        """Compare the sums that changed since the last time; raises InvariantViolated."""
        self._money.compare(lambda key: customers[key].balance_minor)
        self._units.compare(lambda key: products[key].stock)


class _Sums:
    # By the number of an id: a UUID takes five times as long to look up.
    __slots__ = ("_changed", "_sums")

    def __init__(self, amounts: Iterable[tuple[UUID, int]]) -> None:
        self._sums = {key.int: amount for key, amount in amounts}
        self._changed: dict[int, UUID] = {}

    def add(self, key: UUID, amount: int) -> None:
        number = key.int
        sum_ = self._sums.get(number, 0) + amount
        if sum_ < 0:
            raise InvariantViolated(f"{key} would hold {sum_}")
        self._sums[number] = sum_
        self._changed[number] = key

    def compare(self, held: Callable[[UUID], int]) -> None:
        for number, key in self._changed.items():
            if held(key) != self._sums[number]:
                raise InvariantViolated(
                    f"{key} holds {held(key)}, but {self._sums[number]} by what the events moved"
                )
        self._changed.clear()

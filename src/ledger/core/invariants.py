"""The invariants: what holds at every position, checked in production too."""

from collections.abc import Callable, Iterable, Mapping
from typing import assert_never
from uuid import UUID

from ledger.core.decider import CustomerState, InvariantViolated, ProductState
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
            case OrderCompleted():
                self._money.add(event.customer_id, -event.total_minor)
                self._units.add(event.product_id, -event.quantity)
            case OrderCancelled():
                self._money.add(event.customer_id, event.refund_minor)
                self._units.add(event.product_id, event.quantity)
            case CustomerRegistered() | WalletCredited():
                self._money.add(stream_id, money_moved_minor(event))
            case ProductListed():
                self._units.add(stream_id, event.opening_stock)
            case StockReceived():
                self._units.add(stream_id, event.quantity)
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

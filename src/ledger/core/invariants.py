"""What must hold at every position, checked in production too."""

from collections.abc import Callable, Iterable, Mapping
from uuid import UUID

from ledger.core.events import (
    AnyPayload,
    CustomerRegistered,
    OrderCancelled,
    OrderCompleted,
    ProductListed,
    StockReceived,
    WalletCredited,
)
from ledger.core.state import Customer, Product


class LawBroken(Exception):
    """The history breaks a law of the ledger: it was changed, or decided by other rules."""


def wallet(balance_minor: int) -> Customer:
    """A wallet with this balance; raises LawBroken below zero."""
    if balance_minor < 0:
        raise LawBroken(f"a wallet would hold {balance_minor}")
    return Customer(balance_minor)


def shelf(product: Product, stock: int) -> Product:
    """The product with this stock; raises LawBroken below zero."""
    if stock < 0:
        raise LawBroken(f"a stock would be {stock}")
    return Product(product.base_price_minor, stock, product.initial_stock)


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
        case _:
            return 0


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
        case _:
            return 0


class Books:
    """What each wallet and each shelf must hold by the amounts in the events alone.

    They are kept apart from `evolve`, so that money or units which either of the two makes up or
    loses show as a difference.
    """

    __slots__ = ("_money", "_units")

    def __init__(
        self, customers: Mapping[UUID, Customer], products: Mapping[UUID, Product]
    ) -> None:
        self._money = _Book((key, customer.balance_minor) for key, customer in customers.items())
        self._units = _Book((key, product.stock) for key, product in products.items())

    def enter(self, stream_id: UUID, event: AnyPayload) -> None:
        """Enter an event that took effect; raises LawBroken where less than nothing is left."""
        match event:
            case OrderCompleted() | OrderCancelled():
                self._money.add(event.customer_id, money_moved_minor(event))
                self._units.add(event.product_id, units_moved(event))
            case CustomerRegistered() | WalletCredited():
                self._money.add(stream_id, money_moved_minor(event))
            case ProductListed() | StockReceived():
                self._units.add(stream_id, units_moved(event))
            case _:
                pass

    def settle(self, customers: Mapping[UUID, Customer], products: Mapping[UUID, Product]) -> None:
        """Raises LawBroken unless those who moved something since the last time hold as much."""
        self._money.settle(lambda key: customers[key].balance_minor)
        self._units.settle(lambda key: products[key].stock)


class _Book:
    """Amounts by the number of an id: a UUID takes five times as long to look up."""

    __slots__ = ("_amounts", "_touched")

    def __init__(self, amounts: Iterable[tuple[UUID, int]]) -> None:
        self._amounts = {key.int: amount for key, amount in amounts}
        self._touched: dict[int, UUID] = {}

    def add(self, key: UUID, amount: int) -> None:
        number = key.int
        held = self._amounts.get(number, 0) + amount
        if held < 0:
            raise LawBroken(f"{key} would hold {held}")
        self._amounts[number] = held
        self._touched[number] = key

    def settle(self, held: Callable[[UUID], int]) -> None:
        for number, key in self._touched.items():
            if held(key) != self._amounts[number]:
                booked = self._amounts[number]
                raise LawBroken(f"{key} holds {held(key)}, but {booked} by what the events moved")
        self._touched.clear()

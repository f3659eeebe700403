"""What must hold at every position, checked in production too."""

from ledger.core.events import (
    AnyPayload,
    CustomerRegistered,
    OrderCancelled,
    OrderCompleted,
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
        case CustomerRegistered():
            return event.opening_balance_minor
        case WalletCredited():
            return event.amount_minor
        case OrderCompleted():
            return -event.total_minor
        case OrderCancelled():
            return event.refund_minor
        case _:
            return 0

"""The price of a unit, which rises as the stock falls."""

from decimal import Decimal

from ledger.core.money import times

PLENTY = Decimal("1.0")
SCARCE = Decimal("1.2")
LAST = Decimal("1.5")


def unit_price_minor(base_price_minor: int, stock: int, initial_stock: int) -> int:
    """The price of each unit of a sale that finds `stock` units, in minor units, half-up.

    Above 50 % of `initial_stock` ×1.0, above 25 % up to 50 % ×1.2, else ×1.5; an
    `initial_stock` of 0 counts as 1.
    """
    return times(base_price_minor, factor(stock, initial_stock or 1))


def factor(stock: int, initial_stock: int) -> Decimal:
    """The factor for what is left of `initial_stock`, compared without division."""
    if 2 * stock > initial_stock:
        return PLENTY
    if 4 * stock > initial_stock:
        return SCARCE
    return LAST

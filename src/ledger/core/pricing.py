"""The price of a unit, which rises as the stock falls."""

from decimal import Decimal

from ledger.core.money import times
from ledger.core.rules import IN_FORCE, Rules


def unit_price_minor(
    base_price_minor: int, stock: int, initial_stock: int, rules: Rules = IN_FORCE
) -> int:
    """The price of each unit of a sale that finds `stock` units, in minor units, half-up.

    An `initial_stock` of 0 counts as 1.
    """
    return times(base_price_minor, factor(stock, initial_stock or 1, rules))


def factor(stock: int, initial_stock: int, rules: Rules) -> Decimal:
    """The factor for what is left of `initial_stock`, compared without division."""
    for tier in rules.tiers:
        if 100 * stock > tier.above_percent * initial_stock:
            return tier.factor
    return rules.last_factor

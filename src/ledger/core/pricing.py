"""The pricing rules, and the price of a unit: it rises as the stock falls.

Old versions of the rules stay, as what was decided by them does.
"""

from decimal import Decimal
from typing import Final

from msgspec import Struct

from ledger.core.money import multiply_half_up


class Tier(Struct, frozen=True):
    """While more than this share of `initial_stock` is left, a unit costs `factor` × its base."""

    above_percent: int
    factor: Decimal


class Rules(Struct, frozen=True):
    """One version of the rules: the first tier that holds, from the top, else `last_factor`.

    `version` is recorded with every event that was decided by it.
    """

    version: int
    tiers: tuple[Tier, ...]
    last_factor: Decimal


# Every version ever, by its number. None may change or go: verify decides old events by them.
RULES: Final = {
    1: Rules(1, (Tier(50, Decimal("1.0")), Tier(25, Decimal("1.2"))), Decimal("1.5")),
}

# The rules that the writer decides by.
CURRENT_RULES: Final = RULES[max(RULES)]


def unit_price_minor(
    base_price_minor: int, stock: int, initial_stock: int, rules: Rules = CURRENT_RULES
) -> int:
    """The price of each unit of a sale that finds `stock` units, in minor units, half-up.

    An `initial_stock` of 0 counts as 1.
    """
    return multiply_half_up(base_price_minor, factor(stock, initial_stock or 1, rules))


def factor(stock: int, initial_stock: int, rules: Rules) -> Decimal:
    """The factor for the share of `initial_stock` that is left, compared without division."""
    for tier in rules.tiers:
        if 100 * stock > tier.above_percent * initial_stock:
            return tier.factor
    return rules.last_factor

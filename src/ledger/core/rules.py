"""The rules that may change: at what a unit is priced. Old ones stay, as what they decided does."""

from decimal import Decimal
from typing import Final

from msgspec import Struct


class Tier(Struct, frozen=True):
    """While more than this share of `initial_stock` is left, a unit costs `factor` × its base."""

    above_percent: int
    factor: Decimal


class Rules(Struct, frozen=True):
    """One version of the rules: the first tier that holds, from the top, else `last_factor`.

    `version` is recorded with what was decided by it.
    """

    version: int
    tiers: tuple[Tier, ...]
    last_factor: Decimal


RULES: Final = {
    1: Rules(1, (Tier(50, Decimal("1.0")), Tier(25, Decimal("1.2"))), Decimal("1.5")),
}
"""Every version ever, by its number. None may change or go: verify decides the past by them."""

IN_FORCE: Final = RULES[max(RULES)]
"""The rules that the writer decides by."""

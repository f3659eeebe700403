"""Money as integer minor units, and as the exact two-decimal numbers that clients see."""

from decimal import ROUND_HALF_UP, Decimal

MINOR_PER_UNIT = 100


class NotMoney(ValueError):
    """An amount with more than two decimals, or not a finite number."""


def to_minor(amount: Decimal) -> int:
    """Minor units of an amount; raises NotMoney rather than round what a client wrote."""
    if not amount.is_finite():
        raise NotMoney("must be a finite number")
    minor = amount * MINOR_PER_UNIT
    if minor != minor.to_integral_value():
        raise NotMoney("must have at most two decimals")
    return int(minor)


def to_amount(minor: int) -> str:
    """The amount as it stands in JSON: always two decimals, never a binary float."""
    sign = "-" if minor < 0 else ""
    units, cents = divmod(abs(minor), MINOR_PER_UNIT)
    return f"{sign}{units}.{cents:02d}"


def times(minor: int, factor: Decimal) -> int:
    """`minor * factor`, rounded half-up to the cent."""
    return int((minor * factor).to_integral_value(ROUND_HALF_UP))

"""Money in minor units (cents); clients see it as exact numbers of two decimals."""

from decimal import Context, Decimal, DecimalException, Inexact, InvalidOperation, Overflow

MINOR_PER_UNIT = 100

_ONE = Decimal(1)
_MAX_DIGITS = 40


class NotMoney(ValueError):
    """An amount with more than two decimals, or not a finite number."""


def to_minor(amount: Decimal) -> int:
    """Minor units of an amount; raises NotMoney rather than round what a client wrote."""
    if not amount.is_finite():
        raise NotMoney("must be a finite number")
    exact = Context(prec=_MAX_DIGITS, traps=[Inexact, InvalidOperation, Overflow])
    try:
        return int(amount.scaleb(2, exact).quantize(_ONE, context=exact))
    except DecimalException:
        raise NotMoney(f"must have at most two decimals and {_MAX_DIGITS} digits") from None


def to_amount(minor: int) -> str:
    """The amount as it stands in JSON: always two decimals, never a binary float."""
    sign = "-" if minor < 0 else ""
    units, cents = divmod(abs(minor), MINOR_PER_UNIT)
    return f"{sign}{units}.{cents:02d}"


def multiply_half_up(minor: int, factor: Decimal) -> int:
    """`minor * factor`, neither below zero, rounded half-up to the cent."""
    numerator, denominator = factor.as_integer_ratio()
    return (2 * minor * numerator + denominator) // (2 * denominator)

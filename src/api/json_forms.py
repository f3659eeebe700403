"""Money, times and statuses as they stand in JSON."""

from decimal import Context, Decimal, Inexact, InvalidOperation
from functools import partial
from typing import Annotated

from msgspec import Meta
from pydantic import PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from ledger.core.events import MAX_AMOUNT_MINOR
from ledger.core.money import to_minor
from ledger.core.state import Status

_CENT = Decimal("0.01")
_EXACT = Context(prec=28, traps=[Inexact, InvalidOperation])


def money(minor: int) -> Decimal:
    """Minor units as the number with two decimals that clients see."""
    return Decimal(minor).scaleb(-2)


def _amount(low_minor: int, value: object) -> int:
    """Minor units of a JSON number, exactly; the body was parsed with `Decimal` for floats."""
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise PydanticCustomError("money_type", "not a number")
    try:
        minor = to_minor(_EXACT.quantize(Decimal(value), _CENT))
    except Inexact:
        raise PydanticCustomError("money_decimals", "not exact", {"decimals": 2}) from None
    except InvalidOperation:
        minor = MAX_AMOUNT_MINOR + 1 if value > 0 else low_minor - 1
    if minor < low_minor:
        limit = str(money(low_minor))
        raise PydanticCustomError("greater_than_equal", "too small", {"ge": limit})
    if minor > MAX_AMOUNT_MINOR:
        limit = str(money(MAX_AMOUNT_MINOR))
        raise PydanticCustomError("less_than_equal", "too large", {"le": limit})
    return minor


_NUMBER = {
    "type": "number",
    "minimum": 0.01,
    "maximum": MAX_AMOUNT_MINOR // 100,
    "multipleOf": 0.01,
}
Amount = Annotated[int, PlainValidator(partial(_amount, 1)), WithJsonSchema(_NUMBER)]
"""An amount of money: two decimals in JSON, minor units in the model."""

Moment = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
"""A time in UTC as RFC 3339."""

StatusName = Annotated[str, Meta(extra_json_schema={"enum": list(Status.__members__)})]
"""How far an order is."""

"""What schemathesis must know of this API that JSON Schema can't say, one rule a reason."""

from decimal import ROUND_HALF_UP, Decimal
from typing import Any
from uuid import uuid4

import schemathesis
from schemathesis import Case, GenerationMode, HookContext

CENT = Decimal("0.01")
MONEY = ("amount", "base_price")
TEXTS = ("username", "name", "description")


@schemathesis.hook
def before_call(context: HookContext, case: Case, kwargs: dict[str, Any]) -> None:
    """Only of requests that are meant to be good: bad ones go out as they are."""
    if case.meta is None or case.meta.generation.mode is not GenerationMode.POSITIVE:
        return
    if case.headers and "If-Match" in case.headers:
        # An ETag of nothing that is there is refused with 412: test_preconditions.py.
        case.headers["If-Match"] = "*"
    if case.headers and "Idempotency-Key" in case.headers:
        # A key that comes again with another body is refused: test_idempotency.py.
        case.headers["Idempotency-Key"] = str(uuid4())
    if case.query:
        be_possible(case.query)
    case.body = as_written(case.body)


def be_possible(query: dict[str, Any]) -> None:
    """Ask for one moment, which has come."""
    if "min_position" in query:
        # A position that is far ahead is waited for, then answered with 503: test_get_order.py.
        query["min_position"] = 1
    given = [name for name in ("as_of_position", "as_of_time", "min_position") if name in query]
    for name in given[1:]:
        # They exclude each other, and the future is refused: test_as_of.py.
        del query[name]
    if "as_of_position" in query:
        query["as_of_position"] = 0
    if "as_of_time" in query:
        query["as_of_time"] = "2020-01-31T12:00:00.5+01:00"


def as_written(value: Any, name: str = "") -> Any:
    """JSON Schema takes 0.1 + 0.2 for cents, and has no class of characters that can be seen."""
    if isinstance(value, dict):
        return {key: as_written(item, key) for key, item in value.items()}
    if isinstance(value, list):
        return [as_written(item, name) for item in value]
    if isinstance(value, float) and name in MONEY:
        return float(Decimal(value).quantize(CENT, ROUND_HALF_UP))
    if isinstance(value, str) and name in TEXTS:
        return "".join(filter(str.isprintable, value)).strip() or "x"
    return value

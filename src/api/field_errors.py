"""What is wrong with a body, field by field, in words that name the limit and the remedy."""

from collections.abc import Mapping
from typing import Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from api.problems import FieldError, Problem

MAX_ERRORS: Final = 100

_WORDS: Final[Mapping[str, tuple[str, str | None]]] = {
    "missing": ("is required: add it", None),
    "extra_forbidden": ("is not a field of this request: leave it out", None),
    "int_type": ("must be a whole number, without quotes and without a decimal point", None),
    "string_type": ("must be a string, in quotes", None),
    "string_unicode": ("must be Unicode text, without half of a surrogate pair", None),
    "uuid_type": ("must be a UUID, in quotes", None),
    "uuid_parsing": ("must be a UUID such as 43e8ff2f-5d48-498f-a569-ca2cf9f7fae3", None),
    "money_type": ("must be an amount: a number such as 12.50, without quotes", None),
    "money_decimals": ("must have at most {decimals} decimals: round it yourself", "decimals"),
    "greater_than_equal": ("must be at least {ge}", "ge"),
    "less_than_equal": ("must be at most {le}", "le"),
    "string_too_short": ("must have at least {min_length} character(s)", "min_length"),
    "string_too_long": ("must have at most {max_length} characters: shorten it", "max_length"),
    "bool_type": ("must be true or false, without quotes", None),
    "list_type": ("must be a JSON array", None),
    "too_short": ("must have at least {min_length} element(s)", "min_length"),
    "too_long": ("must have at most {max_length} elements: split it", "max_length"),
    "model_type": ("must be a JSON object", None),
}


def invalid_fields(error: ValidationError) -> Problem:
    """The problem that names every field at fault, up to MAX_ERRORS."""
    errors = error.errors(include_url=False, include_input=False)
    found = [_field_error(e) for e in errors[:MAX_ERRORS]]
    first = found[0]
    return Problem("invalid-fields", f"{first.field} {first.detail}", found)


def _field_error(error: ErrorDetails) -> FieldError:
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"])
    field = field.removeprefix(".") or "body"
    words, limit = _WORDS.get(error["type"], (error["msg"], None))
    context = error.get("ctx", {})
    return FieldError(_printable(field), words.format(**context), context[limit] if limit else None)


def _printable(field: str) -> str:
    """A client's own field name, short enough and clean enough to send back."""
    return field[:100].encode("utf-8", "replace").decode()

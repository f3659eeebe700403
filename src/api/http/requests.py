"""Reading requests: the query, and JSON bodies that are bounded in size, time and depth.

Every invalid field is reported, in words that name the limit and the remedy.
"""

import asyncio
import json
import re
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final, NoReturn, TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from api.http.problems import CLOSE, FieldError, Problem, invalid

MAX_BODY: Final = 64 * 1024
BODY_TIMEOUT_S: Final = 10.0
MAX_ERRORS: Final = 100
MAX_DISCARD: Final = 2 * 1024 * 1024
DISCARD_TIMEOUT_S: Final = 1.0
MAX_PARAMETERS: Final = 20

Model = TypeVar("Model", bound=BaseModel)
Turn = Callable[[], AbstractAsyncContextManager[None]]


def read_query(query: bytes, names: Collection[str]) -> Mapping[str, str]:
    """The query parameters by name; raises Problem for one that is not among `names`.

    Unknown ones are refused because a misspelt filter must not show everything.
    """
    if not query:
        return {}
    try:
        pairs = parse_qsl(
            query.decode("ascii"),
            keep_blank_values=True,
            max_num_fields=MAX_PARAMETERS,
            errors="strict",
        )
    except ValueError:
        raise invalid("query", f"must be at most {MAX_PARAMETERS} parameters in UTF-8") from None
    values: dict[str, str] = {}
    for name, value in pairs:
        if name not in names:
            words = f"known here: {', '.join(names)}" if names else "this request has none"
            raise invalid(name[:100], f"is not a parameter: {words}")
        if name in values:
            raise invalid(name, "stands twice: give it once")
        values[name] = value
    return values


async def read_body(
    request: Request, model: type[Model], limit: int, parse_turn: Turn | None = None
) -> Model:
    """The body as a `model`, in at most `limit` bytes; one without required fields may be left out.

    It is parsed inside `parse_turn`, once all of it is here. Raises Problem or pydantic's
    ValidationError.
    """
    headers = dict(request.scope["headers"])
    declared = headers.get(b"content-length", b"")
    if declared.isdigit() and int(declared[:20]) > limit:
        # A client that expects 100 Continue has not begun to send.
        if b"expect" not in headers:
            await _discard(request.receive)
        raise _too_large(limit)
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            raw = await _collect(request.receive, limit)
    except TimeoutError:
        raise Problem(
            "body-too-slow", f"the body must be here within {BODY_TIMEOUT_S:g} s", headers=CLOSE
        ) from None
    if raw and not _is_json(headers.get(b"content-type", b"")):
        raise Problem("not-json", "send the body with Content-Type: application/json")
    if raw and headers.get(b"content-encoding", b"identity") != b"identity":
        raise Problem("not-json", "send the body without Content-Encoding")
    if not raw and not is_required(model):
        raw = b"{}"
    if parse_turn is None:
        return model.model_validate(parse_json(raw))
    async with parse_turn():
        return model.model_validate(parse_json(raw))


def is_required(model: type[BaseModel]) -> bool:
    """Whether a request must have a body of this model."""
    return any(field.is_required() for field in model.model_fields.values())


async def _collect(receive: Receive, limit: int) -> bytes:
    collected = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        collected += bytes(message.get("body", b""))
        more = message.get("more_body", False)
        if len(collected) > limit:
            if more:
                await _discard(receive)
            raise _too_large(limit)
        if not more:
            return collected


async def _discard(receive: Receive) -> None:
    """Read on for a while: closing on unread bytes resets the connection, answer and all."""
    discarded, more = 0, True
    with suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_TIMEOUT_S):
            while more and discarded < MAX_DISCARD:
                message = await receive()
                discarded += len(message.get("body", b""))
                more = message.get("more_body", False)


def _too_large(limit: int) -> Problem:
    # The connection is closed with it, so that nobody has to read the rest.
    return Problem("body-too-large", f"the body must have at most {limit} bytes", headers=CLOSE)


@lru_cache(maxsize=256)
def _is_json(content_type: bytes) -> bool:
    media_type, _, charset = re.sub(rb'[ "]', b"", content_type.lower()).partition(b";")
    is_json = re.fullmatch(rb"application/(.+\+)?json", media_type) is not None
    return is_json and charset in (b"", b"charset=utf-8", b"charset=utf8")


def parse_json(raw: bytes) -> object:
    """JSON with exact decimals; NaN and names given twice, which JSON leaves open, are refused."""
    if not raw:
        raise Problem("bad-json", "a JSON body is required")
    try:
        return _decode(raw.decode())
    except RecursionError:
        raise Problem("bad-json", "the body is nested too deeply") from None
    except (ValueError, ArithmeticError) as error:
        raise Problem("bad-json", str(error)[:200] or "a number is out of range") from None


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) != len(pairs):
        # Readers differ in which of the two they take.
        names = [name for name, _ in pairs]
        field = next(name for name in names if names.count(name) > 1)[:100]
        detail = "stands twice in one object: give it once"
        raise Problem("bad-json", f"{field} {detail}", [FieldError(field, detail)])
    return values


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


# The C scanner of the standard library is the one parser at hand that gives numbers as they were
# written and every pair of an object: pydantic's and msgspec's keep the last of two equal names.
_decode: Final = json.JSONDecoder(
    parse_float=Decimal, parse_constant=_no_constant, object_pairs_hook=_unique
).decode


# By pydantic's type of the error: what the field must be, and which part of it is the limit.
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
    errors = []
    for at_fault in error.errors(include_url=False, include_input=False)[:MAX_ERRORS]:
        parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in at_fault["loc"])
        # A client's own field name: short enough and clean enough to send back.
        name = ("".join(parts).removeprefix(".") or "body")[:100].encode("utf-8", "replace")
        words, limit = _WORDS.get(at_fault["type"], (at_fault["msg"], None))
        context: dict[str, Any] = at_fault.get("ctx", {})
        detail = words.format(**context)
        errors.append(FieldError(name.decode(), detail, context[limit] if limit else None))
    return Problem("invalid-fields", f"{errors[0].field} {errors[0].detail}", errors)

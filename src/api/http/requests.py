"""Reading requests: the query, and JSON bodies that are bounded in size, time and depth.

Every invalid field is reported, in words that name the limit and the remedy.
"""

import asyncio
import json
import re
import sys
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final, NoReturn, TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from api.http.problems import CLOSE, FieldError, Problem, invalid

MAX_BODY: Final = 64 * 1024
BODY_TIMEOUT_S: Final = 10.0
MAX_ERRORS: Final = 100
MAX_VALUES: Final = 10_000
MAX_TYPE: Final = 255
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
    except UnicodeDecodeError:
        detail = "must be UTF-8, percent-encoded"
        raise Problem("bad-request", f"query {detail}", [FieldError("query", detail)]) from None
    except ValueError:
        detail = f"must have at most {MAX_PARAMETERS} parameters"
        raise invalid("query", detail, MAX_PARAMETERS) from None
    values: dict[str, str] = {}
    for name, value in pairs:
        if name not in names:
            words = f"known here: {', '.join(names)}" if names else "this request has none"
            raise invalid(_shown(name), f"is not a parameter: {words}")
        if name in values:
            raise invalid(name, "stands twice: give it once")
        values[name] = value
    return values


async def read_body(
    receive: Receive,
    headers: Mapping[bytes, bytes],
    model: type[Model],
    limit: int,
    parse_turn: Turn | None = None,
) -> Model:
    """The body as a `model`, in at most `limit` bytes; one without required fields may be left out.

    It is parsed inside `parse_turn`, once all of it is here. Raises Problem or pydantic's
    ValidationError.
    """
    declared = headers.get(b"content-length", b"")
    if declared.isdigit() and int(declared[:20]) > limit:
        raise _too_large(limit)
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            raw = await _collect(receive, limit)
    except TimeoutError:
        raise Problem(
            "body-too-slow", f"the body must be here within {BODY_TIMEOUT_S:g} s", headers=CLOSE
        ) from None
    if raw:
        content_type = headers.get(b"content-type", b"")
        # Longer ones would fill the cache.
        if fault := _content_type_fault(content_type if len(content_type) <= MAX_TYPE else b""):
            raise Problem("not-json", fault)
        if headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
            raise Problem("not-json", "send the body without Content-Encoding")
    elif not is_required(model):
        raw = b"{}"
    if parse_turn is None:
        return model.model_validate(parse_json(raw))
    async with parse_turn():
        return model.model_validate(parse_json(raw))


def is_required(model: type[BaseModel]) -> bool:
    """Whether a request must have a body of this model."""
    return any(field.is_required() for field in model.model_fields.values())


async def _collect(receive: Receive, limit: int) -> bytes:
    # Not `bytes`: of chunks of one byte each it would copy all that came before.
    collected = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body: bytes = message.get("body", b"")
        more = message.get("more_body", False)
        if len(collected) + len(body) > limit:
            raise _too_large(limit)
        if not more and not collected:
            return body
        collected += body
        if not more:
            return bytes(collected)


def _too_large(limit: int) -> Problem:
    # The connection throws the rest away, and ends: who declared too much may send much more.
    return Problem("body-too-large", f"the body must have at most {limit} bytes", headers=CLOSE)


@lru_cache(maxsize=256)
def _content_type_fault(content_type: bytes) -> str | None:
    """What keeps a body of this type from being read; None if it is JSON in UTF-8.

    `application/…+json` is JSON as well (RFC 6839, 3.1), and other parameters mean nothing for it.
    """
    media_type, *parameters = content_type.decode("latin-1").lower().split(";")
    if not _JSON_TYPE(media_type.strip()):
        return "send the body with Content-Type: application/json"
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        charset = value.strip().strip('"')
        if name.strip() == "charset" and charset not in ("utf-8", "utf8"):
            return f"send the body in UTF-8: Content-Type says that it is {charset[:50]}"
    return None


def parse_json(raw: bytes) -> object:
    """JSON with exact decimals; NaN and names given twice, which JSON leaves open, are refused.

    So is half of a surrogate pair: no UTF-8 can hold it (RFC 8259, 8.2). Raises Problem.
    """
    if not raw:
        raise Problem("bad-json", "a JSON body is required")
    # Each value is an object in memory, and perhaps an error to report: bytes alone say little.
    if len(raw) > MAX_VALUES:
        if raw.count(b",") > MAX_VALUES:
            raise Problem("body-too-large", f"the body must have at most {MAX_VALUES} values")
        if raw.count(b"[") + raw.count(b"{") > MAX_VALUES:
            raise Problem("bad-json", f"the body has over {MAX_VALUES} arrays and objects")
    try:
        value = _decode(raw.decode())
    except RecursionError:
        raise Problem("bad-json", "the body is nested too deeply") from None
    except (ValueError, ArithmeticError) as error:
        raise Problem("bad-json", _json_fault(raw, error)) from None
    if b"\\u" in raw:
        _refuse_half_pairs(value)
    return value


def _json_fault(raw: bytes, error: ValueError | ArithmeticError) -> str:
    """What the body is, if it is not JSON, in words for whoever sent it."""
    encoding = json.detect_encoding(raw)
    if encoding == "utf-8-sig":
        return "the body begins with a byte order mark: leave it out (RFC 8259, 8.1)"
    if encoding != "utf-8":
        return f"the body seems to be {encoding.upper()}: send it in UTF-8"
    match error:
        case UnicodeDecodeError():
            return f"the body is not UTF-8: see byte {error.start + 1}"
        case json.JSONDecodeError():
            return str(error)[:200]
        case ArithmeticError():
            return "the exponent of a number is out of range"
        case _:
            return f"a whole number has over {sys.get_int_max_str_digits()} digits"


def _refuse_half_pairs(value: object) -> None:
    """Raises Problem for a string with half of a surrogate pair. Without recursion."""
    unseen: list[tuple[str, object]] = [("body", value)]
    while unseen:
        name, value = unseen.pop()
        if isinstance(value, str):
            if _HALF_PAIR(value):
                field = _shown(name)
                detail = "has half of a surrogate pair: send whole characters"
                raise Problem("bad-json", f"{field} {detail}", [FieldError(field, detail)])
        elif isinstance(value, list):
            unseen += ((name, item) for item in value)
        elif isinstance(value, dict):
            unseen += value.items()
            unseen += ((key, key) for key in value)


def _shown(name: str) -> str:
    """A name that a client made up, short enough, clean enough and visible in a message."""
    return name[:100].encode("utf-8", "replace").decode() or '""'


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) != len(pairs):
        # Readers differ in which of the two they take.
        names: set[str] = set()
        for name, _ in pairs:
            if name in names:
                field, detail = _shown(name), "stands twice in one object: give it once"
                raise Problem("bad-json", f"{field} {detail}", [FieldError(field, detail)])
            names.add(name)
    return values


def _no_constant(name: str) -> NoReturn:
    raise Problem("bad-json", f"{name} is not JSON")


_JSON_TYPE: Final = re.compile(r"application/([^\s/]+\+)?json").fullmatch
_HALF_PAIR: Final = re.compile("[\ud800-\udfff]").search
# The C scanner of the standard library is the one parser at hand that gives numbers as they were
# written and every pair of an object: pydantic's and msgspec's keep the last of two equal names.
_decode: Final = json.JSONDecoder(
    parse_float=Decimal, parse_constant=_no_constant, object_pairs_hook=_unique
).decode


# By pydantic's type of the error: what the field must be, and which part of it is the limit.
_WORDS: Final[Mapping[str, tuple[str, str | None]]] = {
    "text": ("{words}", "limit"),
    "missing": ("is required: add it", None),
    "extra_forbidden": ("is not a field of this request: leave it out", None),
    "int_type": ("must be a whole number, without quotes", None),
    "string_type": ("must be a string, in quotes", None),
    "string_pattern_mismatch": (
        "must be a UUID such as 43e8ff2f-5d48-498f-a569-ca2cf9f7fae3",
        None,
    ),
    "money_type": ("must be an amount: a number such as 12.50, without quotes", None),
    "money_decimals": ("must have at most {decimals} decimals: round it yourself", "decimals"),
    "greater_than_equal": ("must be at least {ge}", "ge"),
    "less_than_equal": ("must be at most {le}", "le"),
    "bool_type": ("must be true or false, without quotes", None),
    "list_type": ("must be a JSON array", None),
    "too_short": ("must have at least {min_length} element", "min_length"),
    "too_long": ("must have at most {max_length} elements: split it", "max_length"),
    "model_type": ("must be a JSON object", None),
}


def invalid_fields(error: ValidationError) -> Problem:
    """The problem that names every field at fault, up to MAX_ERRORS."""
    errors = []
    for at_fault in error.errors(include_url=False, include_input=False)[:MAX_ERRORS]:
        parts = (
            f"[{part}]" if isinstance(part, int) else f".{_shown(part)}" for part in at_fault["loc"]
        )
        field = _shown("".join(parts).removeprefix(".") or "body")
        context: dict[str, Any] = at_fault.get("ctx", {})
        words, limit = _WORDS.get(at_fault["type"], (None, None))
        detail = words.format(**context) if words else at_fault["msg"]
        errors.append(FieldError(field, detail, context[limit] if limit else None))
    return Problem("invalid-fields", f"{errors[0].field} {errors[0].detail}", errors)

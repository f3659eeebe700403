"""Reading requests: path ids, parameters, and bodies that are bounded in size, time and depth."""

import asyncio
import json
from collections.abc import Sequence
from contextlib import suppress
from decimal import Decimal
from functools import lru_cache
from typing import Final, NoReturn, TypeVar
from urllib.parse import parse_qsl
from uuid import UUID

from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from api.problems import CLOSE, FieldError, Problem, invalid

MAX_BODY: Final = 64 * 1024
BODY_TIMEOUT_S: Final = 10.0
MAX_DISCARD: Final = 2 * 1024 * 1024
DISCARD_TIMEOUT_S: Final = 1.0
MAX_POSITION: Final = 2**63 - 1
_MAX_PARAMETERS: Final = 20
_UUID_LENGTH: Final = 36

Model = TypeVar("Model", bound=BaseModel)


class DuplicateField(ValueError):
    """A name stands twice in one JSON object, and readers differ in which one they take."""


def path_id(request: Request, name: str) -> UUID:
    """The id that stands in the path."""
    return uuid_of(name, request.path_params[name])


def uuid_of(name: str, text: str) -> UUID:
    """The UUID in its usual form of 36 characters."""
    try:
        if len(text) == _UUID_LENGTH:
            return UUID(text)
    except ValueError:
        pass
    raise invalid(name, "must be a UUID such as 43e8ff2f-5d48-498f-a569-ca2cf9f7fae3")


def whole(name: str, text: str, low: int, high: int) -> int:
    """The whole number between `low` and `high`, in decimal digits."""
    if not (text.isascii() and text.isdigit() and len(text) < len(str(MAX_POSITION)) + 1):
        raise invalid(name, f"must be a whole number from {low} to {high}")
    number = int(text)
    if not low <= number <= high:
        raise invalid(name, f"must be from {low} to {high}", low if number < low else high)
    return number


def flag(name: str, text: str | None) -> bool:
    """A parameter that is true or false, and false where it is not given."""
    if text not in (None, "true", "false"):
        raise invalid(name, "must be true or false")
    return text == "true"


def parameters(request: Request, *known: str) -> dict[str, str]:
    """The query parameters. Unknown ones are refused: a misspelt filter must not show all."""
    query: bytes = request.scope["query_string"]
    if not query:
        return {}
    found: dict[str, str] = {}
    for name, value in _pairs(query):
        if name not in known:
            words = f"known here: {', '.join(known)}" if known else "this request has none"
            raise invalid(name[:100], f"is not a parameter: {words}")
        if name in found:
            raise invalid(name, "stands twice: give it once")
        found[name] = value
    return found


def _pairs(query: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(
            query.decode("ascii"),
            keep_blank_values=True,
            max_num_fields=_MAX_PARAMETERS,
            errors="strict",
        )
    except ValueError:
        raise invalid("query", f"must be at most {_MAX_PARAMETERS} parameters in UTF-8") from None


async def body(
    request: Request, model: type[Model], *, known: Sequence[str] = (), limit: int = MAX_BODY
) -> Model:
    """The body as a `model`, in at most `limit` bytes, with no query parameters but the `known`.

    Raises Problem or pydantic's ValidationError.
    """
    parameters(request, *known)
    return model.model_validate(parse(await _read_json(request, limit)))


async def no_body(request: Request, model: type[Model]) -> Model:
    """As `body`, for requests that may come without one."""
    parameters(request)
    return model.model_validate(parse(await _read_json(request) or b"{}"))


def parse(raw: bytes) -> object:
    """JSON with exact decimals, and nothing that JSON does not have: NaN, names given twice."""
    if not raw:
        raise Problem("bad-json", "a JSON body is required")
    try:
        return _decode(raw.decode())
    except DuplicateField as error:
        name = str(error)[:100]
        detail = "stands twice in one object: give it once"
        raise Problem("bad-json", f"{name} {detail}", [FieldError(name, detail)]) from None
    except RecursionError:
        raise Problem("bad-json", "the body is nested too deeply") from None
    except (ValueError, ArithmeticError) as error:
        raise Problem("bad-json", str(error)[:200] or "a number is out of range") from None


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise DuplicateField(next(name for name in names if names.count(name) > 1))
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_decode: Final = json.JSONDecoder(
    parse_float=Decimal, parse_constant=_no_constant, object_pairs_hook=_unique
).decode


async def _read_json(request: Request, limit: int = MAX_BODY) -> bytes:
    headers = dict(request.scope["headers"])
    raw = await _read(request.receive, headers, limit)
    if raw and not _is_json(headers.get(b"content-type", b"")):
        raise Problem("not-json", "send the body with Content-Type: application/json")
    if raw and headers.get(b"content-encoding", b"identity") != b"identity":
        raise Problem("not-json", "send the body without Content-Encoding")
    return raw


@lru_cache(maxsize=256)
def _is_json(content_type: bytes) -> bool:
    media_type, _, rest = content_type.lower().partition(b";")
    charset = rest.replace(b" ", b"").replace(b'"', b"")
    media_type = media_type.strip()
    known = media_type == b"application/json" or (
        media_type.startswith(b"application/") and media_type.endswith(b"+json")
    )
    return known and charset in (b"", b"charset=utf-8", b"charset=utf8")


async def _read(receive: Receive, headers: dict[bytes, bytes], limit: int) -> bytes:
    declared = headers.get(b"content-length", b"")
    if declared.isdigit() and int(declared[:20]) > limit:
        if b"expect" not in headers:
            await _discard(receive)
        raise _too_large(limit)
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await _collect(receive, limit)
    except TimeoutError:
        raise Problem(
            "body-too-slow", f"the body must be here within {BODY_TIMEOUT_S:g} s", headers=CLOSE
        ) from None


async def _collect(receive: Receive, limit: int) -> bytes:
    collected = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        collected += bytes(message.get("body", b""))
        if len(collected) > limit:
            if message.get("more_body", False):
                await _discard(receive)
            raise _too_large(limit)
        if not message.get("more_body", False):
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
    """The connection is closed with it, so that nobody has to read the rest."""
    return Problem("body-too-large", f"the body must have at most {limit} bytes", headers=CLOSE)

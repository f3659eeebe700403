"""Parameters and headers, as the OpenAPI document describes them."""

from collections.abc import Mapping
from typing import Any, Final

from api.idempotency import MAX_KEY
from api.pagination import DEFAULT_LIMIT, MAX_LIMIT
from api.prefer import MAX_WAIT_S
from api.problems import KINDS
from api.requests import MAX_POSITION
from api.resources.docs import ASSETS
from ledger.core.events import DECIDED, SUBMITTED
from ledger.core.state import Status

Json = dict[str, Any]

UUID: Final[Json] = {"type": "string", "format": "uuid"}
_POSITION: Final[Json] = {"type": "integer", "minimum": 1, "maximum": MAX_POSITION}
_CURSOR: Final[Json] = {"type": "integer", "minimum": 0, "maximum": MAX_POSITION}
_TEXT: Final[Json] = {"type": "string"}


def _parameter(name: str, place: str, schema: Json, description: str) -> Json:
    needed = {"required": True} if place == "path" else {}
    return {"name": name, "in": place, **needed, "description": description, "schema": schema}


def _query(name: str, schema: Json, description: str) -> Json:
    return _parameter(name, "query", schema, description)


def _header(name: str, schema: Json, description: str) -> Json:
    return _parameter(name, "header", schema, description)


_LIMIT: Final[Json] = {
    "type": "integer",
    "minimum": 1,
    "maximum": MAX_LIMIT,
    "default": DEFAULT_LIMIT,
}

PARAMETERS: Final[Mapping[str, Json]] = {
    "customer_id": _query("customer_id", UUID, "only this customer's"),
    "product_id": _query("product_id", UUID, "only this product's"),
    "status": _query("status", {"enum": list(Status.__members__)}, "only in this status"),
    "after": _query("after", _POSITION, "`next_after` of the page before"),
    "products.after": _query("after", UUID, "`next_after` of the page before"),
    "events.after": _query("after", _CURSOR, "only events after this position"),
    "type": _query("type", {"enum": [*SUBMITTED, *DECIDED]}, "only events of this type"),
    "dry_run": _query("dry_run", {"type": "boolean"}, "only say what would be decided now"),
    "limit": _query("limit", _LIMIT, "at most this many"),
    "min_position": _query(
        "min_position",
        _CURSOR,
        "answer from a view that is at least at this position; waits up to 2 s for it",
    ),
    "as_of_position": _query(
        "as_of_position", _CURSOR, "answer as of this position, which the ledger must have reached"
    ),
    "as_of_time": _query(
        "as_of_time",
        {"type": "string", "format": "date-time"},
        "answer as of the last position that was recorded at this time or before it",
    ),
}
"""By name; where it is another thing on the paths that end with `x`, also as `x.name`."""

HEADER_PARAMETERS: Final[Mapping[str, Json]] = {
    "Prefer": _header(
        "Prefer",
        {**_TEXT, "examples": ["wait=5", "respond-async"]},
        f"`wait=N` waits up to N s ({MAX_WAIT_S} at most) for the decision (RFC 7240)",
    ),
    "Idempotency-Key": _header(
        "Idempotency-Key",
        {**_TEXT, "pattern": "^[!-~]+$", "minLength": 1, "maxLength": MAX_KEY},
        "the same key and body make the same event, for ever: a retry can't happen twice",
    ),
    "If-None-Match": _header(
        "If-None-Match", _TEXT, "ETags of the versions that the client has: 304 if one is current"
    ),
    "Last-Event-ID": _header(
        "Last-Event-ID", _TEXT, "of a stream: go on after this position, whatever `after` says"
    ),
    "X-Request-Id": _header(
        "X-Request-Id",
        _TEXT,
        "up to 128 visible ASCII characters, which come back; otherwise the answer has a new one",
    ),
}

PATH_PARAMETERS: Final[Mapping[str, Json]] = {
    "order_id": _parameter("order_id", "path", UUID, "an order"),
    "product_id": _parameter("product_id", "path", UUID, "a product"),
    "customer_id": _parameter("customer_id", "path", UUID, "a customer"),
    "asset": _parameter("asset", "path", {"enum": list(ASSETS)}, "a file"),
    "kind": _parameter("kind", "path", {"enum": list(KINDS)}, "a kind of problem"),
}

ANSWER_HEADERS: Final[Mapping[str, Json]] = {
    name: {"description": description, "schema": schema}
    for name, schema, description in (
        ("X-Request-Id", _TEXT, "the request's id, as it came or a new one"),
        ("Ledger-Position", {"type": "integer", "minimum": 0}, "the answer holds at this position"),
        ("Location", {**_TEXT, "format": "uri-reference"}, "where the thing can be followed"),
        ("Preference-Applied", _TEXT, "which preference was honoured, if one came"),
        ("Idempotency-Replayed", {"const": "true"}, "the same key came before"),
        ("Link", _TEXT, 'the next page, `rel="next"` (RFC 8288); none on the last one'),
        ("ETag", _TEXT, "the version of the body"),
        ("Retry-After", {"type": "integer", "minimum": 1}, "seconds to wait before a retry"),
        ("WWW-Authenticate", _TEXT, "what was wrong with the key (RFC 6750)"),
    )
}

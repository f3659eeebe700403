"""ETags, and the preconditions that name them (RFC 9110, sections 8.8.3 and 13).

The ETag of a customer, product or order is the position of the event that last changed it, and a
checksum of the body. By the position the fold checks `If-Match` of a POST or PATCH as it decides;
the checksum tells a rebuilt view apart that shows another row at the same position. What a
precondition asks is done, or the request is refused: none is passed over that could change it.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final
from zlib import crc32

from starlette.responses import Response

from api.http.parameters import CONDITIONS, IF_MATCH, Call
from api.http.problems import Problem, invalid
from api.http.responses import JSON

ANY: Final = frozenset(("*",))
# Expected by a client that names nothing of ours: no event stands there, so it is never so.
NEVER: Final = 0

_CONTENT_TYPE: Final = (b"content-type", JSON.encode())
_OURS: Final = re.compile(r'"([0-9]{1,18})-[0-9a-f]{8}"').fullmatch


def etag_of(position: int, body: bytes) -> str:
    """The ETag of a body that an event at this position was the last to change."""
    return f'"{position}-{crc32(body):08x}"'


def representation(
    call: Call[Any], body: bytes, etag: str | None, headers: Iterable[tuple[bytes, bytes]]
) -> Response:
    """A JSON body with its ETag, if it has one; raises Problem if If-Match asks for another one.

    The middleware makes it a 304 for a client that has it: If-None-Match comes after If-Match
    (13.2.2).
    """
    expected = call.header(IF_MATCH)
    if expected is not None and expected != ANY and etag not in expected:
        raise Problem("precondition-failed", "If-Match does not name the ETag that it has now")
    response = Response(body)
    response.raw_headers += (_CONTENT_TYPE, *headers)
    if etag:
        response.raw_headers.append((b"etag", etag.encode()))
    return response


def expected_position(call: Call[Any]) -> int | None:
    """The position that If-Match names; None without it, and for `*`, which any state fulfils.

    Of several ETags it is the latest position: what a client has seen the past of is past.
    """
    expected = call.header(IF_MATCH)
    if expected is None or expected == ANY:
        return None
    positions = [int(match[1]) for tag in expected if (match := _OURS(tag))]
    return max(positions, default=NEVER)


def refuse_conditions(headers: Mapping[bytes, bytes], *, submits: bool, versioned: bool) -> None:
    """Raise Problem for preconditions among the headers that an operation can't keep.

    One that submits keeps If-Match if it is `versioned`. One that reads may pass the dates over: no
    answer has a Last-Modified to compare them with (RFC 9110, 13.1.3 to 13.1.5).
    """
    if not submits:
        if not versioned and headers.get(b"if-match", b"*").strip() != b"*":
            raise Problem("precondition-failed", "this has no strong ETag that If-Match could name")
        return
    kept = {b"if-match"} if versioned else set()
    if kept & headers.keys():
        # RFC 9110, 13.1.4: the date must not count where If-Match is given, which is exact.
        kept.add(b"if-unmodified-since")
    for name in CONDITIONS:
        if name in headers and name not in kept:
            remedy = (
                "send If-Match with the ETag that GET gave"
                if versioned
                else "ids are made here, so send an Idempotency-Key to make something once"
            )
            raise invalid(CONDITIONS[name], f"is a precondition that can't be kept here: {remedy}")

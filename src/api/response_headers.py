"""What every answer gets on its way out: the request's id, and gzip where it is worth it."""

import asyncio
import gzip
import re
import secrets
from typing import Final

from starlette.responses import Response
from starlette.types import Scope

REQUEST_ID: Final = "request_id"
MIN_PACKED: Final = 2048
"""Smaller answers fit into two packets as they are. Products and orders one by one are smaller."""
MIN_ASIDE: Final = 64 * 1024
"""Packing this much takes long enough to be done beside the event loop."""

_LEVEL: Final = 4
_GIVEN: Final = re.compile(rb"[!-~]{1,128}").fullmatch
_NO_SNIFFING: Final = (b"x-content-type-options", b"nosniff")
_NOT_KEPT: Final = (b"cache-control", b"no-store")
_PACKED: Final = (b"content-encoding", b"gzip")
_VARIES: Final = (b"vary", b"accept-encoding")


def identify(scope: Scope) -> None:
    """Put the request's id in the scope: the one the client gave, if it is one, or a new one."""
    given = (value for name, value in scope["headers"] if name == b"x-request-id")
    scope[REQUEST_ID] = next(filter(_GIVEN, given), None) or new_request_id()


def new_request_id() -> bytes:
    """A request id that nobody had yet."""
    return secrets.token_hex(16).encode()


async def finish(response: Response, scope: Scope) -> None:
    """Add the headers that every answer has; pack the body if it is large and whole."""
    headers = response.raw_headers
    kept = any(name == b"cache-control" for name, _ in headers)
    headers += [(b"x-request-id", scope[REQUEST_ID]), _NO_SNIFFING]
    if not kept:
        headers.append(_NOT_KEPT)
    # A stream has no body yet: packing would hold its events back.
    if len(getattr(response, "body", b"")) >= MIN_PACKED:
        await _pack(response, scope)


async def _pack(response: Response, scope: Scope) -> None:
    if any(name == b"content-encoding" for name, _ in response.raw_headers):
        return
    if _VARIES not in response.raw_headers:
        response.raw_headers.append(_VARIES)
    if not takes_gzip(scope):
        return
    body = bytes(response.body)
    if len(body) >= MIN_ASIDE:
        response.body = await asyncio.to_thread(pack, body)
    else:
        response.body = pack(body)
    length = (b"content-length", b"%d" % len(response.body))
    headers = [_weak(*h) for h in response.raw_headers if h[0] != b"content-length"]
    response.raw_headers = [*headers, length, _PACKED]


def _weak(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    """A strong ETag promises the same bytes, and packed ones are others (RFC 9110, 8.8.3)."""
    if name == b"etag" and not value.startswith(b"W/"):
        return name, b"W/" + value
    return name, value


def pack(body: bytes, level: int = _LEVEL) -> bytes:
    """The body in gzip, always the same bytes."""
    return gzip.compress(body, level, mtime=0)


def takes_gzip(scope: Scope) -> bool:
    """Whether Accept-Encoding allows gzip (RFC 9110, 12.5.3)."""
    weights: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        if name == b"accept-encoding":
            for part in value.lower().split(b","):
                coding, _, weight = part.partition(b";")
                weights[coding.strip()] = weight.replace(b" ", b"")
    weight = weights.get(b"gzip", weights.get(b"*", b"q=0"))
    return not re.fullmatch(rb"q=0(\.0*)?", weight)

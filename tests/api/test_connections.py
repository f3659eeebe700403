"""Connections: limits on what comes before the body, and what is no HTTP at all."""

import asyncio
import json
from urllib.parse import urlsplit

import httpx
import pytest

from api.http.connection import MAX_HEAD, MAX_HEADERS
from tests.harness import DEADLINE_S


async def exchange(http: httpx.AsyncClient, sent: bytes) -> bytes:
    """All that the server says to these bytes until it hangs up."""
    url = urlsplit(str(http.base_url))
    async with asyncio.timeout(DEADLINE_S):
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        try:
            writer.write(sent)
            return await reader.read()
        except ConnectionResetError:
            return b""
        finally:
            writer.close()


def refusal(answer: bytes, status: int, kind: str) -> None:
    """The answer must be this problem, with the connection closed behind it."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer[:200]
    assert b"content-type: application/problem+json" in head
    assert b"connection: close" in head.lower()
    assert json.loads(body)["type"] == f"/problems/{kind}"


@pytest.mark.parametrize(
    "sent",
    [
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /%ff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    ],
)
async def test_bytes_that_are_not_http_are_refused(http: httpx.AsyncClient, sent: bytes) -> None:
    refusal(await exchange(http, sent), 400, "bad-request")


async def test_too_many_headers_are_refused(http: httpx.AsyncClient) -> None:
    headers = b"".join(b"x-%d: y\r\n" % n for n in range(MAX_HEADERS))
    sent = b"GET /health/live HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n"
    refusal(await exchange(http, sent), 431, "head-too-large")


@pytest.mark.parametrize(
    ("part", "refused_as"),
    [
        (b"x-long: ", (431, "head-too-large")),
        (b"", (414, "target-too-long")),
        (b"x: y\r\n", (431, "head-too-large")),
    ],
)
async def test_a_request_head_over_the_maximum_size_is_refused(
    http: httpx.AsyncClient, part: bytes, refused_as: tuple[int, str]
) -> None:
    url = urlsplit(str(http.base_url))
    async with asyncio.timeout(DEADLINE_S):
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        writer.write(b"GET /health/live HTTP/1.1\r\nHost: x\r\n" if part else b"GET /")
        await writer.drain()
        writer.write(part + b"y" * (MAX_HEAD + 1))
        refusal(await reader.read(), *refused_as)
        writer.close()


async def test_a_large_request_head_within_the_limit_is_accepted(http: httpx.AsyncClient) -> None:
    value = b"y" * (MAX_HEAD // 2)
    sent = b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\nx: " + value + b"\r\n\r\n"
    assert (await exchange(http, sent)).startswith(b"HTTP/1.1 200 OK")


async def test_pipelined_requests_are_answered_in_order(http: httpx.AsyncClient) -> None:
    one = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    two = b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer = await exchange(http, one + two)
    assert answer.index(b'"live"') < answer.index(b"no-such-path")


async def test_a_silent_or_slow_client_is_timed_out(http: httpx.AsyncClient) -> None:
    """Together, because each takes as long as the server's patience."""
    head = b"POST /api/v1/orders HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    nothing, half_a_head, half_a_body = await asyncio.gather(
        exchange(http, b""),
        exchange(http, b"GET /health/live HTTP/1.1\r\nHost:"),
        exchange(http, head + b"Content-Length: 10\r\n\r\n{"),
    )
    refusal(nothing, 408, "head-too-slow")
    refusal(half_a_head, 408, "head-too-slow")
    refusal(half_a_body, 408, "body-too-slow")

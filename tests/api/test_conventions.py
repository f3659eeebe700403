"""What every answer has: a request id, no sniffing, a word on caching, gzip if it is large."""

import asyncio
import gzip

import httpx
import pytest
from starlette.datastructures import Headers
from starlette.responses import Response, StreamingResponse
from starlette.types import Message

from api.app import ROUTES
from api.http.middleware import (
    MIN_GZIP,
    MIN_GZIP_IN_THREAD,
    accepts_gzip,
    compress,
    with_request_id,
    with_response_headers,
)
from api.operation import PREFIX

from .client import list_product, order, problem, register
from .test_connections import exchange
from .test_every_route import CALLS, filled, root

GIVEN = "01a2031b-bb08-7692-9882-d0449309e6d9"


@pytest.mark.parametrize(("method", "path"), CALLS)
async def test_a_request_id_is_returned(http: httpx.AsyncClient, method: str, path: str) -> None:
    async with http.stream(
        method, root(http) + filled(path), headers={"X-Request-Id": GIVEN}
    ) as answer:
        assert answer.headers["x-request-id"] == GIVEN
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "cache-control" in answer.headers


@pytest.mark.parametrize(
    "path", [f"{PREFIX}/orders", f"{PREFIX}/orders/7", "/nowhere", "/health/live"]
)
async def test_a_request_without_an_id_gets_a_new_one(http: httpx.AsyncClient, path: str) -> None:
    answers = [await http.get(root(http) + path) for _ in range(2)]
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert len(set(ids)) == 2
    assert all(len(request_id) == 32 for request_id in ids)


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "é", "a\tb"])
async def test_a_request_id_that_is_unsafe_in_a_log_is_replaced(
    http: httpx.AsyncClient, given: str
) -> None:
    headers = {b"X-Request-Id": given.encode()}
    answer = await http.get(root(http) + "/health/live", headers=headers)
    assert answer.status_code == 200
    assert answer.headers["x-request-id"] != given
    assert len(answer.headers["x-request-id"]) == 32


async def test_the_answer_to_bytes_that_are_not_http_has_a_request_id(
    http: httpx.AsyncClient,
) -> None:
    answer = await exchange(http, b"hello\r\n\r\n")
    assert b"x-request-id: " in answer.partition(b"\r\n\r\n")[0].lower()


@pytest.mark.parametrize("path", ROUTES)
async def test_options_answers_with_the_methods_of_a_path(
    http: httpx.AsyncClient, path: str
) -> None:
    answer = await http.options(root(http) + filled(path))
    assert (answer.status_code, answer.content) == (204, b"")
    known = {"OPTIONS", *ROUTES[path]} | ({"HEAD"} if "GET" in ROUTES[path] else set())
    assert set(answer.headers["allow"].split(", ")) == known


async def test_options_of_the_server_answers_with_the_methods_of_all_paths(
    http: httpx.AsyncClient,
) -> None:
    answer = await exchange(http, b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    head = answer.partition(b"\r\n\r\n")[0].lower()
    assert head.startswith(b"http/1.1 204 ")
    assert b"allow: get, head, options, patch, post" in head
    assert b"x-request-id: " in head


async def test_options_of_an_unknown_path_is_refused(http: httpx.AsyncClient) -> None:
    problem(await http.options(root(http) + "/nowhere"), 404, "no-such-path")


async def test_a_large_page_is_compressed_for_clients_that_accept_gzip(
    http: httpx.AsyncClient,
) -> None:
    customer_id, product_id = await register(http), await list_product(http, stock=100)
    for _ in range(MIN_GZIP // 300):
        await order(http, customer_id, product_id)
    path = f"/customers/{customer_id}/orders"
    plain = await http.get(path, headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.headers["vary"] == "accept-encoding"
    async with http.stream("GET", path, headers={"Accept-Encoding": "gzip"}) as packed:
        raw = b"".join([part async for part in packed.aiter_raw()])
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.headers["vary"] == "accept-encoding"
    assert int(packed.headers["content-length"]) == len(raw) < len(plain.content)
    assert gzip.decompress(raw) == plain.content
    head = await http.head(path, headers={"Accept-Encoding": "gzip"})
    assert head.headers["content-length"] == packed.headers["content-length"]


async def test_a_small_answer_is_not_compressed(http: httpx.AsyncClient) -> None:
    answer = await http.get(root(http) + "/health/live", headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in answer.headers
    assert "vary" not in answer.headers


@pytest.mark.parametrize(
    ("accepted", "takes"),
    [
        ("gzip", True),
        ("GZIP", True),
        ("br, gzip;q=0.5", True),
        ("*", True),
        ("gzip; q=1", True),
        ("", False),
        ("identity", False),
        ("gzip;q=0", False),
        ("gzip; q=0.000, *", False),
        ("*;q=0", False),
        ("xgzip", False),
    ],
)
def test_accept_encoding_says_whether_gzip_is_accepted(accepted: str, takes: bool) -> None:
    assert accepts_gzip({"headers": [(b"accept-encoding", accepted.encode())]}) is takes


async def test_without_accept_encoding_gzip_is_not_accepted() -> None:
    assert not accepts_gzip({"headers": []})


async def sent(response: Response) -> tuple[Headers, bytes]:
    """Headers and body of a response, as a client that takes gzip gets them."""
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    scope = {"type": "http", "headers": [(b"accept-encoding", b"gzip")], "method": "GET"}
    await with_request_id(with_response_headers(response))(scope, never, send)
    start, *parts = messages
    return Headers(raw=start["headers"]), b"".join(part["body"] for part in parts)


async def never() -> Message:
    """Receive nothing: the client stays."""
    return await asyncio.Event().wait()  # type: ignore[return-value]


@pytest.mark.parametrize("size", [MIN_GZIP, MIN_GZIP_IN_THREAD + 1])
async def test_the_etag_of_a_compressed_body_is_weak(size: int) -> None:
    headers, body = await sent(Response(b"x" * size, headers={"ETag": '"7"'}))
    assert headers["etag"] == 'W/"7"'
    assert headers["content-length"] == str(len(body))
    assert gzip.decompress(body) == b"x" * size


async def test_a_stream_is_never_compressed() -> None:
    """Its first event would wait for a full block."""

    async def events() -> object:
        yield "data: 1\n\n"

    headers, body = await sent(StreamingResponse(events(), media_type="text/event-stream"))
    assert "content-encoding" not in headers
    assert "x-request-id" in headers
    assert body == b"data: 1\n\n"


async def test_a_compressed_body_is_not_compressed_again() -> None:
    packed = compress(bytes(range(256)) * 64) * 20
    headers, body = await sent(Response(packed, headers={"Content-Encoding": "gzip"}))
    assert headers.getlist("content-encoding") == ["gzip"]
    assert body == packed

"""What every answer has: a request id, no sniffing, a word on caching, gzip if it is large."""

import asyncio
import gzip
from uuid import uuid4

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

from .client import WAIT, list_product, order, problem, register
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


@pytest.mark.parametrize(
    "name", ["Idempotency-Key", "Content-Type", "Authorization", "Last-Event-ID", "X-Request-Id"]
)
@pytest.mark.parametrize("path", [f"{PREFIX}/orders", f"{PREFIX}/events", "/health/live"])
async def test_two_of_a_header_that_is_no_list_are_refused(
    http: httpx.AsyncClient, path: str, name: str
) -> None:
    """Even if they are alike: between client and API somebody may have taken the other one."""
    for second in ("application/json", "2"):
        headers = [(name, "application/json"), (name.lower(), second)]
        problem(await http.get(root(http) + path, headers=headers), 422, "invalid-fields", name)


async def test_two_content_encodings_are_one_list(http: httpx.AsyncClient) -> None:
    encodings = [("Content-Encoding", "gzip"), ("Content-Encoding", "identity")]
    headers = [("Content-Type", "application/json"), *encodings]
    answer = await http.post("/customers", content=b"{}", headers=headers)
    assert "Content-Encoding" in problem(answer, 415, "not-json")["detail"]


async def test_the_lines_of_a_list_are_read_as_one(http: httpx.AsyncClient) -> None:
    path = f"/products/{await list_product(http)}"
    etag = (await http.get(path)).headers["etag"]
    headers = [("If-None-Match", '"x"'), ("If-None-Match", f'"y", {etag}'), ("Accept", "*/*")]
    assert (await http.get(path, headers=headers)).status_code == 304


async def test_blanks_around_a_value_mean_nothing(http: httpx.AsyncClient) -> None:
    body = b'{"username": "ann"}'
    lines = (
        b"POST /api/v1/customers HTTP/1.1",
        b"Host: x ",
        b"Connection:  close",
        b"Content-Type:\tapplication/json \t",
        b"Content-Encoding: identity ",
        b"Prefer: wait=20\t ",
        b"Idempotency-Key:  %s  " % uuid4().hex.encode(),
        b"Content-Length: %d " % len(body),
    )
    answer = await exchange(http, b"\r\n".join(lines) + b"\r\n\r\n" + body)
    assert answer.startswith(b"HTTP/1.1 201 "), answer


async def test_options_of_the_server_answers_with_the_methods_of_all_paths(
    http: httpx.AsyncClient,
) -> None:
    answer = await exchange(http, b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    head = answer.partition(b"\r\n\r\n")[0].lower()
    assert head.startswith(b"http/1.1 204 ")
    assert b"allow: get, head, options, patch, post" in head
    assert b"x-request-id: " in head


@pytest.mark.parametrize(
    ("page", "may"),
    [
        ({}, True),
        ({"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}, False),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "http://evil.example", "Sec-Fetch-Site": "none"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": ""}, False),
        ({"Origin": "{scheme}://{host}"}, True),
        ({"Origin": "https://{host}"}, True),
        ({"Origin": "HTTP://{host}", "Sec-Fetch-Site": "same-origin"}, True),
        ({"Origin": "{scheme}://{host}.evil.example"}, False),
        ({"Origin": "http://127.0.0.1:1"}, False),
        ({"Origin": "http://127.0.0.1", "Sec-Fetch-Site": "same-site"}, False),
        ({"Origin": "https://api.example:8443", "Sec-Fetch-Site": "same-origin"}, True),
        ({"Origin": "http://api", "Host": "API:80"}, True),
        ({"Origin": "https://api", "Host": "api:443"}, True),
        ({"Origin": "http://api", "Host": "api:443"}, False),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "what is this"}, False),
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
    ],
)
async def test_only_pages_of_the_api_itself_may_submit(
    http: httpx.AsyncClient, page: dict[str, str], *, may: bool
) -> None:
    """A browser posts a form to this machine for any page, and so cancels an order."""
    url = http.base_url
    headers = {
        name: value.format(scheme=url.scheme, host=url.netloc.decode())
        for name, value in page.items()
    }
    for method, path in (
        ("POST", f"/orders/{uuid4()}/cancel"),
        ("PATCH", f"/products/{uuid4()}"),
        ("POST", "/orders"),
    ):
        answer = await http.request(method, path, headers=headers)
        if may:
            assert answer.status_code != 403, answer.text
        else:
            problem(answer, 403, "cors-refused", "Origin")
    assert (await http.get("/products", headers=headers)).status_code == 200


async def test_a_preflight_of_another_page_is_refused_where_no_origin_is_allowed(
    http: httpx.AsyncClient,
) -> None:
    asked = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    for path in ("/orders", f"/orders/{uuid4()}/cancel"):
        problem(await http.options(path, headers=asked), 403, "cors-refused", "Origin")
    assert (await http.options("/orders", headers={"Origin": "null"})).status_code == 204


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
        ("gzip;q=0.5, identity", False),
        ("identity;q=0.5, gzip", True),
        ("gzip;q=0.001, *;q=0", True),
        ("gzip;Q=0", False),
        ("gzip ; q=0", False),
        ('br;x=", gzip"', False),
        ('br;x="\\", gzip', False),
        (";gzip", False),
    ],
)
def test_accept_encoding_says_whether_gzip_is_accepted(accepted: str, takes: bool) -> None:
    assert accepts_gzip({"headers": [(b"accept-encoding", accepted.encode())]}) is takes


async def test_without_accept_encoding_gzip_is_not_accepted() -> None:
    assert not accepts_gzip({"headers": []})


async def sent(response: Response, **asked: str) -> tuple[Headers, bytes]:
    """Headers and body of a response, as a client that takes gzip gets them."""
    messages: list[Message] = []
    given = [(name.replace("_", "-").encode(), value.encode()) for name, value in asked.items()]

    async def send(message: Message) -> None:
        messages.append(message)

    headers = [(b"accept-encoding", b"gzip"), *given]
    scope = {"type": "http", "headers": headers, "method": "GET"}
    await with_request_id(with_response_headers(response))(scope, never, send)
    start, *parts = messages
    return Headers(raw=start["headers"]), b"".join(part["body"] for part in parts)


async def never() -> Message:
    """Receive nothing: the client stays."""
    return await asyncio.Event().wait()  # type: ignore[return-value]


@pytest.mark.parametrize("size", [MIN_GZIP, MIN_GZIP_IN_THREAD + 1])
async def test_the_etag_of_a_compressed_body_is_another_strong_one(size: int) -> None:
    headers, body = await sent(Response(b"x" * size, headers={"ETag": '"7"'}))
    assert headers["etag"] == '"7-gzip"'
    assert headers["content-length"] == str(len(body))
    assert gzip.decompress(body) == b"x" * size


@pytest.mark.parametrize("size", [0, 10, MIN_GZIP, MIN_GZIP_IN_THREAD + 1])
@pytest.mark.parametrize("etag", ['"7"', 'W/"7"'])
async def test_a_304_has_the_headers_of_its_200(size: int, etag: str) -> None:
    headers = {"ETag": etag, "Cache-Control": "no-cache", "Ledger-Position": "3", "Vary": "Origin"}
    asked = {"x_request_id": "mine"}
    full, _ = await sent(Response(b"x" * size, headers=headers), **asked)
    for given in (etag, full["etag"], "*", f'"6", {etag} , "8"'):
        short, body = await sent(
            Response(b"x" * size, headers=headers), if_none_match=given, **asked
        )
        assert body == b""
        assert [n for n in short if n.startswith("content-")] == []
        kept = [(n, v) for n, v in full.items() if not n.startswith("content-")]
        assert sorted(short.items()) == sorted(kept)
    other, body = await sent(Response(b"x" * size, headers=headers), if_none_match='"70"', **asked)
    assert (other.items(), bool(body)) == (full.items(), size > 0)


@pytest.mark.parametrize(
    "path", [path for path, ops in ROUTES.items() if 304 in getattr(ops.get("GET"), "answers", ())]
)
async def test_every_route_with_an_etag_answers_304_like_its_200(
    http: httpx.AsyncClient, path: str
) -> None:
    """Whether the body would be compressed, or not, or was before it came here."""
    long = {"name": "Long", "description": "d" * 1990, "base_price": 1, "stock": 1}
    listed = await http.post("/products", json=long, headers=WAIT)
    placed = await order(http, await register(http), listed.json()["product_id"])
    ids = {**placed, "asset": "start.js"}
    url = root(http) + path.format(**ids)
    for encoding in ("gzip", "identity", "gzip;q=0"):
        asked = {"Accept-Encoding": encoding}
        full = await http.get(url, headers=asked)
        for method in ("GET", "HEAD"):
            current = {**asked, "If-None-Match": full.headers["etag"]}
            short = await http.request(method, url, headers=current)
            assert (short.status_code, short.content) == (304, b"")
            for name in ("vary", "etag", "cache-control", "ledger-position"):
                assert short.headers.get(name) == full.headers.get(name), name
            assert "content-type" not in short.headers


async def test_the_resources_that_can_be_patched_say_how(http: httpx.AsyncClient) -> None:
    path = f"/products/{await list_product(http)}"
    assert (await http.options(path)).headers["accept-patch"] == "application/json"
    wrong = await http.patch(path, content="{}", headers={"Content-Type": "text/plain"})
    problem(wrong, 415, "not-json")
    assert wrong.headers["accept-patch"] == wrong.headers["accept"] == "application/json"
    posted = await http.post("/orders", content="{}", headers={"Content-Type": "text/plain"})
    assert posted.headers["accept"] == "application/json"
    assert "accept-patch" not in posted.headers
    assert "accept-patch" not in (await http.options("/orders")).headers


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

"""Bodies that are no good, on every route that reads one: a clear 4xx, and nothing appended."""

import asyncio
import json
from collections.abc import AsyncIterator
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import pytest

from api.requests import MAX_BODY

from .client import JSON, nothing_appended, post, problem

WRITES = [
    ("POST", "/orders"),
    ("POST", "/orders/{id}/cancel"),
    ("POST", "/customers"),
    ("POST", "/customers/{id}/deposits"),
    ("POST", "/products"),
    ("POST", "/products/{id}/receipts"),
    ("PATCH", "/products/{id}"),
]
on_every_write = pytest.mark.parametrize(("method", "path"), WRITES)


async def send(
    http: httpx.AsyncClient, method: str, path: str, body: bytes, **headers: str
) -> httpx.Response:
    """Send a body as it is; `content_type=""` leaves the header out."""
    named = {name.replace("_", "-"): value for name, value in headers.items() if value}
    url = path.format(id=uuid4())
    return await http.send(http.build_request(method, url, content=body, headers=named))


NOT_JSON = {
    "cut off": b'{"username": "ann"',
    "two": b"{} {}",
    "single quotes": b"{'username': 'ann'}",
    "trailing comma": b'{"username": "ann",}',
    "a comment": b'{} // "ann"',
    "NaN": b'{"username": NaN}',
    "Infinity": b'{"username": -Infinity}',
    "bad UTF-8": b'{"username": "\xff"}',
    "half a character": b'{"username": "\xc3"}',
    "UTF-16": '{"username": "ann"}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"username": "ann"}',
    "a control character": b'{"username": "a\nb"}',
    "a number without end": b'{"username": ' + b"9" * 5000 + b"}",
    "an exponent without end": b'{"username": 1e99999999999999999999}',
    "nested lists": b"[" * 20_000,
    "nested objects": b'{"a":' * 10_000,
    "closed nested lists": b"[" * 20_000 + b"]" * 20_000,
    "white space": b"   ",
}


@on_every_write
async def test_what_is_not_json_is_refused(http: httpx.AsyncClient, method: str, path: str) -> None:
    async with nothing_appended(http):
        for name, body in NOT_JSON.items():
            response = await send(http, method, path, body, content_type="application/json")
            found = problem(response, 400, "bad-json")
            assert "Traceback" not in response.text, name
            assert len(found["detail"]) < 300, name


@on_every_write
async def test_a_name_that_stands_twice_is_refused(
    http: httpx.AsyncClient, method: str, path: str
) -> None:
    """One reader takes the first, another the last: nobody could tell what was ordered."""
    body = b'{"quantity": 1, "username": "ann", "quantity": 100}'
    response = await send(http, method, path, body, content_type="application/json")
    problem(response, 400, "bad-json", "quantity")


async def test_a_name_that_stands_twice_further_in_is_refused_too(http: httpx.AsyncClient) -> None:
    response = await post(http, "/customers", '{"username": {"a": 1, "a": 2}}')
    problem(response, 400, "bad-json", "a")


@on_every_write
@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/xml",
        "application/jsonp",
        "application/json; charset=latin-1",
    ],
)
async def test_another_content_type_is_refused(
    http: httpx.AsyncClient, method: str, path: str, content_type: str
) -> None:
    response = await send(http, method, path, b"{}", content_type=content_type)
    problem(response, 415, "not-json")


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "Application/JSON; Charset=UTF-8",
        'application/json;charset="utf-8"',
        "application/merge-patch+json",
    ],
)
async def test_every_form_of_json_is_read(http: httpx.AsyncClient, content_type: str) -> None:
    response = await send(
        http, "POST", "/customers", b'{"username": "ann"}', content_type=content_type
    )
    assert response.status_code in (201, 202)


async def test_a_packed_body_is_refused(http: httpx.AsyncClient) -> None:
    response = await send(
        http, "POST", "/customers", b"x", content_type="application/json", content_encoding="gzip"
    )
    problem(response, 415, "not-json")


async def test_an_empty_body_is_asked_for(http: httpx.AsyncClient) -> None:
    problem(await http.post("/customers"), 400, "bad-json")


def padded(size: int) -> bytes:
    """A good body of just this size."""
    body = json.dumps({"username": "ann"}).encode()
    return body + b" " * (size - len(body))


async def test_a_body_of_the_limit_is_read(http: httpx.AsyncClient) -> None:
    assert (await post(http, "/customers", padded(MAX_BODY))).status_code in (201, 202)


@on_every_write
async def test_a_body_over_the_limit_is_refused(
    http: httpx.AsyncClient, method: str, path: str
) -> None:
    async with nothing_appended(http):
        body = padded(MAX_BODY + 1)
        response = await send(http, method, path, body, content_type="application/json")
        problem(response, 413, "body-too-large")
        assert response.headers["connection"] == "close"


async def test_a_body_that_does_not_tell_its_size_is_cut_off_at_the_limit(
    http: httpx.AsyncClient,
) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b" " * 16_384

    async with nothing_appended(http):
        response = await http.post("/customers", content=endless(), headers=JSON)
        problem(response, 413, "body-too-large")


async def test_a_client_that_hangs_up_within_its_body_appends_nothing(
    http: httpx.AsyncClient,
) -> None:
    url = urlsplit(str(http.base_url))
    head = "POST /api/v1/customers HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    async with nothing_appended(http):
        _, writer = await asyncio.open_connection(url.hostname, url.port)
        writer.write(f'{head}Content-Length: 19\r\n\r\n{{"username": "ann"'.encode())
        await writer.drain()
        writer.close()
        await writer.wait_closed()

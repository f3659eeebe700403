"""Bodies that are no good, on every route that reads one: a clear 4xx, and nothing appended."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import pytest

from api.app import ROUTES
from api.http.requests import MAX_BODY
from api.openapi import BODIES
from api.operation import PREFIX
from api.resources.orders import MAX_BATCH_BODY
from tests.edge.served import Client

from .client import JSON, nothing_appended, post, problem
from .test_connections import exchange, refusal

WRITES = [
    (method, path.removeprefix(PREFIX))
    for path, operations in ROUTES.items()
    for method, operation in operations.items()
    if operation.body
]
on_every_write = pytest.mark.parametrize(("method", "path"), WRITES)


def filled(path: str) -> str:
    """The path with ids that nobody was given."""
    return re.sub(r"\{\w+\}", str(uuid4()), path)


async def send(
    http: httpx.AsyncClient, method: str, path: str, body: bytes, **headers: str
) -> httpx.Response:
    """Send a body as it is; `content_type=""` leaves the header out."""
    named = {name.replace("_", "-"): value for name, value in headers.items() if value}
    url = filled(path)
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
    "half of a surrogate pair": rb'{"username": "\ud800"}',
    "half of a surrogate pair, the second": rb'{"username": "a\uDFFFb"}',
    "half of a surrogate pair as a name": rb'{"\ud800": 1}',
    "half of a surrogate pair as a name twice": rb'{"\ud800": 1, "\ud800": 2}',
    "half of a surrogate pair in a list": rb'{"orders": [{"a": ["\ud800"]}]}',
    "half of a surrogate pair as a nested name": rb'{"orders": [{"a": {"\udc00": 1}}]}',
    "half of a surrogate pair alone": rb'"\ud800"',
    "half of a surrogate pair before an escape": rb'{"username": "\ud800\\udc00"}',
    "half of a surrogate pair in UTF-8": b'{"username": "\xed\xa0\x80"}',
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
async def test_a_duplicate_field_is_refused(
    http: httpx.AsyncClient, method: str, path: str
) -> None:
    """One reader takes the first, another the last: nobody could tell what was ordered."""
    body = b'{"quantity": 1, "username": "ann", "quantity": 100}'
    response = await send(http, method, path, body, content_type="application/json")
    problem(response, 400, "bad-json", "quantity")


async def test_a_duplicate_field_of_a_nested_object_is_refused(http: httpx.AsyncClient) -> None:
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
        "application/json; charset=utf-8; charset=latin-1",
        "application/json; charset=",
        "application/+json",
        "text/json",
        f"application/json; x={'x' * 300}",
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
        "application/json;",
        "application/json ; charset = utf-8 ;",
        "application/json; profile=x",
        "application/vnd.api+json; charset=UTF8",
    ],
)
async def test_every_json_content_type_is_accepted(
    http: httpx.AsyncClient, content_type: str
) -> None:
    response = await send(
        http, "POST", "/customers", b'{"username": "ann"}', content_type=content_type
    )
    assert response.status_code in (201, 202)


async def test_the_charset_of_a_content_type_is_named(http: httpx.AsyncClient) -> None:
    content_type = "application/json; charset=ISO-8859-1"
    response = await send(http, "POST", "/customers", b"{}", content_type=content_type)
    assert "iso-8859-1" in problem(response, 415, "not-json")["detail"]


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ('{"username": "ann"}'.encode("utf-8-sig"), "byte order mark"),
        ('{"username": "ann"}'.encode("utf-16"), "UTF-16"),
        ('{"username": "ann"}'.encode("utf-16-le"), "UTF-16-LE"),
        ('{"username": "ann"}'.encode("utf-16-be"), "UTF-16-BE"),
        ('{"username": "ann"}'.encode("utf-32"), "UTF-32"),
        ('{"username": "é"}'.encode("latin-1"), "byte 15"),
        (b'{"username": ' + b"9" * 5000 + b"}", "4300 digits"),
        (b'{"username": 1e99999999999999999999}', "exponent"),
    ],
)
async def test_what_a_body_is_instead_of_json_is_named(
    http: httpx.AsyncClient, body: bytes, name: str
) -> None:
    assert name in problem(await post(http, "/customers", body), 400, "bad-json")["detail"]


async def test_a_compressed_body_is_refused(http: httpx.AsyncClient) -> None:
    response = await send(
        http, "POST", "/customers", b"x", content_type="application/json", content_encoding="gzip"
    )
    problem(response, 415, "not-json")


async def test_an_empty_body_is_refused(http: httpx.AsyncClient) -> None:
    problem(await http.post("/customers"), 400, "bad-json")


def padded(size: int) -> bytes:
    """A good body of just this size."""
    body = json.dumps({"username": "ann"}).encode()
    return body + b" " * (size - len(body))


async def test_a_body_of_the_maximum_size_is_accepted(http: httpx.AsyncClient) -> None:
    assert (await post(http, "/customers", padded(MAX_BODY))).status_code in (201, 202)


@on_every_write
async def test_a_body_over_the_maximum_size_is_refused(
    http: httpx.AsyncClient, method: str, path: str
) -> None:
    async with nothing_appended(http):
        limit = MAX_BATCH_BODY if path == "/orders/batch" else MAX_BODY
        body = padded(limit + 1)
        response = await send(http, method, path, body, content_type="application/json")
        problem(response, 413, "body-too-large")
        assert response.headers["connection"] == "close"


async def test_a_chunked_body_is_refused_at_the_maximum_size(
    http: httpx.AsyncClient,
) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b" " * 16_384

    async with nothing_appended(http):
        response = await http.post("/customers", content=endless(), headers=JSON)
        problem(response, 413, "body-too-large")


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_client_that_sends_megabytes_before_it_reads_is_answered(
    http: httpx.AsyncClient, *, chunked: bool
) -> None:
    body = b" " * (3 << 20)
    head = "POST /api/v1/orders/batch HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    if chunked:
        framed = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    else:
        framed = b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    async with nothing_appended(http):
        client = await asyncio.to_thread(Client, http.base_url.port)
        answer = await asyncio.to_thread(lambda: client.send(head.encode() + framed).read())
        refusal(answer, 413, "body-too-large")


async def test_a_client_that_disconnects_within_its_body_appends_nothing(
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


FIELDS = [
    pytest.param(method, path.removeprefix(PREFIX), BODIES[operation.body], name)
    for path, operations in ROUTES.items()
    for method, operation in operations.items()
    if operation.body
    for name in operation.body.model_fields
]
INVALID_VALUES = {
    "null": "null",
    "an object": "{}",
    "an empty list": "[]",
    "negative": "-1",
    "beyond 64 bits": str(2**64),
    "thousands of digits": "9" * 4000,
    "beyond every float": "1e400",
    "an exponent that fills the memory": "1e999999",
    "smaller than every cent": "1e-400",
    "nested lists": "[" * 400 + "]" * 400,
    "nested objects": '{"a":' * 400 + "1" + "}" * 400,
}


@pytest.mark.parametrize(("method", "path", "example", "field"), FIELDS)
async def test_an_invalid_field_is_named(
    http: httpx.AsyncClient, method: str, path: str, example: dict[str, object], field: str
) -> None:
    async with nothing_appended(http):
        for name, value in INVALID_VALUES.items():
            good = {key: json.dumps(given) for key, given in example.items()}
            pairs = (f'"{key}": {text}' for key, text in {**good, field: value}.items())
            body = f"{{{', '.join(pairs)}}}".encode()
            response = await send(http, method, path, body, content_type="application/json")
            found = problem(response, 422, "invalid-fields")
            assert [e for e in found["errors"] if e["field"].startswith(field)], (name, found)
            assert len(response.content) < 1000, name


async def test_a_body_that_does_not_arrive_times_out_on_every_write(
    http: httpx.AsyncClient,
) -> None:
    """Together, because each takes as long as the server's patience."""
    async with nothing_appended(http):
        heads = [
            f"{method} {PREFIX}{filled(path)} HTTP/1.1\r\nHost: x\r\n"
            "Content-Type: application/json\r\nContent-Length: 10\r\n\r\n{"
            for method, path in WRITES
        ]
        for answer in await asyncio.gather(*(exchange(http, head.encode()) for head in heads)):
            refusal(answer, 408, "body-too-slow")

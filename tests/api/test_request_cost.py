"""No request takes the event loop for long, however large and odd it is within its limits."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import pytest
from starlette.types import Message

from api.http.connection import MAX_HEAD, MAX_TARGET
from api.http.requests import MAX_BODY, MAX_VALUES, read_body
from api.operation import PREFIX
from api.resources.orders import MAX_BATCH_BODY
from api.schemas import MAX_BATCH, PlaceOrders
from tests.harness import DEADLINE_S, Stack, start_stack
from tests.private_servers import Servers

MAX_LOOP_MS = 50.0
# Other processes on the machine can only make a request dearer: the cheapest of some counts.
TRIES = 3
# What a head has besides the header that is tried.
ROOM = 1024
ORDER = {"customer_id": str(uuid4()), "product_id": str(uuid4())}


@pytest.fixture(scope="module")
async def logging_stack(servers: Servers) -> AsyncIterator[Stack]:
    """A ledger whose API logs each request."""
    stack = await start_stack(servers, access_log=True)
    yield stack
    await stack.stop()


def loop_ms(stack: Stack) -> float:
    """How long the event loop's thread has been on a processor (proc(5), schedstat)."""
    numbers = Path(f"/proc/{stack.processes['api'].pid}/schedstat").read_text().split()
    return int(numbers[0]) / 1e6


async def status_of(stack: Stack, sent: bytes) -> int:
    """The status that these bytes are answered with."""
    url = urlsplit(stack.url)
    async with asyncio.timeout(DEADLINE_S):
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        try:
            writer.write(sent)
            return int((await reader.readline()).split()[1])
        finally:
            writer.close()


async def assert_is_cheap(stack: Stack, status: int, head: bytes, body: bytes = b"") -> None:
    """A request with this answer must take the loop for less than MAX_LOOP_MS."""
    sent = b"%s\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n%s" % (head, len(body), body)
    costs = []
    for _ in range(TRIES):
        before_ms = loop_ms(stack)
        assert await status_of(stack, sent) == status
        costs.append(loop_ms(stack) - before_ms)
    assert min(costs) < MAX_LOOP_MS


def repeated(part: str, size: int) -> str:
    """The part over and over, in at most this many bytes."""
    return part * (size // len(part.encode()))


def named(count: int, last: str = "x") -> str:
    """The inside of an object with so many short names."""
    return ",".join(f'"{n:x}":1' for n in range(count)) + f',"{last}":2'


def batch(orders: list[str]) -> str:
    """The body of a batch of these orders."""
    return f'{{"orders":[{",".join(orders)}]}}'


SPACE = MAX_BATCH_BODY - 100
BATCHES = {
    "as many names as fit": (413, f"{{{named(24_000)}}}"),
    "as many names as fit, the first one twice": (413, f"{{{named(24_000, last='0')}}}"),
    "as many names as are read, the first one twice": (400, f"{{{named(MAX_VALUES - 2, '0')}}}"),
    "as many unknown names as are read": (422, f"{{{named(MAX_VALUES - 2)}}}"),
    "every field of every order wrong": (
        422,
        batch(['{"customer_id":1,"product_id":"{2}","quantity":"3","x":4}'] * MAX_BATCH),
    ),
    "empty orders": (413, batch([repeated("{},", SPACE) + "{}"])),
    "nested orders": (400, batch(["[" * 900 + "]" * 900] * 140)),
    "deeply nested": (400, "[" * SPACE),
    "nested as deeply as is read": (400, "[" * MAX_VALUES),
    "numbers": (413, batch([repeated("1.5,", SPACE) + "1"])),
    "the longest whole numbers": (422, batch(["9" * 4300] * 60)),
    "long decimals": (422, batch(["9" * 4300 + ".5"] * 60)),
    "one decimal": (422, batch([f"0.{'9' * (SPACE - 20)}"])),
    "one whole number": (400, batch(["9" * (SPACE - 20)])),
    "one exponent": (400, batch([f"1e{'9' * (SPACE - 20)}"])),
    "one string of escapes": (422, batch([f'"{repeated(chr(92) + "u00e9", SPACE - 20)}"'])),
    "half pairs behind escapes": (400, batch([f'"{repeated(chr(92) * 2, SPACE - 40)}\\ud800"'])),
    "blanks": (400, " " * SPACE),
    "no end": (400, f'{{"orders":["{"x" * (SPACE - 20)}'),
}


@pytest.mark.parametrize("name", BATCHES)
async def test_no_body_of_a_batch_takes_the_loop_for_long(logging_stack: Stack, name: str) -> None:
    status, body = BATCHES[name]
    head = f"POST {PREFIX}/orders/batch HTTP/1.1\r\nContent-Type: application/json"
    assert len(body) <= MAX_BATCH_BODY
    await assert_is_cheap(logging_stack, status, head.encode(), body.encode())


@pytest.mark.parametrize("key", ["", f"\r\nIdempotency-Key: {UUID(int=7)}"])
async def test_a_whole_batch_does_not_take_the_loop_for_long(
    logging_stack: Stack, key: str
) -> None:
    head = f"POST {PREFIX}/orders/batch HTTP/1.1\r\nContent-Type: application/json{key}"
    body = json.dumps({"orders": [ORDER] * MAX_BATCH})
    await assert_is_cheap(logging_stack, 202, head.encode(), body.encode())


MARKS = repeated("\u0301\u0316", 3000)
BODIES = {
    "a decimal of 60,000 digits": (422, "products", '"base_price":' + "9" * 60_000 + ".5"),
    "60,000 decimals": (422, "products", '"base_price":0.' + "0" * 60_000 + "1"),
    "a large exponent": (422, "products", '"base_price":1e999999,"stock":1e999999'),
    "a small exponent": (422, "products", '"base_price":1e-999999,"stock":1e-999999'),
    "a whole number of 4,300 digits": (422, "products", f'"stock":{"9" * 4300}'),
    "60,000 zeros behind a whole number": (422, "products", f'"stock":1.{"0" * 60_000}'),
    "a long id": (422, "orders", f'"customer_id":"{"a" * 60_000}"'),
    "a long name": (422, "customers", f'"username":"{"é" * 30_000}"'),
    "a long name of marks": (422, "customers", f'"username":"a{repeated(MARKS, 60_000)}"'),
    "a description of marks": (422, "products", f'"description":"a{MARKS}"'),
    "a long unknown name": (422, "orders", f'"{"x" * 60_000}":1'),
}


@pytest.mark.parametrize("name", BODIES)
async def test_no_field_takes_the_loop_for_long(logging_stack: Stack, name: str) -> None:
    status, path, fields = BODIES[name]
    body = f"{{{fields}}}".encode()
    head = f"POST {PREFIX}/{path} HTTP/1.1\r\nContent-Type: application/json"
    assert len(body) <= MAX_BODY
    await assert_is_cheap(logging_stack, status, head.encode(), body)


SLASHED = repeated("a://x:", MAX_TARGET - 100)
TARGETS = {
    "passwords in the path": (404, f"/{SLASHED}"),
    "passwords in the path, with an end": (404, f"/{SLASHED}@"),
    "passwords in a path that is too long": (414, f"/{repeated('a://x:', MAX_HEAD - ROOM)}@"),
    "credentials in the path": (404, f"/{repeated('bearer%20', MAX_TARGET - 100)}"),
    "slashes": (404, repeated("/", MAX_TARGET - 100)),
    "encoded slashes": (422, f"{PREFIX}/orders/{repeated('%2F', MAX_TARGET - 100)}"),
    "an id": (422, f"{PREFIX}/orders/{'a' * (MAX_TARGET - 100)}"),
    "encoded bytes": (422, f"{PREFIX}/orders/{repeated('%41', MAX_TARGET - 100)}"),
    "a broken encoding": (400, f"{PREFIX}/orders/{repeated('%ff', MAX_TARGET - 100)}"),
    "a query of names": (422, f"{PREFIX}/orders?{repeated('a=&', MAX_TARGET - 100)}"),
    "a query of one name": (422, f"{PREFIX}/orders?{'a' * (MAX_TARGET - 100)}"),
    "a query of one number": (422, f"{PREFIX}/orders?limit={'9' * (MAX_TARGET - 100)}"),
    "a query of encoded bytes": (422, f"{PREFIX}/orders?status={repeated('%41', 8000)}"),
    "a query of plus signs": (422, f"{PREFIX}/orders?status={'+' * (MAX_TARGET - 100)}"),
}


@pytest.mark.parametrize("name", TARGETS)
async def test_no_target_takes_the_loop_for_long(logging_stack: Stack, name: str) -> None:
    status, target = TARGETS[name]
    await assert_is_cheap(logging_stack, status, f"GET {target} HTTP/1.1".encode())


ROOMY = MAX_HEAD - ROOM
TRACE = f"00-{'a' * 32}-{'b' * 16}-01"
POST_ORDER = f"POST {PREFIX}/orders HTTP/1.1\r\nContent-Type: application/json"
GET_PRODUCT = f"GET {PREFIX}/products/{uuid4()} HTTP/1.1"
HEADERS = {
    "Prefer": (202, POST_ORDER, repeated(",wait=x;", ROOMY)),
    "Prefer: wait": (202, POST_ORDER, f"wait={'0' * ROOMY}"),
    "Idempotency-Key": (422, POST_ORDER, f'"{repeated(chr(92) * 2, ROOMY)}'),
    "traceparent": (202, POST_ORDER, f"{TRACE}-{repeated(' -', ROOMY)}x"),
    "traceparent in blanks": (202, POST_ORDER, f"{TRACE}{repeated(' ', ROOMY)}x"),
    "tracestate": (202, POST_ORDER, repeated("a=b,", ROOMY)),
    "X-Request-Id": (202, POST_ORDER, "x" * ROOMY),
    "Authorization": (202, POST_ORDER, repeated("Bearer ", ROOMY)),
    "Content-Encoding": (415, POST_ORDER, repeated("identity,", ROOMY)),
    "Content-Type": (415, f"POST {PREFIX}/orders HTTP/1.1", f"application/{'+' * ROOMY}json"),
    "content-type": (
        415,
        f"POST {PREFIX}/orders HTTP/1.1",
        f"application/json{repeated(';charset=utf-8', ROOMY)}",
    ),
    "If-None-Match": (404, GET_PRODUCT, repeated('W/"a", ', ROOMY)),
    "Accept-Encoding": (404, GET_PRODUCT, repeated("gzip;q=0.000,", ROOMY)),
    "Accept": (200, f"GET {PREFIX}/events?limit=1 HTTP/1.1", repeated("a;b,", ROOMY)),
    "accept": (200, "GET /metrics HTTP/1.1", repeated("text/plain;version=1,", ROOMY)),
    "Last-Event-ID": (
        422,
        f"GET {PREFIX}/events HTTP/1.1\r\nAccept: text/event-stream",
        "9" * ROOMY,
    ),
}


@pytest.mark.parametrize("name", HEADERS)
async def test_no_header_takes_the_loop_for_long(logging_stack: Stack, name: str) -> None:
    status, head, value = HEADERS[name]
    body = json.dumps(ORDER) if head.startswith("POST") else ""
    sent = f"{head}\r\n{name.partition(':')[0].partition(' ')[0]}: {value}"
    await assert_is_cheap(logging_stack, status, sent.encode(), body.encode())


async def test_a_body_in_pieces_of_one_byte_is_collected_in_linear_time() -> None:
    body = json.dumps({"orders": [ORDER]}).encode().ljust(MAX_BATCH_BODY)
    pieces = iter(body)

    async def receive() -> Message:
        piece = next(pieces, None)
        content = b"" if piece is None else bytes((piece,))
        return {"type": "http.request", "body": content, "more_body": piece is not None}

    started_at = time.process_time()
    headers = {b"content-type": b"application/json"}
    assert (await read_body(receive, headers, PlaceOrders, MAX_BATCH_BODY)).orders
    # A copy of all that came before, for each of them, would be 34 GB.
    assert time.process_time() - started_at < 1

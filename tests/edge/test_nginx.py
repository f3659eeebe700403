"""deploy/nginx.conf: what a client and the API get of each other through nginx."""

import asyncio
import json
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from api.http.problems import KINDS
from api.resources.orders import MAX_BATCH_BODY
from tests.harness import Stack, eventually, start_stack
from tests.private_servers import Servers

from .proxied import NAME, Proxy, Upstream, running_nginx
from .served import Answer, parse_answers

AT_ONCE_S = 10.0  # sooner than a stream's heartbeat


@pytest.fixture(scope="module")
async def ledger(servers: Servers) -> AsyncIterator[Stack]:
    stack = await start_stack(servers, auth="outside")
    yield stack
    await stack.stop()


@pytest.fixture(scope="module")
def proxy(
    servers: Servers, ledger: Stack, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    prefix = tmp_path_factory.mktemp("nginx") / "api"
    with running_nginx(prefix, servers.home, ledger.settings.api_port) as running:
        yield running


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with closing(Upstream()) as listening:
        yield listening


@pytest.fixture
def before_upstream(servers: Servers, upstream: Upstream, tmp_path: Path) -> Iterator[Proxy]:
    with running_nginx(tmp_path / "nginx", servers.home, upstream.port) as running:
        yield running


def problem_of(answer: httpx.Response, kind: str) -> None:
    """Check that an answer of nginx is a problem as the API would say it."""
    content = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"]
    assert content["status"] == answer.status_code
    assert content["detail"]
    if kind == "about:blank":
        assert content["type"] == kind
        return
    assert content["type"] == f"/problems/{kind}"
    assert (content["status"], content["title"]) == (KINDS[kind].status, KINDS[kind].title)


async def product_and_customer(http: httpx.AsyncClient, stock: int = 10) -> dict[str, str]:
    """Ids of a new product and a new customer, as an order names them."""
    product = {"name": "Lamp", "description": "", "base_price": 10, "stock": stock}
    listed = await http.post("/api/v1/products", json=product, headers={"Prefer": "wait=30"})
    named = {"username": "ada"}
    registered = await http.post("/api/v1/customers", json=named, headers={"Prefer": "wait=30"})
    assert (listed.status_code, registered.status_code) == (201, 201)
    return {
        "product_id": listed.json()["product_id"],
        "customer_id": registered.json()["customer_id"],
    }


async def test_an_order_is_placed_over_tls_and_http2(proxy: Proxy) -> None:
    async with proxy.client() as http:
        order = await product_and_customer(http)
    done = await asyncio.to_thread(
        subprocess.run,
        proxy.curl(
            *("--json", json.dumps(order), "--header", "Prefer: wait=30"),
            *("--write-out", "\n%{http_version} %{http_code}", f"{proxy.url}/api/v1/orders"),
        ),
        capture_output=True,
        check=True,
        text=True,
    )
    body, _, outcome = done.stdout.rpartition("\n")
    assert outcome == "2 201"
    assert json.loads(body)["status"] == "COMPLETED"


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
async def test_events_of_a_stream_arrive_at_once(proxy: Proxy, version: str) -> None:
    command = proxy.curl(version, "--header", "Accept: text/event-stream")
    process = await asyncio.create_subprocess_exec(
        *command, f"{proxy.url}/api/v1/events", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout
    try:
        for number in range(2):
            async with proxy.client() as http:
                answer = await http.post("/api/v1/customers", json={"username": f"n{number}"})
            customer_id = answer.json()["customer_id"].encode()
            async with asyncio.timeout(AT_ONCE_S):
                while customer_id not in await process.stdout.readline():
                    assert process.returncode is None
    finally:
        process.terminate()
        await process.wait()


async def test_a_body_over_the_limit_is_refused_with_a_problem(proxy: Proxy) -> None:
    async with proxy.client() as http:
        at_limit = await http.post("/api/v1/orders/batch", content=b" " * MAX_BATCH_BODY)
        assert at_limit.status_code != 413
        beyond = await http.post("/api/v1/orders/batch", content=b" " * (MAX_BATCH_BODY + 1))
    assert beyond.status_code == 413
    problem_of(beyond, "body-too-large")


@pytest.mark.parametrize(
    ("method", "path", "headers", "kind"),
    [
        ("GET", "/" + "x" * 9000, {}, "target-too-long"),
        ("GET", "/", {"X-Long": "x" * 9000}, "head-too-large"),
        ("GET", "/metrics", {}, "no-such-path"),
        ("TRACE", "/", {}, "method-not-allowed"),
        ("GET", "/", {"Host": "other.example.com"}, "misdirected-host"),
        ("GET", "/", {"Host": "a b"}, "bad-request"),
    ],
)
async def test_what_nginx_refuses_is_a_problem(
    proxy: Proxy, method: str, path: str, headers: dict[str, str], kind: str
) -> None:
    async with proxy.client() as http:
        answer = await http.request(method, path, headers=headers)
    assert answer.status_code == KINDS[kind].status
    problem_of(answer, kind)


def test_an_unknown_transfer_coding_is_refused_with_a_problem(proxy: Proxy) -> None:
    with proxy.connect() as client:
        head = f"POST / HTTP/1.1\r\nHost: {NAME}\r\nTransfer-Encoding: gzip\r\n\r\n"
        client.sendall(head.encode())
        (answer,) = parse_answers(b"".join(iter(lambda: client.recv(1 << 16), b"")))
    assert (answer.status, answer.problem) == (501, "unknown-coding")


async def test_plain_http_is_refused_with_a_problem(proxy: Proxy) -> None:
    async with httpx.AsyncClient() as http:
        answer = await http.get(f"http://127.0.0.1:{proxy.port}/", headers={"Host": NAME})
    problem_of(answer, "bad-request")


def test_no_handshake_is_made_for_another_name(proxy: Proxy) -> None:
    with (
        socket.create_connection(("127.0.0.1", proxy.port)) as plain,
        pytest.raises(ssl.SSLError, match="unrecognized name"),
    ):
        proxy.context.wrap_socket(plain, server_hostname="other.example.com")


async def test_problems_of_the_api_pass_unchanged(proxy: Proxy) -> None:
    async with proxy.client() as http:
        answer = await http.get(f"/api/v1/orders/{uuid4()}", headers={"X-Request-Id": "mine-1"})
    problem_of(answer, "unknown-order")
    assert answer.headers["x-request-id"] == "mine-1"
    assert answer.json()["instance"].startswith("/api/v1/orders/")


async def test_an_api_that_asks_nobody_for_a_key_answers_nobody_from_outside(
    servers: Servers, stack: Stack, tmp_path: Path
) -> None:
    with running_nginx(tmp_path / "nginx", servers.home, stack.settings.api_port) as open_api:
        async with open_api.client() as http:
            answer = await http.get("/api/v1/products")
    problem_of(answer, "misdirected-host")


def flood(proxy: Proxy, address: str) -> list[Answer]:
    """The answers to a hundred requests that one client sends at once."""
    request = f"GET /health/live HTTP/1.1\r\nHost: {NAME}\r\n"
    with proxy.connect(address) as client:
        client.sendall(
            f"{request}\r\n".encode() * 99 + f"{request}Connection: close\r\n\r\n".encode()
        )
        return parse_answers(b"".join(iter(lambda: client.recv(1 << 16), b"")))


async def test_one_address_is_limited_and_others_and_holders_of_keys_are_not(
    proxy: Proxy,
) -> None:
    flooding, other = proxy.client("127.0.0.3"), proxy.client("127.0.0.4")
    async with flooding, other:

        async def limited() -> httpx.Response | None:
            floods = [asyncio.to_thread(flood, proxy, "127.0.0.3") for _ in range(8)]
            answers = [answer for answers in await asyncio.gather(*floods) for answer in answers]
            first = next((answer for answer in answers if answer.status == 429), None)
            return first and httpx.Response(429, headers=first.headers, content=first.body)

        answer = await eventually(limited, "the flood is limited")
        problem_of(answer, "too-many-requests")
        assert answer.headers["retry-after"] == "1"
        assert (await other.get("/health/live")).status_code == 200
        keyed = {"Authorization": "Bearer lk_any"}
        assert (await flooding.get("/health/live", headers=keyed)).status_code == 200
    assert {"127.0.0.3", "127.0.0.4"} <= {line["client"] for line in proxy.log()}


async def test_the_api_down_is_a_problem_that_says_so_and_orders_nothing(
    ledger: Stack, proxy: Proxy
) -> None:
    async with proxy.client() as http:
        order = await product_and_customer(http)
        await asyncio.to_thread(ledger.kill, "api")
        answer = await http.post("/api/v1/orders", json=order)
        problem_of(answer, "about:blank")
        assert (answer.status_code, answer.json()["accepted"]) == (502, "no")
        assert answer.headers["retry-after"] == "1"
        ledger.start("api")
        await ledger.ready()
        again = await http.post("/api/v1/orders", json=order, headers={"Prefer": "wait=30"})
        assert again.status_code == 201
        orders = await http.get("/api/v1/orders", params={"customer_id": order["customer_id"]})
        assert [o["order_id"] for o in orders.json()["items"]] == [again.json()["order_id"]]


async def test_bodies_of_upgrades_are_never_taken_for_requests_on_kept_connections(
    proxy: Proxy,
) -> None:
    hidden = f"POST /api/v1/customers HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: 18\r\n\r\n"
    body = hidden + '{"username":"eve"}'
    async with proxy.client() as http:
        for upgrade in ("h2c", "websocket"):
            for _ in range(20):
                headers = {"Connection": "Upgrade", "Upgrade": upgrade}
                answer = await http.post("/api/v1/orders", content=body, headers=headers)
                assert answer.json()["type"] == "/problems/not-json"
                live = await http.get("/health/live")
                assert (live.status_code, live.json()) == (200, {"status": "live"})
        events = await http.get("/api/v1/events", params={"limit": 500})
        assert "eve" not in events.text


def ok(connection: socket.socket, body: bytes = b"{}") -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


def test_the_api_sees_nothing_of_a_request_before_it_is_here_as_a_whole(
    before_upstream: Proxy, upstream: Upstream
) -> None:
    start = f"POST /slow HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: 4\r\n\r\n"
    with before_upstream.connect() as slow, before_upstream.connect() as quick:
        slow.sendall(start.encode() + b"bo")
        quick.sendall(f"GET /quick HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
        connection, request = upstream.next()
        assert request.startswith(b"GET /quick ")
        ok(connection)
        assert quick.recv(1 << 16)
        slow.sendall(b"dy")
        connection, request = upstream.next()
        assert request.startswith(b"POST /slow ")
        assert request.endswith(b"\r\n\r\nbody")
        ok(connection)
        assert slow.recv(1 << 16)


def test_the_api_is_told_the_address_and_not_what_a_client_says_of_it(
    before_upstream: Proxy, upstream: Upstream
) -> None:
    forged = (
        "X-Forwarded-For: 1.2.3.4\r\nForwarded: for=1.2.3.4\r\nX-Request-Id: bad id\r\n"
        "Connection: Upgrade\r\nUpgrade: h2c\r\n"
    )
    with before_upstream.connect() as client:
        client.sendall(f"GET / HTTP/1.1\r\nHost: {NAME}\r\n{forged}\r\n".encode())
        first, request = upstream.next()
        ok(first)
        assert client.recv(1 << 16)
        client.sendall(f"GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
        second, _ = upstream.next()
        ok(second)
    head = dict(line.lower().split(": ", 1) for line in request.decode().split("\r\n")[1:-2])
    assert head["host"] == NAME
    assert head["x-forwarded-for"] == "127.0.0.1"
    assert head["x-forwarded-proto"] == "https"
    assert len(head["x-request-id"]) == 32
    assert not head.keys() & {"forwarded", "upgrade", "connection"}
    assert first is second, "the connection was not kept"


async def test_a_post_that_may_have_been_taken_is_not_sent_twice(
    before_upstream: Proxy, upstream: Upstream
) -> None:
    async with before_upstream.client() as http:
        for _ in range(2):
            # On a kept connection, too, where nginx would try a GET again.
            kept = asyncio.create_task(http.get("/"))
            ok((await asyncio.to_thread(upstream.next))[0])
            await kept
            sent = asyncio.create_task(http.post("/api/v1/orders", json={}))
            connection, request = await asyncio.to_thread(upstream.next)
            assert request.startswith(b"POST ")
            connection.shutdown(socket.SHUT_RDWR)
            answer = await sent
            problem_of(answer, "about:blank")
            assert (answer.status_code, answer.json()["accepted"]) == (502, "unknown")
    assert upstream.requests.empty()

"""Whatever bytes come, and however they are cut: the right answers in order, or a refusal."""

import json
from collections.abc import Awaitable, Callable, Iterator
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness import Stack, eventually

from .served import HOST, Client, Served, parse_answers, served
from .test_server import echoed

# A body of 100 kB is no example to read.
pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")

UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served() as running:
        yield running


class Sent(NamedTuple):
    """A request, and the body that its answer must echo; None if it's answered without."""

    data: bytes
    echo: str | None


# A body may look like anything, the next request among it.
BODIES = st.one_of(
    st.binary(max_size=200),
    st.sampled_from([b"\r\n\r\n", b"0\r\n\r\n", b"GET /hidden HTTP/1.1\r\nHost: x\r\n\r\n"]),
    st.integers(1, 100_000).map(lambda size: b"y" * size),
)
HEADERS = st.lists(
    st.sampled_from([b"", UPGRADE, b"X: y\r\n", b"Expect: 100-continue\r\n", b"A:  b \r\n"]),
    max_size=2,
    unique=True,
).map(b"".join)


@st.composite
def requests(draw: st.DrawFn) -> Sent:
    """A request that is right."""
    path = draw(st.sampled_from([b"/", b"/early"]))
    body, headers = draw(BODIES), draw(HEADERS)
    if b"Expect" in headers and (path == b"/early" or not body):
        headers = b""  # the connection may end then
    framing = draw(st.sampled_from(["none", "length", "chunked"]))
    if framing == "none":
        data = b"GET %b HTTP/1.1\r\n%b%b\r\n" % (path, HOST, headers)
        return Sent(data, "" if path == b"/" else None)
    head = b"POST %b HTTP/1.1\r\n%b%b" % (path, HOST, headers)
    if framing == "length":
        data = b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body)
    else:
        data = b"%bTransfer-Encoding: chunked\r\n\r\n" % head
        at = 0
        while at < len(body):
            size = draw(st.integers(1, max(1, len(body) - at)))
            extension = draw(st.sampled_from([b"", b";a=b"]))
            data += b"%x%b\r\n%b\r\n" % (len(body[at : at + size]), extension, body[at : at + size])
            at += size
        data += b"0\r\n%b\r\n" % draw(st.sampled_from([b"", b"Trailer-Field: t\r\n"]))
    return Sent(data, body.decode("latin-1") if path == b"/" else None)


@given(st.lists(requests(), min_size=1, max_size=6), st.lists(st.floats(0, 1), max_size=8))
def test_right_requests_are_answered_in_order_wherever_they_are_cut(
    server: Served, sent: list[Sent], shares: list[float]
) -> None:
    stream = b"".join(request.data for request in sent)
    cuts = sorted(int(share * len(stream)) for share in shares)
    client = server.connect()
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        client.send(stream[start:end])
    answers = [answer for answer in client.send_end().answers() if answer.status != 100]
    assert [answer.status for answer in answers] == [200] * len(sent)
    for answer, request in zip(answers, sent, strict=True):
        assert request.echo is None or echoed(answer.body) == request.echo


@st.composite
def damaged(draw: st.DrawFn, requests: st.SearchStrategy[Sent]) -> bytes:
    """Requests with some bytes of them changed, lost or doubled; or no requests at all."""
    parts = draw(st.lists(requests, min_size=1, max_size=3))
    stream = bytearray(b"".join(request.data for request in parts))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(stream) - 1)))
        match draw(st.sampled_from(["change", "lose", "double", "cut", "insert"])):
            case "change":
                stream[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case "lose":
                del stream[at : at + draw(st.integers(1, 20))]
            case "double":
                stream[at:at] = stream[at : at + draw(st.integers(1, 60))]
            case "cut":
                del stream[at:]
            case "insert":
                stream[at:at] = draw(
                    st.sampled_from(
                        [b"\r\n", b"\n", b"\0", b"Content-Length: 3\r\n", b"Host: y\r\n"]
                    )
                )
    return bytes(stream)


@given(damaged(requests()))
def test_wrong_bytes_are_answered_or_refused_and_never_waited_for(
    server: Served, sent: bytes
) -> None:
    client = server.connect()
    try:
        received = client.send(sent).send_end().read()
    except (ConnectionResetError, BrokenPipeError):
        return  # too much of a body that nobody reads
    for answer in parse_answers(received):
        if answer.status not in (100, 200):
            assert answer.problem
            assert answer.headers["connection"] == "close"
    assert not server.server.connections.unparsed._sizes


@st.composite
def orders(draw: st.DrawFn) -> Sent:
    """An order for what is not there, so its decision is FAILED."""
    ids = {"customer_id": str(draw(st.uuids())), "product_id": str(draw(st.uuids()))}
    body = json.dumps(ids).encode()
    head = b"POST /api/v1/orders HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    if draw(st.booleans()):
        head += b"Idempotency-Key: %b\r\n" % draw(st.uuids()).hex.encode()
    if draw(st.booleans()):
        framed = b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    else:
        framed = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    return Sent(head + framed, None)


async def test_of_damaged_orders_those_answered_202_are_recorded_and_no_others(
    make_stack: Callable[..., Awaitable[Stack]],
) -> None:
    stack = await make_stack()
    accepted = set[str]()

    @given(damaged(orders()), st.floats(0, 1))
    def send(sent: bytes, share: float) -> None:
        client, cut = Client(stack.settings.api_port), int(share * len(sent))
        for answer in client.send(sent[:cut]).send(sent[cut:]).send_end().answers():
            assert answer.headers["x-request-id"]
            if answer.status == 202:
                accepted.add(json.loads(answer.body)["order_id"])
            else:
                assert answer.problem

    # The stack's processes answer; this one only waits for them.
    send()

    async def all_decided() -> bool:
        shown = [await stack.http.get(f"/orders/{order_id}") for order_id in accepted]
        return all(one.json().get("status") == "FAILED" for one in shown)

    assert accepted
    await eventually(all_decided, "all that was accepted is decided")
    page = await stack.http.get("/events", params={"limit": 1})
    # An order is an event, and so is its decision.
    assert int(page.headers["ledger-position"]) == 2 * len(accepted)

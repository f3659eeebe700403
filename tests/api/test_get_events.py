"""GET /events: the ledger, page by page and as it grows."""

import asyncio
import gzip
import re
import socket
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode, urlsplit
from uuid import UUID, uuid4

import httpx
import msgspec
import pytest

from api.auth import rate_limit
from api.http.problems import Problem
from api.reads import consistent_reads, event_stream
from api.reads.consistent_reads import ConsistentReads, Waiters
from api.reads.event_stream import EVENT_STREAM, EventStreams
from ledger.core.events import DECIDED, SUBMITTED
from ledger.eventlog.reader import IdentifiedHead
from ledger.eventlog.records import GENESIS_HASH, Record, next_hash
from projections.announcements import Announcement
from projections.queries import EVERYTHING, MAX_SCAN, FeedEvent, FeedFilter, FeedPage
from tests.harness import DEADLINE_S, Stack, eventually, free_port, start_stack
from tests.private_servers import Servers
from tests.proxy import open_proxy

from .client import WAIT, Body, cancel, limit, list_product, order, problem, register
from .streaming import STREAM, listen

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
BATCH = "application/cloudevents-batch+json"


async def page(http: httpx.AsyncClient, **query: object) -> tuple[list[Body], httpx.Response]:
    """One page of the feed."""
    response = await http.get("/events", params={k: str(v) for k, v in query.items()})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == BATCH
    return response.json(), response


def next_of(response: httpx.Response) -> str | None:
    """The path of the next page."""
    link = response.links.get("next")
    return link["url"] if link else None


async def all_pages(http: httpx.AsyncClient, path: str) -> list[list[Body]]:
    """Every page from a path on, as the links lead."""
    pages, follow = [], path
    while follow:
        response = await http.get(follow.removeprefix("/api/v1"))
        assert response.status_code == 200, response.text
        pages.append(response.json())
        follow = next_of(response) or ""
    return pages


def record_of(event: Body, by_id: dict[str, Body]) -> Record:
    """The record that an event of the feed was made of: all of it can be checked from outside."""
    cause = event.get("causationid")
    names = () if cause else ("submitter", "traceparent", "atomicid")
    meta = {name: event[name] for name in names if name in event}
    if not cause:
        meta["source"] = event["origin"]
    return Record(
        event["position"],
        UUID(event["id"]).bytes,
        UUID(event["subject"]).bytes,
        event["version"],
        event["type"],
        event["schemaversion"],
        by_id[cause]["position"] if cause else 0,
        microseconds(event["time"]),
        microseconds(event["recordedtime"]),
        msgspec.json.encode(meta, order="sorted"),
        msgspec.json.encode(event["data"], order="sorted"),
    )


def microseconds(text: str) -> int:
    """Since 1970 UTC."""
    return (datetime.fromisoformat(text) - EPOCH) // timedelta(microseconds=1)


async def head_of(http: httpx.AsyncClient) -> int:
    """Where the ledger ends."""
    _, response = await page(http, limit=1)
    return int(response.headers["ledger-position"])


async def test_the_pages_hold_the_whole_ledger_and_no_position_is_missing(
    http: httpx.AsyncClient,
) -> None:
    customer_id, product_id = await register(http), await list_product(http)
    placed = await order(http, customer_id, product_id)
    await cancel(http, placed["order_id"])
    pages = await all_pages(http, "/events?limit=500")
    events = [event for page in pages for event in page]
    few = await all_pages(http, f"/events?limit=2&after={len(events) - 5}")
    assert few == [events[-5:-3], events[-3:-1], events[-1:]]
    assert [event["position"] for event in events] == list(range(1, len(events) + 1))
    by_position = {event["position"]: event for event in events}
    by_id = {event["id"]: event for event in events}
    assert len(by_id) == len(events)
    for event in events:
        if event["type"] in DECIDED:
            cause = by_position[event["position"] - 1]
            assert event["causationid"] == cause["id"]
            assert event["subject"] == cause["subject"]
            assert cause["type"] in SUBMITTED
        else:
            assert "causationid" not in event
        assert event["specversion"] == "1.0"
        assert re.fullmatch("[0-9a-f]{64}", event["hash"])
    versions: dict[str, int] = {}
    chain = GENESIS_HASH
    for event in events:
        chain = next_hash(chain, record_of(event, by_id))
        assert event["hash"] == chain.hex()
        assert event["version"] == versions.get(event["subject"], 0) + 1
        versions[event["subject"]] = event["version"]


async def test_an_event_is_a_complete_cloud_event(http: httpx.AsyncClient) -> None:
    customer_id, product_id = await register(http), await list_product(http)
    placed = await order(http, customer_id, product_id, 2)
    (event,), _ = await page(http, after=placed["position"] - 1, limit=1)
    assert event == {
        "specversion": "1.0",
        "id": event["id"],
        "source": event["source"],
        "type": "order.completed",
        "subject": placed["order_id"],
        "time": placed["created_at"],
        "recordedtime": placed["updated_at"],
        "datacontenttype": "application/json",
        "schemaversion": 1,
        "sequence": f"{placed['position']:019}",
        "position": placed["position"],
        "version": 2,
        "causationid": event["causationid"],
        "hash": event["hash"],
        "data": {
            "customer_id": customer_id,
            "product_id": product_id,
            "quantity": 2,
            "unit_price_minor": 10000,
            "total_minor": 20000,
        },
    }


async def test_the_source_of_all_events_is_the_ledger(http: httpx.AsyncClient) -> None:
    await order(http, await register(http), await list_product(http))
    events, _ = await page(http, limit=500)
    assert {event["source"] for event in events} == {(await ledger_of(http)).urn}
    # Where it came from is what the hash was made of, so it stands beside it.
    assert {event.get("origin") for event in events} == {"/api", None}
    assert all(("origin" in event) != ("causationid" in event) for event in events)


async def ledger_of(http: httpx.AsyncClient) -> UUID:
    """The identity of the ledger, as a refusal tells it."""
    refused = await http.get("/events", params={"after": 2**62})
    return UUID(problem(refused, 409, "beyond-head")["ledger"])


async def test_the_last_page_has_no_next_link_but_a_position_to_go_on_from(
    http: httpx.AsyncClient,
) -> None:
    await register(http)
    _, last = await page(http, after=await head_of(http))
    assert next_of(last) is None
    at = int(last.headers["ledger-position"])
    await register(http)
    (event,), _ = await page(http, after=at)
    assert event["type"] == "customer.registered"
    assert event["position"] == at + 1


async def test_a_filter_keeps_one_type(http: httpx.AsyncClient) -> None:
    start, product_id = await head_of(http), await list_product(http)
    await register(http)
    events, response = await page(http, after=start, type="product.listed")
    assert [event["subject"] for event in events] == [product_id]
    assert int(response.headers["ledger-position"]) > events[0]["position"]
    for types in ("order.lost", "", "order.placed,", "order.placed,order.lost"):
        refused = await http.get("/events", params={"type": types})
        problem(refused, 422, "invalid-fields", "type")


async def test_a_filter_keeps_several_types_and_one_stream(http: httpx.AsyncClient) -> None:
    start, product_id = await head_of(http), await list_product(http)
    customer_id = await register(http)
    for _ in range(3):
        await http.post(f"/products/{product_id}/receipts", json={"quantity": 1}, headers=WAIT)
        await http.patch(f"/products/{product_id}", json={"base_price": 2}, headers=WAIT)
    events, _ = await page(http, after=start)

    async def found(**query: object) -> list[Body]:
        pages = await all_pages(http, f"/events?{urlencode({'after': start, 'limit': 2, **query})}")
        return [event for page in pages for event in page]

    for types in ("stock.received,customer.registered", "customer.registered,stock.received"):
        assert await found(type=types) == [e for e in events if e["type"] in types.split(",")]
    of_product = [event for event in events if event["subject"] == product_id]
    assert await found(subject=product_id) == of_product
    assert await found(subject=product_id, after=of_product[2]["position"]) == of_product[3:]
    prices = await found(subject=product_id, type="price.changed,order.placed")
    assert prices == [event for event in of_product if event["type"] == "price.changed"]
    assert [e["type"] for e in await found(subject=customer_id)] == ["customer.registered"]
    assert await found(subject=uuid4()) == []
    problem(await http.get("/events?subject=pen"), 422, "invalid-fields", "subject")


@pytest.mark.parametrize("ahead", [1, 2**62])
async def test_a_position_beyond_the_ledgers_end_is_refused(
    http: httpx.AsyncClient, ahead: int
) -> None:
    """A client that keeps it from another ledger, or from before a restore, would miss events."""
    placed = await order(http, await register(http), await list_product(http))
    head, ledger_id = await head_of(http), await ledger_of(http)
    after = head + ahead
    for path, parameters, headers, field in (
        ("/events", {"after": after}, {}, "after"),
        ("/events", {"after": after}, STREAM, "after"),
        ("/events", {"after": after, "subject": placed["order_id"]}, {}, "after"),
        ("/events", {"after": after, "type": "order.placed"}, STREAM, "after"),
        ("/events", {}, {**STREAM, "Last-Event-ID": str(after)}, "Last-Event-ID"),
        ("/events", {"min_position": after}, {}, "min_position"),
        (f"/orders/{placed['order_id']}/events", {"after": after}, {}, "after"),
    ):
        refused = await http.get(path, params=parameters, headers=headers)
        body = problem(refused, 409, "beyond-head", field)
        assert (body["head"], body["ledger"]) == (head, str(ledger_id))
        assert limit(body, field) == head
        assert refused.headers["ledger-position"] == str(head)
    assert (await http.head("/events", params={"after": after}, headers=STREAM)).status_code == 409
    assert (await page(http, after=head))[0] == []


async def test_a_position_that_no_view_shows_yet_is_not_beyond_the_end(running: Stack) -> None:
    running.terminate("projector")
    customer = (await running.http.post("/customers", json={"username": "ann"})).json()
    path, head = f"/customers/{customer['customer_id']}", await head_of(running.http)
    assert (await page(running.http, after=head))[0] == []
    behind = await running.http.get(path, params={"min_position": head})
    body = problem(behind, 503, "views-behind")
    assert body["min_position"] == head
    assert str(head - body["position"]) in body["detail"]
    running.start("projector")


async def test_a_page_that_the_filter_left_empty_has_a_next_link(
    http: httpx.AsyncClient, stack: Stack
) -> None:
    start = await head_of(http)
    body = {"customer_id": str(uuid4()), "product_id": str(uuid4())}
    for _ in range(6):
        sent = {"orders": [body] * 1000}
        assert (await http.post("/orders/batch", json=sent)).status_code == 202
    await http.post("/orders/batch", json={"orders": [body]}, headers={"Prefer": "wait=20"})
    customer_id = await register(http)
    pages = await all_pages(http, f"/events?after={start}&type=customer.registered")
    assert pages[0] == []
    assert [event["subject"] for event in pages[-1]] == [customer_id]


async def test_a_page_waits_for_min_position(http: httpx.AsyncClient) -> None:
    start = await head_of(http)
    waiting = asyncio.create_task(page(http, after=start, min_position=start + 1))
    await register(http)
    events, _ = await waiting
    assert events[0]["position"] == start + 1


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("after=-1", "after"),
        ("after=x", "after"),
        ("limit=0", "limit"),
        ("limit=501", "limit"),
        ("position=1", "position"),
    ],
)
async def test_an_invalid_parameter_is_named(
    http: httpx.AsyncClient, query: str, field: str
) -> None:
    for headers in ({}, STREAM):
        response = await http.get(f"/events?{query}", headers=headers)
        problem(response, 422, "invalid-fields", field)


async def test_a_page_is_gzipped(http: httpx.AsyncClient) -> None:
    await list_product(http)
    url = "/events?limit=100"
    async with http.stream("GET", url, headers={"Accept-Encoding": "gzip"}) as response:
        raw = b"".join([part async for part in response.aiter_raw()])
    assert response.headers["content-encoding"] == "gzip"
    assert gzip.decompress(raw).startswith(b"[{")


async def test_a_stream_goes_on_as_the_ledger_grows(http: httpx.AsyncClient) -> None:
    first = await register(http)
    start = await head_of(http)
    async with asyncio.timeout(DEADLINE_S), listen(http, start - 1) as stream:
        assert (await anext(stream)).event["subject"] == first
        for _ in range(3):
            customer_id = await register(http)
            heard = await anext(stream)
            assert heard.event["subject"] == customer_id
            assert heard.position == heard.event["position"]
            assert heard.name == "customer.registered"


async def test_a_stream_sends_the_events_of_the_pages(http: httpx.AsyncClient) -> None:
    await order(http, await register(http), await list_product(http))
    events, _ = await page(http, after=0, limit=500)
    async with asyncio.timeout(DEADLINE_S), listen(http, 0) as stream:
        assert [(await anext(stream)).event for _ in events] == events


async def test_last_event_id_wins_over_the_parameter_after(http: httpx.AsyncClient) -> None:
    await register(http)
    start = await head_of(http)
    async with asyncio.timeout(DEADLINE_S), listen(http, 0, last=start - 1) as stream:
        assert (await anext(stream)).position == start
    bad = await http.get("/events", headers={**STREAM, "Last-Event-ID": "x"})
    problem(bad, 422, "invalid-fields", "Last-Event-ID")


async def test_a_filtered_stream_sends_only_what_the_filter_lets_through(
    http: httpx.AsyncClient,
) -> None:
    start, types = await head_of(http), "product.listed,price.changed"
    async with asyncio.timeout(DEADLINE_S), listen(http, start, type=types) as stream:
        await register(http)
        product_id = await list_product(http)
        await http.patch(f"/products/{product_id}", json={"base_price": 2}, headers=WAIT)
        heard = [await anext(stream), await anext(stream)]
    assert [event.name for event in heard] == types.split(",")
    async with asyncio.timeout(DEADLINE_S), listen(http, start, subject=product_id) as stream:
        assert [await anext(stream), await anext(stream)] == heard


@pytest.mark.parametrize(
    ("accepted", "is_stream"),
    [
        ("text/event-stream", True),
        ("text/event-stream;q=0.1", True),
        ("Text/Event-Stream; q=0.5, application/json;q=0.4", True),
        ("text/event-stream, */*", True),
        ("text/event-stream;q=0", False),
        ("text/event-stream;q=0.000, */*;q=0.1", False),
        ("text/event-stream;q=0.5, application/json", False),
        ("application/json;q=0", False),
        ("text/*", False),
    ],
)
async def test_a_stream_is_sent_to_who_weighs_it_not_below_json(
    http: httpx.AsyncClient, accepted: str, is_stream: bool
) -> None:
    response = await http.head("/events", headers={"Accept": accepted})
    assert response.status_code == 200
    assert (response.headers["content-type"] == "text/event-stream") is is_stream


async def test_a_head_request_for_a_stream_ends(http: httpx.AsyncClient) -> None:
    response = await http.head("/events", headers=STREAM)
    async with http.stream("GET", "/events", headers=STREAM) as got:
        for name in ("content-type", "content-length", "cache-control", "vary"):
            assert response.headers.get(name) == got.headers.get(name), name
    assert response.status_code == got.status_code == 200
    assert (await http.head("/events")).status_code == 200


@pytest.fixture(scope="module")
async def running(servers: Servers) -> AsyncIterator[Stack]:
    """A ledger whose API the tests here may kill."""
    stack = await start_stack(servers)
    yield stack
    await stack.stop()


async def test_without_database_pages_are_refused_and_a_stream_waits_for_it(
    running: Stack, servers: Servers
) -> None:
    first = await register(running.http)
    async with open_proxy(servers.db_port) as database:
        changes = {"api_port": free_port(), "db_port": database.port}
        other = Stack(running.settings.model_copy(update=changes))
        other.start("api")
        await other.ready()
        start = await head_of(other.http)
        async with asyncio.timeout(DEADLINE_S), listen(other.http, start - 1) as stream:
            assert (await anext(stream)).event["subject"] == first
            database.cut()
            for headers in ({}, STREAM):
                away = await other.http.get("/events", headers=headers)
                problem(away, 503, "views-unavailable")
            second = await register(running.http)
            await database.heal()
            assert (await anext(stream)).event["subject"] == second
        await other.stop()


async def test_through_restarts_a_stream_misses_no_event_and_repeats_none(
    running: Stack,
) -> None:
    """A client that comes back with the last id, as every EventSource does."""
    start = await head_of(running.http)
    total, heard, api_is_up = 150, list[int](), asyncio.Event()
    api_is_up.set()

    async def place() -> None:
        keys, body = [str(uuid4()) for _ in range(total)], {"username": "ann"}
        for key in keys:
            headers = {"Idempotency-Key": key, "Prefer": "respond-async"}
            while True:
                try:
                    sent = await running.http.post("/customers", json=body, headers=headers)
                except httpx.TransportError:
                    await api_is_up.wait()
                    continue
                if sent.status_code == 202:
                    break

    async def follow() -> None:
        async with httpx.AsyncClient(base_url=f"{running.url}/api/v1", timeout=DEADLINE_S) as http:
            while len(heard) < total:
                try:
                    async with listen(http, start, last=heard[-1] if heard else None) as stream:
                        async for position, _, _ in stream:
                            heard.append(position)
                            if len(heard) == total:
                                return
                except httpx.TransportError:
                    await api_is_up.wait()

    async def heard_more_than(count: int) -> None:
        async def enough() -> bool:
            return len(heard) > count

        await eventually(enough, f"{count} events are heard")

    async def restart() -> None:
        for end in (running.kill, running.terminate):
            await heard_more_than(len(heard) + 20)
            api_is_up.clear()
            await asyncio.to_thread(end, "api")
            running.start("api")
            await running.ready()
            api_is_up.set()

    async with asyncio.timeout(DEADLINE_S):
        await asyncio.gather(place(), follow(), restart())
    assert heard == list(range(start + 1, start + total + 1))


async def test_streams_end_when_the_process_is_told_to_stop(running: Stack) -> None:
    await register(running.http)
    async with asyncio.timeout(DEADLINE_S), listen(running.http, 0) as stream:
        await anext(stream)
        ending = asyncio.create_task(asyncio.to_thread(running.terminate, "api"))
        async for _ in stream:
            pass
        assert await ending == 0
    running.start("api")
    await running.ready()


async def test_a_slow_client_does_not_hold_others_back(http: httpx.AsyncClient) -> None:
    """It takes nothing at all, and many events come."""
    start = await head_of(http)
    url = urlsplit(str(http.base_url))
    request = "GET /api/v1/events HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n"
    body = {"customer_id": str(uuid4()), "product_id": str(uuid4())}
    heard: list[int] = []
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect((url.hostname, url.port))
        slow.sendall(request.encode())
        async with asyncio.timeout(DEADLINE_S), listen(http, start) as stream:
            for _ in range(3):
                await http.post("/orders/batch", json={"orders": [body] * 1000})
            while len(heard) < 6000:
                heard.append((await anext(stream)).position)
    assert heard == list(range(start + 1, start + 6001))


class Ledger:
    """A feed that holds many large events and counts how often it is read."""

    def __init__(self, head: int) -> None:
        self.head_position = head
        self.ledger_id = UUID(int=7)
        self.reads = 0

    async def page(self, after: int, limit: int, only: FeedFilter) -> FeedPage:
        self.reads += 1
        head = self.head_position
        if only.types:  # of which there are none
            return FeedPage([], max(after, min(after + MAX_SCAN, head)), head, self.ledger_id)
        end = max(after, min(after + limit, head))
        events = [FeedEvent(at, "a.b", b"x" * 1000) for at in range(after + 1, end + 1)]
        return FeedPage(events, end, head, self.ledger_id)

    async def head(self) -> IdentifiedHead:
        return IdentifiedHead(self.ledger_id, self.head_position)


class Client:
    """An ASGI client that takes so many messages and then no more."""

    def __init__(self, takes: int) -> None:
        self._takes = takes
        self.sent: list[dict[str, Any]] = []
        self.gone = asyncio.Event()
        self.scope = {"type": "http", "path": "/events"}

    @property
    def received(self) -> bytes:
        """All of the body that came."""
        return b"".join(message.get("body", b"") for message in self.sent)

    async def send(self, message: Any) -> None:
        if len(self.sent) >= self._takes:
            await self.gone.wait()
        self.sent.append(message)

    async def receive(self) -> Any:
        await self.gone.wait()
        return {"type": "http.disconnect"}


CLIENT = rate_limit.Client("ann", known=True)


def make_streams(ledger: Ledger) -> EventStreams:
    """Streams over a stand-in for the ledger."""
    reads = ConsistentReads(Waiters(), ledger)  # type: ignore[arg-type]
    return EventStreams(ledger, reads)  # type: ignore[arg-type]


async def test_a_client_that_reads_nothing_costs_one_page() -> None:
    ledger, client = Ledger(100_000), Client(takes=3)
    opened = make_streams(ledger)
    stream = await opened.open(CLIENT, 0, "after", EVERYTHING, 0, head_only=False)
    serving = asyncio.create_task(stream(client.scope, client.receive, client.send))

    async def takes_no_more() -> bool:
        return len(client.sent) == 3

    await eventually(takes_no_more, "the client takes no more")
    assert ledger.reads == 1
    assert opened.count == 1
    assert max(len(message.get("body", b"")) for message in client.sent) < 2 * event_stream.CHUNK
    client.gone.set()
    await serving
    assert opened.count == 0


async def test_waiting_streams_cost_no_query_and_one_announcement_wakes_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(event_stream, "HEARTBEAT_S", 0.05)
    ledger, clients = Ledger(10), [Client(takes=10_000) for _ in range(50)]
    opened = make_streams(ledger)
    serving = []
    for client in clients:
        stream = await opened.open(CLIENT, 10, "after", EVERYTHING, 0, head_only=False)
        serving.append(asyncio.create_task(stream(client.scope, client.receive, client.send)))

    async def all_have(words: bytes) -> bool:
        return all(words in client.received for client in clients)

    before = ledger.reads
    await eventually(lambda: all_have(b": nothing new\n"), "a heartbeat")
    assert ledger.reads == before
    ledger.head_position = 11
    opened.announced(Announcement(10, 11))
    await eventually(lambda: all_have(b"id: 11\ndata: "), "the event")
    assert ledger.reads <= before + 2
    opened.stopped.set()
    await asyncio.gather(*serving)
    assert all(not client.sent[-1].get("more_body", False) for client in clients)


async def test_streams_that_are_closed_make_room_at_once(http: httpx.AsyncClient) -> None:
    """Nothing is written that could find out, and the next comment is seconds away."""
    _, newest = await page(http, limit=1)
    url = httpx.URL(f"{http.base_url}events?after={newest.headers['ledger-position']}")
    head = f"GET {url.raw_path.decode()} HTTP/1.1\r\nHost: x\r\nAccept: {EVENT_STREAM}\r\n\r\n"

    async def begin() -> asyncio.StreamWriter | None:
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(head.encode())
        if b" 200 " in await reader.readline():
            # All that there is: a connection that is closed with something unread is reset.
            await reader.readuntil(b"retry: ")
            return writer
        writer.close()
        return None

    for _ in range(3):
        async with asyncio.timeout(event_stream.HEARTBEAT_S):
            began = [
                await eventually(begin, "there is room") for _ in range(event_stream.MAX_STREAMS)
            ]
        assert await begin() is None
        for writer in began:
            writer.close()


async def test_a_stream_beyond_the_limit_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(event_stream, "MAX_STREAMS", 1)
    opened = make_streams(Ledger(10))
    first = await opened.open(CLIENT, 0, "after", EVERYTHING, 0, head_only=False)
    with pytest.raises(Problem, match="1 streams are open"):
        await opened.open(CLIENT, 0, "after", EVERYTHING, 0, head_only=False)
    opened.stopped.set()
    client = Client(takes=10)
    await first(client.scope, client.receive, client.send)
    for _ in range(3):
        await opened.open(CLIENT, 0, "after", EVERYTHING, 0, head_only=True)
    await opened.open(CLIENT, 0, "after", EVERYTHING, 0, head_only=False)


async def test_streams_that_wait_for_their_first_page_count_towards_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(event_stream, "MAX_STREAMS", 2)
    monkeypatch.setattr(consistent_reads, "MIN_POSITION_WAIT_S", 0.01)
    opened = make_streams(Ledger(10))
    asked = (opened.open(CLIENT, 10, "after", EVERYTHING, 11, head_only=False) for _ in range(5))
    answers = await asyncio.gather(*asked, return_exceptions=True)
    kinds = [answer.kind for answer in answers if isinstance(answer, Problem)]
    assert sorted(kinds) == ["beyond-head"] * 2 + ["too-many-streams"] * 3
    assert opened.count == 0


async def test_one_key_can_not_have_all_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "MAX_STREAMS_OF_CLIENT", 1)
    opened = make_streams(Ledger(10))
    await opened.open(CLIENT, 0, "after", EVERYTHING, 0, head_only=False)
    with pytest.raises(Problem, match="1 streams of this client") as refused:
        await opened.open(CLIENT, 0, "after", EVERYTHING, 0, head_only=False)
    assert refused.value.kind == "too-many-requests"
    await opened.open(CLIENT._replace(name="bob"), 0, "after", EVERYTHING, 0, head_only=False)
    for _ in range(2):
        await opened.open(
            rate_limit.Client("::1", known=False), 0, "after", EVERYTHING, 0, head_only=False
        )


async def test_the_ledger_is_looked_at_when_no_announcement_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The projector may be away; the ledger may grow."""
    monkeypatch.setattr(event_stream, "LOOK_S", 0.05)
    ledger, client = Ledger(10), Client(takes=10_000)
    opened = make_streams(ledger)
    stream = await opened.open(CLIENT, 10, "after", EVERYTHING, 0, head_only=False)
    works = [
        asyncio.create_task(opened.run()),
        asyncio.create_task(stream(client.scope, client.receive, client.send)),
    ]
    ledger.head_position = 11

    async def has_it() -> bool:
        return b"id: 11\ndata: " in client.received

    await eventually(has_it, "the event")
    opened.stopped.set()
    await works[1]
    works[0].cancel()


async def follow(
    opened: EventStreams, client: Client, after: int, only: FeedFilter = EVERYTHING
) -> asyncio.Task[None]:
    """Open a stream, and let the client take what comes."""
    stream = await opened.open(CLIENT, after, "after", only, 0, head_only=False)
    return asyncio.create_task(stream(client.scope, client.receive, client.send))


async def test_a_stream_has_a_name_and_data_in_each_event_and_no_other_blank_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Readers that are simpler than the standard take each blank line for an event."""
    monkeypatch.setattr(event_stream, "HEARTBEAT_S", 0.02)
    ledger, client = Ledger(3), Client(takes=10_000)
    opened = make_streams(ledger)
    serving = await follow(opened, client, 0)

    async def beats() -> bool:
        return client.received.count(b": nothing new\n") >= 3

    await eventually(beats, "three heartbeats")
    ledger.head_position = 4
    opened.announced(Announcement(3, 4))

    async def has_it() -> bool:
        return b"id: 4\n" in client.received

    await eventually(has_it, "the event")
    opened.stopped.set()
    await serving
    *blocks, _ = client.received.split(b"\n\n")
    assert len(blocks) == 4
    for number, block in enumerate(blocks, 1):
        fields = [line for line in block.splitlines() if not line.startswith((b":", b"retry: "))]
        assert fields == [b"event: a.b", b"id: %d" % number, b"data: " + b"x" * 1000]


async def test_a_filtered_stream_says_now_and_then_how_far_it_has_looked() -> None:
    """So a client that comes back does not wait until a long ledger was looked at again."""
    ledger, client = Ledger(2 * MAX_SCAN + 5), Client(takes=10_000)
    opened = make_streams(ledger)
    serving = await follow(opened, client, 0, FeedFilter(("order.failed",)))

    async def has_come_far() -> bool:
        return b"%d" % (2 * MAX_SCAN) in client.received

    await eventually(has_come_far, "the second position")
    opened.stopped.set()
    await serving
    assert client.received == b"retry: 1000\n" + b"".join(
        b'event: position\nid: %d\ndata: {"position":%d}\n\n' % (at, at)
        for at in (MAX_SCAN, 2 * MAX_SCAN)
    )


async def test_a_stream_ends_with_a_problem_when_the_ledger_goes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A restore took away what the client has seen already; nothing announces it."""
    monkeypatch.setattr(event_stream, "LOOK_S", 0.05)
    ledger, ahead, behind = Ledger(10), Client(takes=10_000), Client(takes=10_000)
    opened = make_streams(ledger)
    looking = asyncio.create_task(opened.run())
    ended = await follow(opened, ahead, 10)
    ledger.head_position = 8
    async with asyncio.timeout(DEADLINE_S):
        await ended
    name, data, *_ = ahead.received.removeprefix(b"retry: 1000\n").splitlines()
    told = msgspec.json.decode(data.removeprefix(b"data: "))
    assert name == b"event: problem"
    assert (told["type"], told["head"]) == ("/problems/beyond-head", 8)
    assert told["ledger"] == str(ledger.ledger_id)
    assert b"id:" not in ahead.received
    # Whoever stands where it ends now waits, though the process knew a later end, and is served.
    serving, reads = await follow(opened, behind, 8), ledger.reads
    ledger.head_position = 9

    async def has_it() -> bool:
        return b"id: 9\n" in behind.received

    await eventually(has_it, "the event of the new history")
    assert ledger.reads <= reads + 2
    looking.cancel()
    opened.stopped.set()
    await serving


async def test_a_stream_ends_when_the_database_holds_another_ledger() -> None:
    ledger, client = Ledger(10), Client(takes=10_000)
    opened = make_streams(ledger)
    ended = await follow(opened, client, 10)
    ledger.head_position, ledger.ledger_id = 20, UUID(int=8)
    opened.announced(Announcement(10, 20))
    async with asyncio.timeout(DEADLINE_S):
        await ended
    assert b"event: problem\n" in client.received
    assert b"a.b" not in client.received


async def test_announcements_beyond_the_ledgers_end_make_no_stream_spin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Views that are ahead of a restored ledger announce a position that it does not have."""
    ledger, client = Ledger(10), Client(takes=10_000)
    opened = make_streams(ledger)
    serving, reads = await follow(opened, client, 10), ledger.reads
    for number in range(1, 6):
        opened.announced(Announcement(12, 12))

        async def has_looked(number: int = number) -> bool:
            return ledger.reads >= reads + number

        await eventually(has_looked, "the stream has looked")
    opened.stopped.set()
    await serving
    assert ledger.reads <= reads + 6
    assert client.received == b"retry: 1000\n"

"""GET /metrics, and those of writer and projector: what they show is what happened."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID, uuid4

import httpx
import pytest
from aio_pika import Message

from cli.processes import serve_metrics
from cli.settings import BadSettings
from ledger.core.events import CustomerRegistered
from ledger.eventlog.codec import encode_submitted, join
from ledger.eventlog.records import Submitted
from ledger.messaging.rabbitmq import open_channel
from ledger.messaging.topology import SUBMITTED_EXCHANGE
from ledger.runtime.metrics import registry_of
from ledger.runtime.timestamps import now_us
from projections.views.registry import PROJECTIONS
from tests.api.client import cancel, list_product, order, problem, register
from tests.harness import Stack, engine_of, eventually, rabbitmqctl
from tests.observability.scraping import PROCESSES, Samples, scrape
from tests.private_servers import Servers

VIEWS = [view.name for view in PROJECTIONS]
NOBODYS = {"customer_id": str(uuid4()), "product_id": str(uuid4())}


class Difference:
    """What a process counted since the last look."""

    def __init__(self, before: Samples, after: Samples) -> None:
        self._before = before
        self._after = after

    def of(self, name: str, **labels: str) -> float:
        """How much the samples with these labels grew together."""
        return self._after.total(name, **labels) - self._before.total(name, **labels)


async def publish(stack: Stack, body: bytes) -> None:
    """Put a message into the inbox, whatever it is."""
    async with open_channel(stack.settings.amqp_url("api"), "test", confirms=True) as channel:
        exchange = await channel.get_exchange(SUBMITTED_EXCHANGE)
        await exchange.publish(Message(body), routing_key="")


async def settled(stack: Stack) -> dict[str, Samples]:
    """All three at a moment at which nothing is under way."""

    async def calm() -> dict[str, Samples]:
        try:
            found = {process: await scrape(stack, process) for process in PROCESSES}
        except httpx.TransportError:
            return {}
        head = found["writer"].of("ledger_head_position")
        positions = [found["projector"].of("ledger_view_position", view=v) for v in VIEWS]
        busy = found["api"].of("ledger_pending_orders") or [p for p in positions if p != head]
        return {} if busy else found

    return await eventually(calm, "the views are where the ledger is")


async def test_every_accepted_event_is_decided_and_shown(talkative: Stack) -> None:
    before = await settled(talkative)
    customer_id, product_id = await register(talkative.http), await list_product(talkative.http)
    placed = [await order(talkative.http, customer_id, product_id) for _ in range(5)]
    await cancel(talkative.http, str(placed[0]["order_id"]))
    await order(talkative.http, customer_id, str(uuid4()))
    after = await settled(talkative)

    api, writer, _ = (Difference(before[p], after[p]) for p in PROCESSES)
    assert api.of("ledger_accepted_events_total") == 9
    assert writer.of("ledger_decided_events_total") == 9
    decided = "ledger_decided_events_total"
    assert writer.of(decided, outcome="customer.registered", reason="") == 1
    assert writer.of(decided, outcome="product.listed", reason="") == 1
    assert writer.of(decided, outcome="order.completed", reason="") == 5
    assert writer.of(decided, outcome="order.cancelled", reason="") == 1
    assert writer.of(decided, outcome="order.failed", reason="UNKNOWN_PRODUCT") == 1
    assert writer.of("ledger_head_position") == 2 + 2 * 7
    assert writer.of("ledger_commit_events_sum") == 16
    assert writer.of("ledger_commit_seconds_count") == writer.of("ledger_commit_events_count")
    assert writer.of("ledger_message_events_sum") == 9
    assert api.of("ledger_publish_group_events_sum") == 9
    assert api.of("ledger_publish_seconds_count") == writer.of("ledger_message_events_count")


async def test_views_that_are_up_to_date_have_no_lag(talkative: Stack) -> None:
    projector = (await settled(talkative))["projector"]
    for view in VIEWS:
        assert projector.of("ledger_view_lag_positions", view=view) == 0
        assert projector.of("ledger_view_lag_seconds", view=view) == 0
    assert projector.of("ledger_view_lag_known") == 1
    assert projector.of("ledger_projector_batch_events_sum") > 0


async def test_a_projector_that_is_held_up_shows_as_lag(talkative: Stack) -> None:
    engine = engine_of(talkative.settings, "projector")

    async def behind() -> bool:
        found = await scrape(talkative, "projector")
        lags = [found.of("ledger_view_lag_positions", view=view) for view in VIEWS]
        return set(lags) == {2} and found.of("ledger_view_lag_seconds", view="orders") > 0

    await settled(talkative)
    async with engine.begin() as connection:
        await connection.exec_driver_sql("SELECT * FROM checkpoints FOR UPDATE")
        await talkative.http.post("/orders", json=NOBODYS)
        await eventually(behind, "the lag shows")
    await engine.dispose()
    await settled(talkative)


async def test_a_writer_that_is_away_shows_as_depth(talkative: Stack) -> None:
    await settled(talkative)
    talkative.kill("writer")

    async def waits() -> bool:
        found = await scrape(talkative, "api")
        return (found.of("ledger_inbox_messages"), found.of("ledger_pending_orders")) == (1, 1)

    assert (await talkative.http.post("/orders", json=NOBODYS)).status_code == 202
    await eventually(waits, "the message waits in the inbox")
    talkative.start("writer")
    await settled(talkative)


async def test_connected_processes_say_so(talkative: Stack) -> None:
    await register(talkative.http)
    found = await settled(talkative)
    assert found["api"].of("ledger_inbox_connected") == 1
    assert found["api"].of("ledger_inbox_blocked") == 0
    assert found["api"].of("ledger_announcements_connected") == 1
    assert found["api"].of("ledger_publish_waiting_events") == 0
    assert found["writer"].of("ledger_inbox_connected") == 1
    assert found["writer"].of("ledger_epoch") >= 1
    for process in ("api", "writer"):
        assert found[process].of("ledger_inbox_messages") == 0


async def test_what_cannot_be_read_is_counted_and_stays_in_sight(talkative: Stack) -> None:
    before = await settled(talkative)
    await publish(talkative, b"what?")

    async def parked() -> bool:
        after = await scrape(talkative, "writer")
        counted = Difference(before["writer"], after).of("ledger_parked_total")
        return counted == 1 and after.of("ledger_parking_messages") == 1

    await eventually(parked, "the message is counted and in the parking queue")


async def test_a_broker_in_need_shows_as_blocked(talkative: Stack, servers: Servers) -> None:
    before = await scrape(talkative, "api")

    async def refused() -> bool:
        return (await talkative.http.post("/orders", json=NOBODYS)).status_code == 503

    with memory_alarm(servers):
        await eventually(refused, "the broker takes nothing")
        blocked = await scrape(talkative, "api")
        assert blocked.of("ledger_inbox_blocked") == 1
        refusals = Difference(before, blocked)
        assert refusals.of("ledger_not_accepted_events_total", reason="unavailable") >= 1

    async def recovered() -> bool:
        await talkative.http.post("/orders", json=NOBODYS)
        return (await scrape(talkative, "api")).of("ledger_inbox_blocked") == 0

    await eventually(recovered, "the broker reads again")


@contextmanager
def memory_alarm(servers: Servers) -> Iterator[None]:
    """Let the broker think that it has used up its memory."""
    rabbitmqctl(servers, "set_vm_memory_high_watermark", "absolute", "1MB")
    try:
        yield
    finally:
        rabbitmqctl(servers, "set_vm_memory_high_watermark", "0.4")


async def test_requests_are_counted_by_route_and_not_by_path(talkative: Stack) -> None:
    before = await scrape(talkative, "api")
    for _ in range(3):
        problem(await talkative.http.get(f"/orders/{uuid4()}"), 404, "unknown-order")
    problem(await talkative.http.get(f"/{uuid4()}"), 404, "no-such-path")
    after = await scrape(talkative, "api")
    seen = Difference(before, after)
    labels = {"route": "/api/v1/orders/{order_id}", "method": "GET"}
    assert seen.of("ledger_http_requests_total", **labels, status="404") == 3
    assert seen.of("ledger_http_request_seconds_count", **labels) == 3
    assert seen.of("ledger_http_problems_total", type="unknown-order") == 3
    assert seen.of("ledger_http_requests_total", route="elsewhere") == 1
    assert not [labels for _, labels in after if any(is_id(value) for _, value in labels)]


def is_id(text: str) -> bool:
    """Whether a label holds what only a client can have chosen."""
    try:
        return any(UUID(part) for part in text.split("/"))
    except ValueError:
        return False


async def test_reads_of_a_product_show_what_the_cache_is_worth(talkative: Stack) -> None:
    product_id = await list_product(talkative.http)
    before = await scrape(talkative, "api")
    for _ in range(4):
        assert (await talkative.http.get(f"/products/{product_id}")).status_code == 200
    reads = Difference(before, await scrape(talkative, "api"))
    assert reads.of("ledger_product_cache_reads_total") == 4
    assert reads.of("ledger_product_cache_reads_total", result="hit") >= 1


async def test_repeats_are_counted_and_not_decided_again(talkative: Stack) -> None:
    event = Submitted(uuid4(), uuid4(), now_us(), CustomerRegistered("ann"))
    before = await settled(talkative)
    for _ in range(3):
        await publish(talkative, join([encode_submitted(event, "/test")]))

    async def counted() -> bool:
        seen = Difference(before["writer"], await scrape(talkative, "writer"))
        decided = seen.of("ledger_decided_events_total", outcome="customer.registered")
        return (decided, seen.of("ledger_repeats_total")) == (1, 2)

    await eventually(counted, "one is decided, two are repeats")


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text; version=1.0.0"])
async def test_prometheus_gets_the_format_it_asks_for(talkative: Stack, accept: str) -> None:
    async with httpx.AsyncClient() as http:
        response = await http.get(f"{talkative.url}/metrics", headers={"Accept": accept})
    wanted = accept.partition(";")[0] or "text/plain"
    assert response.headers["content-type"].startswith(wanted)


async def test_a_metrics_port_that_is_taken_is_named_with_the_remedy() -> None:
    async def nothing() -> None:
        """Measure nothing."""

    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        with pytest.raises(BadSettings, match=rf"port {port} .* set LEDGER_WRITER_METRICS_PORT"):
            await serve_metrics("127.0.0.1", port, registry_of(()), nothing)

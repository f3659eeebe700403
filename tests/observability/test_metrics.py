"""GET /metrics of the API, and those of writer and projector: they report what happened."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID, uuid4

import httpx
import pytest
from aio_pika import Message

from cli.commands.processes import serve_metrics
from cli.settings import BadSettings
from ledger.core.events import CustomerRegistered
from ledger.eventlog.codec import encode_group, encode_submitted
from ledger.eventlog.records import Submitted
from ledger.messaging.rabbitmq import Connection
from ledger.messaging.topology import SUBMITTED_EXCHANGE
from ledger.runtime.metrics import registry_of
from ledger.runtime.timestamps import now_us
from projections.views.registry import PROJECTIONS
from tests.api.client import cancel, list_product, order, problem, register
from tests.harness import Stack, engine_of, eventually, rabbitmqctl
from tests.observability.scraping import PROCESSES, Samples, scrape
from tests.private_servers import Servers

VIEWS = [view.name for view in PROJECTIONS]
UNKNOWN_ORDER = {"customer_id": str(uuid4()), "product_id": str(uuid4())}


class Growth:
    """How much the counters of a process grew between two scrapes."""

    def __init__(self, before: Samples, after: Samples) -> None:
        self._before = before
        self._after = after

    def of(self, name: str, **labels: str) -> float:
        """The growth of the sum over the samples with these labels."""
        return self._after.total(name, **labels) - self._before.total(name, **labels)


async def publish(stack: Stack, body: bytes) -> None:
    """Publish a message to the inbox, be it valid or not."""
    async with Connection(stack.settings.amqp_url("api"), "test").channel(confirms=True) as channel:
        exchange = await channel.get_exchange(SUBMITTED_EXCHANGE)
        await exchange.publish(Message(body), routing_key="")


async def until_idle(stack: Stack) -> dict[str, Samples]:
    """The samples of all processes once the views are at the head and no order is pending."""

    async def idle() -> dict[str, Samples]:
        try:
            samples = {process: await scrape(stack, process) for process in PROCESSES}
        except httpx.TransportError:
            return {}
        head = samples["writer"].of("ledger_head_position")
        positions = [samples["projector"].of("ledger_view_position", view=v) for v in VIEWS]
        busy = samples["api"].of("ledger_pending_orders") or [p for p in positions if p != head]
        return {} if busy else samples

    return await eventually(idle, "the views are where the ledger is")


async def test_accepted_decided_and_projected_events_are_counted(verbose_stack: Stack) -> None:
    before = await until_idle(verbose_stack)
    customer_id, product_id = (
        await register(verbose_stack.http),
        await list_product(verbose_stack.http),
    )
    placed = [await order(verbose_stack.http, customer_id, product_id) for _ in range(5)]
    await cancel(verbose_stack.http, str(placed[0]["order_id"]))
    await order(verbose_stack.http, customer_id, str(uuid4()))
    after = await until_idle(verbose_stack)

    api, writer, _ = (Growth(before[p], after[p]) for p in PROCESSES)
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


async def test_views_that_are_up_to_date_have_no_lag(verbose_stack: Stack) -> None:
    projector = (await until_idle(verbose_stack))["projector"]
    for view in VIEWS:
        assert projector.of("ledger_view_lag_positions", view=view) == 0
        assert projector.of("ledger_view_lag_seconds", view=view) == 0
    assert projector.of("ledger_view_lag_known") == 1
    assert projector.of("ledger_projector_batch_events_sum") > 0


async def test_lag_grows_while_the_projector_waits_for_a_lock(verbose_stack: Stack) -> None:
    engine = engine_of(verbose_stack.settings, "projector")

    async def lags() -> bool:
        samples = await scrape(verbose_stack, "projector")
        positions = {samples.of("ledger_view_lag_positions", view=view) for view in VIEWS}
        return positions == {2} and samples.of("ledger_view_lag_seconds", view="orders") > 0

    await until_idle(verbose_stack)
    async with engine.begin() as connection:
        await connection.exec_driver_sql("SELECT * FROM checkpoints FOR UPDATE")
        await verbose_stack.http.post("/orders", json=UNKNOWN_ORDER)
        await eventually(lags, "the lag is reported")
    await engine.dispose()
    await until_idle(verbose_stack)


async def test_inbox_depth_grows_while_the_writer_is_stopped(verbose_stack: Stack) -> None:
    await until_idle(verbose_stack)
    verbose_stack.kill("writer")

    async def waits() -> bool:
        samples = await scrape(verbose_stack, "api")
        return (samples.of("ledger_inbox_messages"), samples.of("ledger_pending_orders")) == (1, 1)

    assert (await verbose_stack.http.post("/orders", json=UNKNOWN_ORDER)).status_code == 202
    await eventually(waits, "the message waits in the inbox")
    verbose_stack.start("writer")
    await until_idle(verbose_stack)


async def test_connected_processes_report_it(verbose_stack: Stack) -> None:
    await register(verbose_stack.http)
    samples = await until_idle(verbose_stack)
    assert samples["api"].of("ledger_inbox_connected") == 1
    assert samples["api"].of("ledger_inbox_blocked") == 0
    assert samples["api"].of("ledger_announcements_connected") == 1
    assert samples["api"].of("ledger_publish_waiting_events") == 0
    assert samples["writer"].of("ledger_inbox_connected") == 1
    assert samples["writer"].of("ledger_epoch") >= 1
    for process in ("api", "writer"):
        assert samples[process].of("ledger_inbox_messages") == 0


async def test_parked_messages_are_counted_and_the_depth_of_the_queue_is_reported(
    verbose_stack: Stack,
) -> None:
    before = await until_idle(verbose_stack)
    await publish(verbose_stack, b"what?")

    async def parked() -> bool:
        after = await scrape(verbose_stack, "writer")
        counted = Growth(before["writer"], after).of("ledger_parked_total")
        return counted == 1 and after.of("ledger_parking_messages") == 1

    await eventually(parked, "the message is counted and in the parking queue")


async def test_a_broker_that_blocks_publishers_is_reported(
    verbose_stack: Stack, servers: Servers
) -> None:
    before = await scrape(verbose_stack, "api")

    async def refused() -> bool:
        answer = await verbose_stack.http.post("/orders", json=UNKNOWN_ORDER)
        return answer.status_code == 503 and answer.json()["accepted"] == "no"

    with memory_alarm(servers):
        await eventually(refused, "the broker takes nothing")
        blocked = await scrape(verbose_stack, "api")
        assert blocked.of("ledger_inbox_blocked") == 1
        refusals = Growth(before, blocked)
        labels = {"reason": "unavailable", "accepted": "no"}
        assert refusals.of("ledger_not_accepted_events_total", **labels) >= 1

    async def recovered() -> bool:
        await verbose_stack.http.post("/orders", json=UNKNOWN_ORDER)
        return (await scrape(verbose_stack, "api")).of("ledger_inbox_blocked") == 0

    await eventually(recovered, "the broker reads again")


@contextmanager
def memory_alarm(servers: Servers) -> Iterator[None]:
    """Make the broker block publishers, as it does when it is short of memory."""
    rabbitmqctl(servers, "set_vm_memory_high_watermark", "absolute", "1MB")
    try:
        yield
    finally:
        rabbitmqctl(servers, "set_vm_memory_high_watermark", "0.4")


async def test_requests_are_counted_by_route_and_not_by_path(verbose_stack: Stack) -> None:
    before = await scrape(verbose_stack, "api")
    for _ in range(3):
        problem(await verbose_stack.http.get(f"/orders/{uuid4()}"), 404, "unknown-order")
    problem(await verbose_stack.http.get(f"/{uuid4()}"), 404, "no-such-path")
    after = await scrape(verbose_stack, "api")
    seen = Growth(before, after)
    labels = {"route": "/api/v1/orders/{order_id}", "method": "GET"}
    assert seen.of("ledger_http_requests_total", **labels, status="404") == 3
    assert seen.of("ledger_http_request_seconds_count", **labels) == 3
    assert seen.of("ledger_http_problems_total", type="unknown-order") == 3
    assert seen.of("ledger_http_requests_total", route="elsewhere") == 1
    assert not [labels for _, labels in after if any(is_id(value) for _, value in labels)]


def is_id(text: str) -> bool:
    """True for a label value with an id, which only a client can have chosen."""
    try:
        return any(UUID(part) for part in text.split("/"))
    except ValueError:
        return False


async def test_product_reads_are_counted_as_cache_hits_and_misses(verbose_stack: Stack) -> None:
    product_id = await list_product(verbose_stack.http)
    before = await scrape(verbose_stack, "api")
    for _ in range(4):
        assert (await verbose_stack.http.get(f"/products/{product_id}")).status_code == 200
    reads = Growth(before, await scrape(verbose_stack, "api"))
    assert reads.of("ledger_product_cache_reads_total") == 4
    assert reads.of("ledger_product_cache_reads_total", result="hit") >= 1


async def test_repeated_events_are_counted_and_not_decided_again(verbose_stack: Stack) -> None:
    event = Submitted(uuid4(), uuid4(), now_us(), CustomerRegistered("ann"))
    before = await until_idle(verbose_stack)
    for _ in range(3):
        await publish(verbose_stack, encode_group([encode_submitted(event, "/test")]))

    async def counted() -> bool:
        seen = Growth(before["writer"], await scrape(verbose_stack, "writer"))
        decided = seen.of("ledger_decided_events_total", outcome="customer.registered")
        return (decided, seen.of("ledger_repeats_total")) == (1, 2)

    await eventually(counted, "one is decided, two are repeats")


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text; version=1.0.0"])
async def test_the_format_of_metrics_is_negotiated(verbose_stack: Stack, accept: str) -> None:
    async with httpx.AsyncClient() as http:
        response = await http.get(f"{verbose_stack.url}/metrics", headers={"Accept": accept})
    wanted = accept.partition(";")[0] or "text/plain"
    assert response.headers["content-type"].startswith(wanted)


async def test_a_metrics_port_in_use_is_refused_with_the_remedy() -> None:
    async def nothing() -> None:
        """Measure nothing."""

    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        with pytest.raises(BadSettings, match=rf"port {port} .* set LEDGER_WRITER_METRICS_PORT"):
            await serve_metrics("127.0.0.1", port, registry_of(()), nothing)

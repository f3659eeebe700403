"""Broker, database, writer or client away: what needs it is refused in time, the rest goes on."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import pytest

from cli.commands.processes import API_CONNECTIONS
from tests.harness import DEADLINE_S, Stack, engine_of, eventually, free_port, start_stack
from tests.private_servers import Servers
from tests.proxy import Proxy, open_proxy

from .client import WAIT, Body, list_product, order, problem, register, stock

# A write that can't be done must be refused within this time. A busy machine may add the slack,
# which leaves it below the next longer wait, ten seconds for a confirm.
WRITE_LIMIT_S = 2.0
SLACK_S = 6.0
# How soon after the answers the server must have ended what they asked for.
LEFT_RUNNING_S = 5.0


@dataclass
class Outages:
    """A ledger, and one API process of it that reaches the servers through proxies."""

    stack: Stack
    http: httpx.AsyncClient
    broker: Proxy
    database: Proxy

    async def health(self) -> Body:
        """What the API says about itself."""
        url = urlsplit(str(self.http.base_url))
        ready = await self.http.get(f"http://{url.netloc}/health/ready")
        assert ready.status_code == (200 if ready.json()["status"] == "ready" else 503)
        body: Body = ready.json()
        return body

    async def until_ready(self) -> None:
        """Wait until the API has all it needs."""
        await eventually(self._is_ready, "the API is ready")

    async def until_idle(self) -> None:
        """Wait until the API has all it needs, and every order has been decided."""
        await self.until_ready()
        await eventually(self._is_idle, "nothing is pending")

    async def _is_ready(self) -> bool:
        return bool((await self.health())["status"] == "ready")

    async def _is_idle(self) -> bool:
        return bool((await self.health())["pending_orders"] == 0)


@pytest.fixture(scope="module")
async def shared(servers: Servers) -> AsyncIterator[Outages]:
    stack = await start_stack(servers)
    settings = stack.settings
    async with open_proxy(settings.amqp_port) as broker, open_proxy(settings.db_port) as database:
        changes = {"api_port": free_port(), "amqp_port": broker.port, "db_port": database.port}
        api = Stack(settings.model_copy(update=changes))
        api.start("api")
        try:
            await api.ready()
            yield Outages(stack, api.http, broker, database)
        finally:
            await api.stop()
            await stack.stop()


@pytest.fixture
async def outages(shared: Outages) -> AsyncIterator[Outages]:
    """The shared one; whatever a test breaks is mended for the next."""
    yield shared
    await shared.broker.heal()
    await shared.database.heal()
    if "writer" not in shared.stack.processes:
        shared.stack.start("writer")
    await shared.until_idle()


async def timed(answer: Awaitable[httpx.Response]) -> httpx.Response:
    """The answer, which must come in the time that a write may take."""
    begun = time.monotonic()
    response = await answer
    assert time.monotonic() - begun < WRITE_LIMIT_S + SLACK_S
    return response


@pytest.mark.parametrize("fault", [Proxy.cut, Proxy.stall])
async def test_without_broker_writes_are_refused_in_time_and_reads_go_on(
    outages: Outages, fault: Callable[[Proxy], None]
) -> None:
    customer_id, product_id = await register(outages.http), await list_product(outages.http)
    placed = await order(outages.http, customer_id, product_id)
    fault(outages.broker)
    body = {"customer_id": customer_id, "product_id": product_id}
    # Before it is known, something may be sent. That is waited for, and then answered 202.
    first = asyncio.create_task(outages.http.post("/orders", json=body))

    async def is_known() -> bool:
        return not (await outages.health())["inbox"]

    await eventually(is_known, "the API knows that the broker takes nothing")
    for path, sent in (
        ("/orders", body),
        ("/customers", {"username": "ann"}),
        (f"/customers/{customer_id}/deposits", {"amount": 1}),
        (f"/orders/{placed['order_id']}/cancel", {}),
    ):
        refused = problem(await timed(outages.http.post(path, json=sent)), 503, "inbox-unavailable")
        assert refused["accepted"] == "no"
    assert (await outages.http.get(f"/orders/{placed['order_id']}")).status_code == 200
    assert await stock(outages.http, product_id) == 99
    await outages.broker.heal()
    assert (await first).status_code == 202 or (await first).json()["accepted"] == "no"
    await outages.until_ready()
    again = await outages.http.post("/orders", json=body, headers=WAIT)
    assert again.json()["status"] == "COMPLETED"


async def test_readiness_names_the_part_that_is_away(outages: Outages) -> None:
    outages.broker.cut()

    async def misses_the_broker() -> bool:
        health = await outages.health()
        return [health["inbox"], health["announcements"], health["views"]] == [False, False, True]

    await eventually(misses_the_broker, "the broker is missed")
    await outages.broker.heal()
    await outages.until_ready()
    outages.database.cut()
    health = await outages.health()
    assert [health["inbox"], health["announcements"], health["views"]] == [True, True, False]
    await outages.database.heal()
    await outages.until_ready()


@pytest.mark.parametrize("fault", [Proxy.cut, Proxy.stall])
async def test_without_database_orders_are_accepted_and_reads_are_refused(
    outages: Outages, fault: Callable[[Proxy], None]
) -> None:
    customer_id, product_id = await register(outages.http), await list_product(outages.http)
    fault(outages.database)
    accepted = await timed(
        outages.http.post("/orders", json={"customer_id": customer_id, "product_id": product_id})
    )
    assert accepted.status_code == 202
    keyed = {"Idempotency-Key": str(uuid4())}
    body = {"customer_id": customer_id, "product_id": product_id}
    assert (await timed(outages.http.post("/orders", json=body, headers=keyed))).status_code == 202
    order_id = accepted.json()["order_id"]
    ids = (f"/orders/{order_id}", f"/customers/{customer_id}")
    for path in (*ids, "/orders", "/products", "/reports/trial-balance"):
        problem(await timed(outages.http.get(path)), 503, "views-unavailable")
    await outages.database.heal()
    await outages.until_ready()

    async def is_completed() -> bool:
        answer = await outages.http.get(f"/orders/{order_id}")
        return bool(answer.json().get("status") == "COMPLETED")

    await eventually(is_completed, "the order is completed")


async def test_an_accepted_request_is_never_refused_because_the_view_is_away(
    outages: Outages,
) -> None:
    """A 503 would make the client register a second customer."""
    outages.database.cut()
    response = await outages.http.post("/customers", json={"username": "ann"}, headers=WAIT)
    assert response.status_code == 202
    await outages.database.heal()
    await outages.until_ready()
    answer = await outages.http.get(response.headers["location"].removeprefix("/api/v1"))
    assert answer.json()["username"] == "ann"


async def test_without_writer_orders_are_pending_and_none_is_lost(outages: Outages) -> None:
    outages.stack.kill("writer")
    body = {"customer_id": str(uuid4()), "product_id": str(uuid4())}
    accepted = [await outages.http.post("/orders", json=body) for _ in range(50)]
    ids = [response.json()["order_id"] for response in accepted]
    for order_id, response in zip(ids, accepted, strict=True):
        answer = (await outages.http.get(f"/orders/{order_id}")).json()
        assert answer["status"] == "PENDING"
        assert answer["created_at"] == response.json()["created_at"]
        assert answer["position"] is None
    assert (await outages.health())["pending_orders"] == 50
    outages.stack.start("writer")
    await outages.until_idle()
    for order_id in ids:
        assert (await outages.http.get(f"/orders/{order_id}")).json()["status"] == "FAILED"


async def test_without_writer_an_accepted_order_has_an_empty_history(outages: Outages) -> None:
    outages.stack.kill("writer")
    body = {"customer_id": str(uuid4()), "product_id": str(uuid4())}
    accepted = await outages.http.post("/orders", json=body)
    path = f"/orders/{accepted.json()['order_id']}/events"
    pending = await outages.http.get(path)
    assert (pending.status_code, pending.json()) == (200, [])
    outages.stack.start("writer")
    await outages.until_idle()
    events = (await outages.http.get(path)).json()
    assert [event["type"] for event in events] == ["order.placed", "order.failed"]


async def test_a_late_decision_is_answered_202_with_its_location(outages: Outages) -> None:
    customer_id = await register(outages.http)
    outages.stack.kill("writer")
    wait = {"Prefer": "wait=1"}
    late = await outages.http.post("/customers", json={"username": "ann"}, headers=wait)
    unasked = await timed(
        outages.http.post("/products", json={"name": "x", "base_price": 1, "stock": 1})
    )
    deposit = await outages.http.post(
        f"/customers/{customer_id}/deposits", json={"amount": 1}, headers=wait
    )
    placed = await outages.http.post(
        "/orders", json={"customer_id": customer_id, "product_id": str(uuid4())}, headers=wait
    )
    for response in (late, deposit, placed):
        assert response.status_code == 202
        assert "preference-applied" not in response.headers
    assert unasked.status_code == 202
    assert "preference-applied" not in unasked.headers
    assert placed.json()["status"] == "PENDING"
    problem(
        await outages.http.get(late.headers["location"].removeprefix("/api/v1")),
        404,
        "unknown-customer",
    )
    outages.stack.start("writer")

    async def is_there() -> bool:
        answer = await outages.http.get(unasked.headers["location"].removeprefix("/api/v1"))
        return answer.status_code == 200

    await eventually(is_there, "the product is listed")


async def test_a_retry_while_the_first_try_is_undecided_is_the_same_event(outages: Outages) -> None:
    outages.stack.kill("writer")
    headers = {"Idempotency-Key": str(uuid4()), "Prefer": "wait=1"}
    tries = [
        await outages.http.post("/customers", json={"username": "ann"}, headers=headers)
        for _ in range(2)
    ]
    outages.stack.start("writer")
    marked = await register(outages.http)
    position = (await outages.http.get(f"/customers/{marked}")).json()["position"]
    last = await outages.http.post(
        "/customers", json={"username": "ann"}, headers={**headers, **WAIT}
    )
    assert [response.status_code for response in tries] == [202, 202]
    assert last.status_code == 201
    assert {response.headers["location"] for response in (*tries, last)} == {
        last.headers["location"]
    }
    assert last.json()["position"] == position - 1


async def test_orders_whose_announcement_was_missed_do_not_stay_pending(outages: Outages) -> None:
    """Nothing else would ever take them out of this process's memory."""
    outages.stack.kill("writer")
    body = {"customer_id": str(uuid4()), "product_id": str(uuid4())}
    for _ in range(10):
        await outages.http.post("/orders", json=body)
    outages.broker.cut()

    async def hears_nothing() -> bool:
        return not (await outages.health())["announcements"]

    # The loss of the connection is answered by a look at the views, which must find nothing yet.
    await eventually(hears_nothing, "the API knows that it hears nothing")
    outages.stack.start("writer")
    mine = {"status": "FAILED", "customer_id": body["customer_id"]}

    async def all_shown() -> bool:
        answer = await outages.http.get("/orders", params=mine)
        return len(answer.json()["items"]) == 10

    await eventually(all_shown, "the views show all")
    assert (await outages.health())["pending_orders"] == 10
    await outages.broker.heal()
    await outages.until_idle()


@pytest.mark.parametrize("fault", [Proxy.cut, Proxy.stall])
async def test_a_cached_product_is_not_served_after_announcements_stop(
    outages: Outages, fault: Callable[[Proxy], None]
) -> None:
    product_id = await list_product(outages.http)
    assert await stock(outages.http, product_id) == 100
    fault(outages.broker)
    elsewhere = outages.stack.http
    await order(elsewhere, await register(elsewhere), product_id)

    async def shows_the_sale() -> bool:
        return await stock(outages.http, product_id) == 99

    await eventually(shows_the_sale, "the new stock", 3)


async def test_the_order_of_a_client_that_hangs_up_is_placed(outages: Outages) -> None:
    customer_id, url = str(uuid4()), urlsplit(str(outages.http.base_url))
    body = json.dumps({"customer_id": customer_id, "product_id": str(uuid4())})
    head = "POST /api/v1/orders HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    for _ in range(20):
        _, writer = await asyncio.open_connection(url.hostname, url.port)
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        await writer.drain()
        writer.close()

    async def all_there() -> bool:
        answer = await outages.http.get("/orders", params={"customer_id": customer_id})
        return len(answer.json()["items"]) == 20

    await eventually(all_there, "all orders are in the view")


async def test_a_stopping_process_answers_waiting_clients_and_exits_with_0(
    make_stack: Callable[..., Awaitable[Stack]],
) -> None:
    stack = await make_stack()
    stack.kill("writer")
    body = {"customer_id": str(uuid4()), "product_id": str(uuid4())}
    wait = {"Prefer": "wait=30"}
    waiting = asyncio.create_task(stack.http.post("/orders", json=body, headers=wait))

    async def is_pending() -> bool:
        health = await stack.http.get(f"{stack.url}/health/ready")
        return bool(health.json()["pending_orders"] == 1)

    await eventually(is_pending, "the order is in the inbox")
    begun = time.monotonic()
    status = await asyncio.to_thread(stack.terminate, "api")
    response = await waiting
    assert status == 0
    assert time.monotonic() - begun < DEADLINE_S
    assert response.status_code == 202
    assert "preference-applied" not in response.headers


async def test_a_retry_on_another_process_is_the_same_event(outages: Outages) -> None:
    """As after a restart: the key is all that the two have in common."""
    here, there = outages.http, outages.stack.http
    customer_id, product_id = await register(here), await list_product(here)
    body = {"customer_id": customer_id, "product_id": product_id}
    calls: list[tuple[str, Body, Body]] = [
        ("/orders", body, {**body, "quantity": 2}),
        ("/customers", {"username": "ann"}, {"username": "bob"}),
        (
            "/products",
            {"name": "Lamp", "base_price": 1, "stock": 1},
            {"name": "Desk", "base_price": 1, "stock": 1},
        ),
    ]
    for path, sent, other in calls:
        headers = {"Idempotency-Key": str(uuid4()), **WAIT}
        first = await here.post(path, json=sent, headers=headers)
        again = await there.post(path, json=sent, headers=headers)
        assert first.status_code == again.status_code == 201
        assert first.json() == again.json()
        assert again.headers["idempotency-replayed"] == "true"
        problem(await there.post(path, json=other, headers=headers), 422, "key-reused")
    assert await stock(there, product_id) == 99


async def test_an_order_retried_without_waiting_is_shown_as_decided(outages: Outages) -> None:
    body = {"customer_id": str(uuid4()), "product_id": str(uuid4())}
    headers = {"Idempotency-Key": str(uuid4())}
    first = await outages.http.post("/orders", json=body, headers=headers)
    await outages.until_idle()
    again = await outages.stack.http.post("/orders", json=body, headers=headers)
    assert first.status_code == again.status_code == 202
    path = first.headers["location"].removeprefix("/api/v1")
    assert again.json() == (await outages.stack.http.get(path)).json()
    assert again.headers["idempotency-replayed"] == "true"


async def test_a_deposit_retried_on_another_process_is_paid_once(outages: Outages) -> None:
    customer_id = await register(outages.http)
    path, headers = f"/customers/{customer_id}/deposits", {"Idempotency-Key": str(uuid4())}
    first = await outages.http.post(path, json={"amount": 1}, headers={**headers, **WAIT})
    again = await outages.stack.http.post(path, json={"amount": 1}, headers={**headers, **WAIT})
    assert first.status_code == again.status_code == 200
    assert first.json() == again.json()
    assert again.headers["idempotency-replayed"] == "true"
    other = await outages.stack.http.post(path, json={"amount": 2}, headers=headers)
    problem(other, 422, "key-reused")


async def test_min_position_from_one_process_makes_another_wait_for_it(outages: Outages) -> None:
    product_id = await list_product(outages.http)
    placed = await order(outages.http, await register(outages.http), product_id)
    answer = await outages.stack.http.get(
        f"/products/{product_id}", params={"min_position": placed["position"]}
    )
    assert answer.json()["stock"] == 99


async def test_reads_that_time_out_leave_nothing_running_and_the_writer_its_connections(
    shared: Outages,
) -> None:
    """The view is a slow one for a while, as any is that is far larger than the memory."""
    stack, calls = shared.stack, 200
    await order(stack.http, await register(stack.http), await list_product(stack.http))
    stack.terminate("projector")
    migrating = engine_of(stack.settings, "migrate")
    reading = engine_of(stack.settings, "api")

    async def statements(condition: str = "TRUE") -> int:
        async with reading.connect() as connection:
            found = await connection.exec_driver_sql(
                "SELECT COUNT(*) FROM information_schema.processlist WHERE db = DATABASE()"
                f" AND id <> CONNECTION_ID() AND {condition}"
            )
            count: int = found.scalar_one()
            return count

    async with migrating.begin() as connection:
        await connection.exec_driver_sql("RENAME TABLE orders TO orders_aside")
        await connection.exec_driver_sql(
            "CREATE VIEW orders AS SELECT * FROM orders_aside"
            " WHERE BENCHMARK(1000000000, MD5(position)) = 0"
        )
    try:
        reads = [asyncio.create_task(stack.http.get("/orders?limit=1")) for _ in range(calls)]
        await eventually(lambda: statements("info LIKE '%%orders%%'"), "a slow read is running")
        accepted = await stack.http.post("/customers", json={"username": "ann"})
        assert accepted.status_code == 202
        answers = await asyncio.gather(*reads)
        # Those that had their turn timed out; the others gave up waiting for one.
        assert {answer.status_code for answer in answers} == {503}
        assert "/problems/views-unavailable" in {answer.json()["type"] for answer in answers}
        assert await statements() <= 2 * API_CONNECTIONS

        async def none_is_left() -> bool:
            return await statements("info LIKE '%%orders%%'") == 0

        await eventually(none_is_left, "the server has ended them all", LEFT_RUNNING_S)
    finally:
        async with migrating.begin() as connection:
            await connection.exec_driver_sql("DROP VIEW orders")
            await connection.exec_driver_sql("RENAME TABLE orders_aside TO orders")
        stack.start("projector")
    assert (await stack.http.get("/orders?limit=1")).status_code == 200
    for engine in (migrating, reading):
        await engine.dispose()

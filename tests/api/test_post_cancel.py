"""POST /orders/{order_id}/cancel."""

import asyncio
from decimal import Decimal
from uuid import UUID, uuid4

import httpx

from ledger.core.events import OrderHistory, OrderPlaced
from ledger.eventlog.records import Submitted
from tests.harness import Stack
from tests.ledger.pipeline import running_ledger

from .client import (
    WAIT,
    balance,
    cancel,
    exact,
    list_product,
    nothing_appended,
    order,
    post,
    problem,
    register,
    stock,
)


async def test_a_cancel_refunds_and_restocks_exactly(http: httpx.AsyncClient) -> None:
    customer_id, product_id = await register(http), await list_product(http, "33.33", 10)
    placed = await order(http, customer_id, product_id, 3)
    assert await balance(http, customer_id) == Decimal("4900.01")
    cancelled = await cancel(http, placed["order_id"])
    assert cancelled["status"] == "CANCELLED"
    assert await balance(http, customer_id) == Decimal("5000.00")
    assert await stock(http, product_id) == 10


async def test_a_cancel_is_accepted_at_once(http: httpx.AsyncClient) -> None:
    placed = await order(http, await register(http), await list_product(http))
    response = await http.post(f"/orders/{placed['order_id']}/cancel")
    assert response.status_code == 202
    assert response.json()["order_id"] == placed["order_id"]
    assert response.json()["message"]
    assert response.headers["location"] == f"/api/v1/orders/{placed['order_id']}"


async def test_an_order_can_be_cancelled_right_after_it_was_accepted(
    http: httpx.AsyncClient,
) -> None:
    customer_id, product_id = await register(http), await list_product(http)
    body = {"customer_id": customer_id, "product_id": product_id}
    order_id = (await http.post("/orders", json=body)).json()["order_id"]
    assert (await cancel(http, order_id))["status"] == "CANCELLED"
    assert await balance(http, customer_id) == Decimal("5000.00")


async def test_an_unknown_order_can_not_be_cancelled(http: httpx.AsyncClient) -> None:
    async with nothing_appended(http):
        problem(await http.post(f"/orders/{uuid4()}/cancel"), 404, "unknown-order")


async def test_a_failed_order_can_not_be_cancelled(http: httpx.AsyncClient) -> None:
    failed = await order(http, str(uuid4()), str(uuid4()))
    async with nothing_appended(http):
        response = await http.post(f"/orders/{failed['order_id']}/cancel")
        assert problem(response, 409, "not-cancellable")["reason"] == "NOT_COMPLETED"


async def test_a_second_cancel_is_refused(http: httpx.AsyncClient) -> None:
    placed = await order(http, await register(http), await list_product(http))
    await cancel(http, placed["order_id"])
    async with nothing_appended(http):
        response = await http.post(f"/orders/{placed['order_id']}/cancel")
        assert problem(response, 409, "not-cancellable")["reason"] == "ALREADY_CANCELLED"


async def test_an_order_of_the_old_system_is_shown_as_it_was_and_can_not_be_cancelled(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    customer_id, product_id = await register(http), await list_product(http)
    placed = OrderPlaced(UUID(customer_id), UUID(product_id), 2, OrderHistory("COMPLETED", 2))
    event = Submitted(uuid4(), uuid4(), 1, placed)
    async with running_ledger(stack.settings) as ledger:
        await ledger.put_events([event])
        head = (await ledger.until_recorded([event]))[-1]
    path = f"/orders/{event.stream_id}"
    shown = (await http.get(path, params={"min_position": head.position})).json()
    assert (shown["status"], shown["price_paid"], shown["failure_reason"]) == (
        "COMPLETED",
        None,
        None,
    )
    times = (shown["created_at"], shown["updated_at"])
    assert times == ("1970-01-01T00:00:00.000001Z", "1970-01-01T00:00:00.000002Z")
    async with nothing_appended(http):
        response = await http.post(f"{path}/cancel")
        assert problem(response, 409, "not-cancellable")["reason"] == "IMPORTED"
    assert await balance(http, customer_id) == Decimal("5000.00")
    assert await stock(http, product_id) == 100
    (told,) = (await http.get(f"{path}/events")).json()
    assert told["data"]["history"] == {"status": "COMPLETED", "updated_at_us": 2}


async def test_of_many_simultaneous_cancels_one_refunds(http: httpx.AsyncClient) -> None:
    customer_id, product_id = await register(http), await list_product(http)
    placed = await order(http, customer_id, product_id)
    path = f"/orders/{placed['order_id']}/cancel"
    responses = await asyncio.gather(*(http.post(path, headers=WAIT) for _ in range(20)))
    statuses = [response.status_code for response in responses]
    assert statuses.count(200) == 1
    assert statuses.count(409) == 19
    assert await balance(http, customer_id) == Decimal("5000.00")
    assert await stock(http, product_id) == 100


async def test_a_retry_with_the_same_key_is_the_same_cancel(http: httpx.AsyncClient) -> None:
    customer_id = await register(http)
    placed = await order(http, customer_id, await list_product(http))
    path, headers = (
        f"/orders/{placed['order_id']}/cancel",
        {"Idempotency-Key": str(uuid4()), **WAIT},
    )
    first = await http.post(path, headers=headers)
    async with nothing_appended(http):
        again = await http.post(path, headers=headers)
    assert first.status_code == again.status_code == 200
    assert exact(first) == exact(again)
    assert again.headers["idempotency-replayed"] == "true"


async def test_a_body_may_be_empty_but_have_no_fields(http: httpx.AsyncClient) -> None:
    placed = await order(http, await register(http), await list_product(http))
    path = f"/orders/{placed['order_id']}/cancel"
    problem(await post(http, path, '{"reason": "why"}'), 422, "invalid-fields", "reason")
    assert (await post(http, path, "{}", WAIT)).status_code == 200


async def test_an_id_that_is_not_a_uuid_is_named(http: httpx.AsyncClient) -> None:
    problem(await http.post("/orders/x/cancel"), 422, "invalid-fields", "order_id")

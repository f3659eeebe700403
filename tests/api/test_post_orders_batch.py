"""POST /orders/batch."""

import asyncio
import json
import random
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from api.resources.orders import MAX_BATCH_BODY
from api.schemas import MAX_BATCH
from tests.harness import Stack
from tests.proxy import open_proxy

from .client import (
    WAIT,
    Body,
    balance,
    limit,
    list_product,
    nothing_appended,
    order,
    problem,
    register,
    stock,
)


def unknown() -> Body:
    """An order that will fail."""
    return {"customer_id": str(uuid4()), "product_id": str(uuid4())}


async def send(
    http: httpx.AsyncClient, orders: object, headers: dict[str, str] | None = None, **more: object
) -> httpx.Response:
    """A batch of orders."""
    return await http.post("/orders/batch", json={"orders": orders, **more}, headers=headers or {})


async def history(http: httpx.AsyncClient, order_id: str) -> list[Body]:
    """The events of one order."""
    events: list[Body] = (await http.get(f"/orders/{order_id}/events")).json()
    return events


async def test_a_thousand_orders_are_accepted_and_found(http: httpx.AsyncClient) -> None:
    customer_id, product_id = await register(http), await list_product(http)
    body = {"customer_id": customer_id, "product_id": product_id, "quantity": 1}
    response = await send(http, [{**body, "quantity": i + 1} for i in range(MAX_BATCH)])
    assert response.status_code == 202, response.text
    orders = response.json()["orders"]
    assert [placed["quantity"] for placed in orders] == list(range(1, MAX_BATCH + 1))
    assert {placed["status"] for placed in orders} == {"PENDING"}
    assert len({UUID(placed["order_id"]) for placed in orders}) == MAX_BATCH
    for placed in (orders[0], orders[-1]):
        found = (await http.get(f"/orders/{placed['order_id']}")).json()
        assert found["created_at"] == placed["created_at"]


async def test_prefer_wait_answers_with_every_decision_in_batch_order(
    http: httpx.AsyncClient,
) -> None:
    customer_id, product_id = await register(http), await list_product(http, stock=3)
    body = {"customer_id": customer_id, "product_id": product_id}
    response = await send(http, [body, {**body, "quantity": 3}, unknown(), body], WAIT)
    assert response.status_code == 207
    orders = response.json()["orders"]
    assert [placed["status"] for placed in orders] == ["COMPLETED", "FAILED", "FAILED", "COMPLETED"]
    assert orders[1]["failure_reason"] == "INSUFFICIENT_STOCK"
    assert response.headers["preference-applied"] == "wait=20"
    positions = [placed["position"] for placed in orders]
    assert positions == list(range(positions[0], positions[0] + 8, 2))
    assert int(response.headers["ledger-position"]) >= positions[-1]
    assert await stock(http, product_id) == 1


async def test_a_batch_of_which_no_order_was_completed_is_a_problem(
    http: httpx.AsyncClient,
) -> None:
    headers = {**WAIT, "Idempotency-Key": str(uuid4())}
    response = await send(http, [unknown()] * 3, headers)
    failed = problem(response, 409, "batch-failed", "orders[2]")
    assert {placed["failure_reason"] for placed in failed["orders"]} == {"UNKNOWN_PRODUCT"}
    assert response.headers["preference-applied"] == "wait=20"
    assert int(response.headers["ledger-position"]) >= failed["orders"][2]["position"]


@pytest.mark.parametrize("enough", [True, False])
async def test_atomic_means_all_or_none_in_one_range(http: httpx.AsyncClient, enough: bool) -> None:
    customer_id = await register(http)
    product_id = await list_product(http, base_price="1.00", stock=50 if enough else 49)
    body = {"customer_id": customer_id, "product_id": product_id}
    before = await balance(http, customer_id)
    beside = asyncio.gather(*(order(http, **unknown()) for _ in range(20)))
    response = await send(http, [body] * 50, WAIT, atomic=True)
    await beside
    if enough:
        assert response.status_code == 201
    else:
        failed = problem(response, 409, "batch-failed", "orders[49]")
        assert failed["reason"] == "BATCH_FAILED"
        assert len(failed["errors"]) == 1
    orders = response.json()["orders"]
    assert {placed["status"] for placed in orders} == {"COMPLETED" if enough else "FAILED"}
    reasons = {placed["failure_reason"] for placed in orders}
    assert reasons == ({None} if enough else {"BATCH_FAILED", "INSUFFICIENT_STOCK"})
    positions = [placed["position"] for placed in orders]
    assert positions == list(range(positions[0], positions[0] + 100, 2))
    assert await stock(http, product_id) == (0 if enough else 49)
    assert (await balance(http, customer_id) == before) is not enough
    (placed, _) = await history(http, orders[0]["order_id"])
    (last, _) = await history(http, orders[-1]["order_id"])
    assert placed["atomicid"] == last["atomicid"]


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ({"quantity": 0}, "orders[3].quantity"),
        ({"customer_id": "ann"}, "orders[3].customer_id"),
        ({"price": 1}, "orders[3].price"),
        (None, "orders[3]"),
    ],
)
async def test_an_invalid_element_is_named_and_nothing_is_appended(
    http: httpx.AsyncClient, bad: Body | None, field: str
) -> None:
    elements = [unknown(), unknown(), unknown(), bad and {**unknown(), **bad}, unknown()]
    async with nothing_appended(http):
        problem(await send(http, elements), 422, "invalid-fields", field)


async def test_an_invalid_batch_is_refused(http: httpx.AsyncClient) -> None:
    async with nothing_appended(http):
        few = problem(await send(http, []), 422, "invalid-fields", "orders")
        many = problem(await send(http, [unknown()] * 1001), 422, "invalid-fields", "orders")
        problem(await send(http, {}), 422, "invalid-fields", "orders")
        problem(await send(http, [unknown()], atomic="yes"), 422, "invalid-fields", "atomic")
        problem(await http.post("/orders/batch", json=[]), 422, "invalid-fields", "body")
    assert (limit(few, "orders"), limit(many, "orders")) == (1, 1000)


async def test_the_number_of_reported_errors_is_limited(http: httpx.AsyncClient) -> None:
    response = await send(http, [{}] * 1000)
    assert len(problem(response, 422, "invalid-fields")["errors"]) == 100


async def test_a_batch_has_a_larger_maximum_size(http: httpx.AsyncClient) -> None:
    text = json.dumps({"orders": [unknown()] * 1000})
    padded = text + " " * (MAX_BATCH_BODY - len(text))
    json_type = {"Content-Type": "application/json"}
    full = await http.post("/orders/batch", content=padded, headers=json_type)
    assert full.status_code == 202
    over = await http.post("/orders/batch", content=padded + " ", headers=json_type)
    problem(over, 413, "body-too-large")


async def test_a_batch_has_no_get(http: httpx.AsyncClient) -> None:
    problem(await http.get("/orders/batch"), 405, "method-not-allowed")


MAX_CUTS = 40


async def test_ten_thousand_orders_in_batches_with_cut_connections_make_no_duplicate(
    http: httpx.AsyncClient, stack: Stack
) -> None:
    """A client that knows nothing but its keys, on a way that is cut at random."""
    customer_id = await register(http, "10000.00")
    product_id = await list_product(http, "0.01", 10_000)
    body = {"customer_id": customer_id, "product_id": product_id}
    chance, cuts = random.Random(7), 0
    waiting = [str(uuid4()) for _ in range(40)]
    made: dict[str, list[Any]] = {}

    async def place(client: httpx.AsyncClient, key: str) -> None:
        headers = {"Idempotency-Key": key, "Content-Type": "application/json"}
        while key not in made:
            try:
                answer = await client.post("/orders/batch", content=text, headers=headers)
            except httpx.TransportError:
                continue
            if answer.status_code == 202:
                made[key] = [placed["order_id"] for placed in answer.json()["orders"]]

    async def work(client: httpx.AsyncClient) -> None:
        while waiting:
            await place(client, waiting.pop())

    text = json.dumps({"orders": [body] * 250})
    async with asyncio.timeout(120), open_proxy(stack.settings.api_port) as way:
        url = f"http://127.0.0.1:{way.port}/api/v1"
        async with httpx.AsyncClient(base_url=url, timeout=10) as client:
            workers = asyncio.gather(*(work(client) for _ in range(8)))
            # On a busy machine no batch may fit between two cuts: they come to an end.
            while not workers.done() and cuts < MAX_CUTS:
                way.cut()
                await way.heal()
                cuts += 1
                await asyncio.wait((workers,), timeout=chance.uniform(0.03, 0.25))
            await workers
    ids = {order_id for batch in made.values() for order_id in batch}
    assert cuts > 3
    assert len(ids) == 10_000
    last = await send(http, [unknown()], WAIT)
    assert last.status_code == 409
    assert await stock(http, product_id) == 0
    mine = {"customer_id": customer_id, "status": "COMPLETED", "limit": "500"}
    found: set[str] = set()
    path: str | None = f"/orders?{httpx.QueryParams(mine)}"
    while path:
        page = await http.get(path)
        found |= {placed["order_id"] for placed in page.json()["items"]}
        link = page.links.get("next")
        path = link["url"].removeprefix("/api/v1") if link else None
    assert found == ids

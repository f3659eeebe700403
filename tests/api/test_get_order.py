"""GET /orders/{order_id}."""

import asyncio
from decimal import Decimal
from uuid import UUID, uuid4

import httpx
import pytest

from .client import cancel, exact, limit, list_product, order, problem, register

AN_ID = UUID("0190b5a2-3c4d-7e6f-8a9b-0c1d2e3f4a5b")


async def test_an_order_is_found_right_after_it_was_accepted(http: httpx.AsyncClient) -> None:
    """A 404 here would tell a client that its order was lost."""

    async def place_and_get() -> httpx.Response:
        body = {"customer_id": str(uuid4()), "product_id": str(uuid4()), "quantity": 7}
        accepted = await http.post("/orders", json=body)
        found = await http.get(accepted.headers["location"].removeprefix("/api/v1"))
        assert found.json()["created_at"] == accepted.json()["created_at"]
        assert {name: found.json()[name] for name in body} == body
        return found

    found = await asyncio.gather(*(place_and_get() for _ in range(100)))
    assert {response.status_code for response in found} == {200}
    assert {response.json()["status"] for response in found} <= {"PENDING", "FAILED"}


async def test_a_completed_order_has_price_and_total(http: httpx.AsyncClient) -> None:
    customer_id, product_id = await register(http), await list_product(http, "12.50", 10)
    placed = await order(http, customer_id, product_id, 2)
    response = await http.get(f"/orders/{placed['order_id']}")
    found = exact(response)
    assert found == placed
    assert found["status"] == "COMPLETED"
    assert (found["unit_price"], found["price_paid"]) == (Decimal("12.50"), Decimal("25.00"))
    assert found["failure_reason"] is None
    assert found["updated_at"] >= found["created_at"]
    assert int(response.headers["ledger-position"]) >= found["position"]


async def test_a_cancelled_order_still_shows_what_was_paid(http: httpx.AsyncClient) -> None:
    placed = await order(http, await register(http), await list_product(http))
    await cancel(http, placed["order_id"])
    found = exact(await http.get(f"/orders/{placed['order_id']}"))
    assert found["status"] == "CANCELLED"
    assert found["price_paid"] == placed["price_paid"]
    assert found["position"] > placed["position"]


async def test_an_unknown_order_is_a_404(http: httpx.AsyncClient) -> None:
    problem(await http.get(f"/orders/{uuid4()}"), 404, "unknown-order")


@pytest.mark.parametrize("order_id", ["1", "ann", "a" * 36, f"{{{AN_ID}}}", f"urn:uuid:{AN_ID}"])
async def test_an_id_that_is_not_a_uuid_is_named(http: httpx.AsyncClient, order_id: str) -> None:
    problem(await http.get(f"/orders/{order_id}"), 422, "invalid-fields", "order_id")


async def test_min_position_that_is_reached_makes_no_difference(http: httpx.AsyncClient) -> None:
    placed = await order(http, await register(http), await list_product(http))
    path = f"/orders/{placed['order_id']}"
    found = await http.get(path, params={"min_position": placed["position"]})
    assert exact(found) == placed


async def test_min_position_beyond_the_ledgers_end_is_refused_once_it_was_waited_for(
    http: httpx.AsyncClient,
) -> None:
    response = await http.get(f"/orders/{uuid4()}", params={"min_position": 2**63 - 1})
    body = problem(response, 409, "beyond-head", "min_position")
    assert limit(body, "min_position") == body["head"]
    assert body["ledger"] in body["detail"]


async def test_min_position_waits_until_the_views_are_there(http: httpx.AsyncClient) -> None:
    customer_id = await register(http)
    path = f"/customers/{customer_id}"
    position = int((await http.get(path)).headers["ledger-position"])
    waiting = asyncio.create_task(http.get(path, params={"min_position": position + 1}))
    await register(http)
    response = await waiting
    assert response.status_code == 200
    assert int(response.headers["ledger-position"]) > position


@pytest.mark.parametrize(
    "query",
    [
        "min_position=-1",
        "min_position=x",
        "min_position=",
        "min_position=9223372036854775808",
        "min_position=1.5",
        "min_position=%D9%A1",
    ],
)
async def test_an_invalid_min_position_is_named(http: httpx.AsyncClient, query: str) -> None:
    response = await http.get(f"/orders/{uuid4()}?{query}")
    problem(response, 422, "invalid-fields", "min_position")


@pytest.mark.parametrize("query", ["expand=1", "min_position=1&min_position=2"])
async def test_an_unknown_or_duplicate_parameter_is_refused(
    http: httpx.AsyncClient, query: str
) -> None:
    problem(await http.get(f"/orders/{uuid4()}?{query}"), 422, "invalid-fields")

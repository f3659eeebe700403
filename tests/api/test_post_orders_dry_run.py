"""POST /orders?dry_run=true."""

from decimal import Decimal
from uuid import uuid4

import httpx
import pytest

from .client import Body, exact, list_product, nothing_appended, order, problem, register


async def dry_run(http: httpx.AsyncClient, body: Body) -> Body:
    """What would be decided."""
    response = await http.post("/orders?dry_run=true", json=body)
    assert response.status_code == 200, response.text
    found = exact(response)
    assert int(response.headers["ledger-position"]) == found["position"]
    return found


@pytest.mark.parametrize("quantity", [1, 5, 6, 8, 9, 10, 11, 60])
async def test_a_dry_run_equals_the_decision_that_follows(
    http: httpx.AsyncClient, quantity: int
) -> None:
    customer_id, product_id = await register(http), await list_product(http, stock=10)
    await order(http, customer_id, product_id, 4)
    body = {"customer_id": customer_id, "product_id": product_id, "quantity": quantity}
    told = await dry_run(http, body)
    decided = await order(http, customer_id, product_id, quantity)
    for mine, theirs in (
        ("status", "status"),
        ("unit_price", "unit_price"),
        ("total", "price_paid"),
        ("failure_reason", "failure_reason"),
        ("quantity", "quantity"),
        ("product_id", "product_id"),
        ("customer_id", "customer_id"),
    ):
        assert told[mine] == decided[theirs]
    assert told["position"] < decided["position"]


async def test_a_dry_run_reports_the_reason_that_takes_precedence(http: httpx.AsyncClient) -> None:
    customer_id, product_id = await register(http), await list_product(http, "5000.01", 1)
    nobody, nothing = str(uuid4()), str(uuid4())
    for customer, product, quantity, reason in (
        (nobody, nothing, 2, "UNKNOWN_PRODUCT"),
        (nobody, product_id, 2, "UNKNOWN_CUSTOMER"),
        (customer_id, product_id, 2, "INSUFFICIENT_STOCK"),
        (customer_id, product_id, 1, "INSUFFICIENT_BALANCE"),
    ):
        body = {"customer_id": customer, "product_id": product, "quantity": quantity}
        told = await dry_run(http, body)
        assert (told["status"], told["failure_reason"]) == ("FAILED", reason)
        assert told["unit_price"] is None
        assert told["total"] is None


async def test_a_dry_run_appends_nothing(http: httpx.AsyncClient) -> None:
    body = {"customer_id": await register(http), "product_id": await list_product(http)}
    headers = {"Idempotency-Key": str(uuid4())}
    async with nothing_appended(http):
        told = await dry_run(http, body)
        await http.post("/orders?dry_run=true", json=body, headers=headers)
    assert told["total"] == Decimal("100.00")
    placed = await http.post("/orders?dry_run=false", json=body, headers=headers)
    assert placed.status_code == 202
    assert "idempotency-replayed" not in placed.headers


@pytest.mark.parametrize("value", ["1", "", "TRUE", "yes"])
async def test_a_value_other_than_true_or_false_is_refused(
    http: httpx.AsyncClient, value: str
) -> None:
    body = {"customer_id": str(uuid4()), "product_id": str(uuid4())}
    async with nothing_appended(http):
        response = await http.post("/orders", params={"dry_run": value}, json=body)
        problem(response, 422, "invalid-fields", "dry_run")

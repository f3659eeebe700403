"""POST /products/{product_id}/receipts."""

from decimal import Decimal
from uuid import uuid4

import httpx
import pytest

from ledger.core.events import MAX_STOCK

from .client import WAIT, exact, list_product, nothing_appended, order, post, problem, register


async def test_received_stock_resets_the_price(http: httpx.AsyncClient) -> None:
    product_id = await list_product(http, "10.00", 4)
    await order(http, await register(http), product_id, 3)
    assert exact(await http.get(f"/products/{product_id}"))["current_price"] == Decimal("15.00")
    response = await post(http, f"/products/{product_id}/receipts", '{"quantity": 9}', WAIT)
    assert response.status_code == 200
    assert response.headers["location"] == f"/api/v1/products/{product_id}"
    assert exact(response)["stock"] == 10
    assert exact(response)["current_price"] == Decimal("10.00")


async def test_a_receipt_for_an_unknown_product_is_refused(http: httpx.AsyncClient) -> None:
    response = await post(http, f"/products/{uuid4()}/receipts", '{"quantity": 1}', WAIT)
    assert problem(response, 404, "unknown-product")["reason"] == "UNKNOWN_PRODUCT"


async def test_a_receipt_over_the_stock_limit_is_refused(http: httpx.AsyncClient) -> None:
    product_id = await list_product(http, stock=1)
    path = f"/products/{product_id}/receipts"
    over = await post(http, path, f'{{"quantity": {MAX_STOCK}}}', WAIT)
    assert problem(over, 409, "stock-limit")["reason"] == "STOCK_LIMIT"
    full = await post(http, path, f'{{"quantity": {MAX_STOCK - 1}}}', WAIT)
    assert full.json()["stock"] == MAX_STOCK


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{"quantity": 0}',
        '{"quantity": -1}',
        f'{{"quantity": {MAX_STOCK + 1}}}',
        '{"quantity": 1.5}',
        '{"quantity": "1"}',
    ],
)
async def test_an_invalid_quantity_is_named(http: httpx.AsyncClient, text: str) -> None:
    path = f"/products/{await list_product(http)}/receipts"
    async with nothing_appended(http):
        problem(await post(http, path, text), 422, "invalid-fields", "quantity")


async def test_a_retry_with_the_same_key_is_received_once(http: httpx.AsyncClient) -> None:
    path = f"/products/{await list_product(http, stock=1)}/receipts"
    headers = {"Idempotency-Key": str(uuid4()), **WAIT}
    for _ in range(3):
        response = await post(http, path, '{"quantity": 2}', headers)
        assert response.json()["stock"] == 3

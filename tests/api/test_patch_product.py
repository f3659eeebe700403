"""PATCH /products/{product_id}."""

from decimal import Decimal
from uuid import uuid4

import httpx
import pytest

from .client import JSON, WAIT, exact, list_product, nothing_appended, order, problem, register


async def patch(http: httpx.AsyncClient, product_id: str, text: str) -> httpx.Response:
    return await http.patch(f"/products/{product_id}", content=text, headers={**JSON, **WAIT})


async def test_a_price_change_leaves_the_stock(http: httpx.AsyncClient) -> None:
    product_id = await list_product(http, "10.00", 4)
    response = await patch(http, product_id, '{"base_price": 12.34}')
    assert response.status_code == 200
    assert exact(response)["base_price"] == Decimal("12.34")
    assert exact(response)["stock"] == 4
    assert exact(await http.get(f"/products/{product_id}")) == exact(response)


async def test_later_orders_pay_the_new_price(http: httpx.AsyncClient) -> None:
    customer_id, product_id = await register(http), await list_product(http, "10.00")
    before = await order(http, customer_id, product_id)
    await patch(http, product_id, '{"base_price": 20}')
    after = await order(http, customer_id, product_id)
    assert (before["price_paid"], after["price_paid"]) == (Decimal("10.00"), Decimal("20.00"))


async def test_a_price_change_of_an_unknown_product_is_refused(http: httpx.AsyncClient) -> None:
    problem(await patch(http, str(uuid4()), '{"base_price": 1}'), 404, "unknown-product")


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("{}", "base_price"),
        ('{"base_price": 0}', "base_price"),
        ('{"base_price": 1.005}', "base_price"),
        ('{"base_price": 1, "stock": 5}', "stock"),
        ('{"base_price": 1, "name": "x"}', "name"),
    ],
)
async def test_an_invalid_field_is_named(http: httpx.AsyncClient, text: str, field: str) -> None:
    product_id = await list_product(http)
    async with nothing_appended(http):
        problem(await patch(http, product_id, text), 422, "invalid-fields", field)

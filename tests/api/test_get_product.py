"""GET /products/{product_id}."""

import asyncio
from decimal import Decimal
from uuid import uuid4

import httpx
import pytest

from .client import WAIT, exact, list_product, order, post, problem, register, stock


async def test_a_product_shows_what_a_unit_costs_now(http: httpx.AsyncClient) -> None:
    """Above 50 % of the stock ×1.0, above 25 % ×1.2, else ×1.5."""
    customer_id, product_id = await register(http), await list_product(http, "99.99", 4)

    async def price() -> Decimal:
        found: Decimal = exact(await http.get(f"/products/{product_id}"))["current_price"]
        return found

    prices = [await price()]
    for _ in range(4):
        await order(http, customer_id, product_id)
        prices.append(await price())
    assert prices == [Decimal(p) for p in ("99.99", "99.99", "119.99", "149.99", "149.99")]


async def test_an_unknown_product_is_a_404(http: httpx.AsyncClient) -> None:
    problem(await http.get(f"/products/{uuid4()}"), 404, "unknown-product")


async def test_an_id_that_is_not_a_uuid_is_named(http: httpx.AsyncClient) -> None:
    problem(await http.get("/products/lamp"), 422, "invalid-fields", "product_id")


async def test_an_upper_case_id_is_the_same_id(http: httpx.AsyncClient) -> None:
    product_id = await list_product(http)
    lower = await http.get(f"/products/{product_id}")
    upper = await http.get(f"/products/{product_id.upper()}")
    assert lower.json() == upper.json()


async def test_after_a_completed_order_the_earlier_stock_is_never_shown(
    http: httpx.AsyncClient,
) -> None:
    """The page of the product is cached: it must go as soon as anybody can know better."""
    customer_id, product_id = await register(http, "20000.00"), await list_product(http)
    for left in range(99, 69, -1):
        assert await stock(http, product_id) == left + 1
        await order(http, customer_id, product_id)
        assert await stock(http, product_id) == left


async def test_the_stock_never_goes_back_while_many_buy(http: httpx.AsyncClient) -> None:
    customer_id, product_id = await register(http, "20000.00"), await list_product(http)
    buying = asyncio.gather(*(order(http, customer_id, product_id) for _ in range(50)))
    seen = []
    while not buying.done():
        response = await http.get(f"/products/{product_id}")
        seen.append((int(response.headers["ledger-position"]), response.json()["stock"]))
    await buying
    assert [units for _, units in seen] == sorted((units for _, units in seen), reverse=True)
    assert [position for position, _ in seen] == sorted(position for position, _ in seen)
    assert await stock(http, product_id) == 50


async def test_an_etag_saves_the_body_until_the_product_changes(http: httpx.AsyncClient) -> None:
    product_id = await list_product(http)
    path = f"/products/{product_id}"
    first = await http.get(path)
    headers = {"If-None-Match": first.headers["etag"]}
    same = await http.get(path, headers=headers)
    assert same.status_code == 304
    assert same.content == b""
    assert same.headers["etag"] == first.headers["etag"]
    assert "ledger-position" in same.headers
    await order(http, await register(http), product_id)
    changed = await http.get(path, headers=headers)
    assert changed.status_code == 200
    assert changed.headers["etag"] != first.headers["etag"]


@pytest.mark.parametrize("form", ["*", "{etag}", "W/{etag}", '"other", {etag}', '"x" ,W/{etag}'])
async def test_every_form_of_if_none_match_is_read(http: httpx.AsyncClient, form: str) -> None:
    path = f"/products/{await list_product(http)}"
    etag = (await http.get(path)).headers["etag"]
    for _ in range(2):
        response = await http.get(path, headers={"If-None-Match": form.format(etag=etag)})
        assert response.status_code == 304


@pytest.mark.parametrize("tags", ['"0"', "0", '"', 'W/"0"', ""])
async def test_another_etag_gets_the_product(http: httpx.AsyncClient, tags: str) -> None:
    path = f"/products/{await list_product(http)}"
    assert (await http.get(path, headers={"If-None-Match": tags})).status_code == 200


async def test_min_position_bypasses_the_cache(http: httpx.AsyncClient) -> None:
    product_id = await list_product(http)
    path = f"/products/{product_id}"
    await http.get(path)
    priced = await http.patch(path, json={"base_price": 5}, headers=WAIT)
    found = await http.get(path, params={"min_position": priced.json()["position"]})
    assert found.json()["base_price"] == 5
    response = await http.get(path, params={"min_position": 2**62})
    problem(response, 409, "beyond-head", "min_position")


async def test_a_restock_and_a_new_price_show_at_once(http: httpx.AsyncClient) -> None:
    product_id = await list_product(http, stock=1)
    path = f"/products/{product_id}"
    for units in range(2, 12):
        await post(http, f"{path}/receipts", '{"quantity": 1}', WAIT)
        await http.patch(path, json={"base_price": units}, headers=WAIT)
        found = (await http.get(path)).json()
        assert (found["stock"], found["base_price"]) == (units, units)

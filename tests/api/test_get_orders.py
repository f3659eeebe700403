"""GET /orders, and GET /customers/{customer_id}/orders."""

from uuid import uuid4

import httpx
import pytest

from .client import Body, cancel, list_product, order, problem, register


async def ids(http: httpx.AsyncClient, path: str, **params: str | int) -> list[str]:
    response = await http.get(path, params=params)
    assert response.status_code == 200, response.text
    return [item["order_id"] for item in response.json()["items"]]


async def test_orders_are_listed_newest_first_as_each_is_shown(http: httpx.AsyncClient) -> None:
    customer_id, product_id = await register(http), await list_product(http)
    placed = [await order(http, customer_id, product_id) for _ in range(3)]
    response = await http.get("/orders", params={"customer_id": customer_id})
    items = response.json()["items"]
    assert [item["order_id"] for item in items] == [o["order_id"] for o in reversed(placed)]
    assert items[0] == (await http.get(f"/orders/{items[0]['order_id']}")).json()
    assert response.json()["next_after"] is None
    assert "link" not in response.headers
    assert int(response.headers["ledger-position"]) >= items[0]["position"]


async def test_pages_follow_each_other_without_gap_or_repeat(http: httpx.AsyncClient) -> None:
    customer_id, product_id = await register(http), await list_product(http)
    placed = [(await order(http, customer_id, product_id))["order_id"] for _ in range(5)]
    url, found = f"/orders?customer_id={customer_id}&limit=2", list[str]()
    while url:
        response = await http.get(url)
        assert len(response.json()["items"]) <= 2
        found += [item["order_id"] for item in response.json()["items"]]
        url = response.links.get("next", {}).get("url", "").removeprefix("/api/v1")
    assert found == placed[::-1]


async def test_an_order_placed_meanwhile_does_not_shift_the_pages(http: httpx.AsyncClient) -> None:
    customer_id, product_id = await register(http), await list_product(http)
    placed = [(await order(http, customer_id, product_id))["order_id"] for _ in range(3)]
    first = (await http.get("/orders", params={"customer_id": customer_id, "limit": 2})).json()
    await order(http, customer_id, product_id)
    rest = await ids(http, "/orders", customer_id=customer_id, after=first["next_after"])
    assert [item["order_id"] for item in first["items"]] + rest == placed[::-1]


async def test_the_filters_work_together(http: httpx.AsyncClient) -> None:
    customer_id = await register(http)
    lamp, desk = await list_product(http), await list_product(http, stock=1)
    first = await order(http, customer_id, lamp)
    await order(http, customer_id, desk)
    failed = await order(http, customer_id, desk)
    cancelled = await order(http, customer_id, lamp)
    await cancel(http, cancelled["order_id"])

    async def of(**params: str) -> list[str]:
        return await ids(http, "/orders", customer_id=customer_id, **params)

    assert await of(status="FAILED") == [failed["order_id"]]
    assert await of(product_id=lamp) == [cancelled["order_id"], first["order_id"]]
    assert await of(product_id=lamp, status="COMPLETED") == [first["order_id"]]
    assert await of(status="CANCELLED") == [cancelled["order_id"]]
    assert await ids(http, "/orders", product_id=desk, status="FAILED") == [failed["order_id"]]


async def test_a_customers_orders_are_only_their_own(http: httpx.AsyncClient) -> None:
    ann, bob = await register(http), await register(http)
    product_id = await list_product(http)
    of_ann = await order(http, ann, product_id)
    await order(http, bob, product_id)
    assert await ids(http, f"/customers/{ann}/orders") == [of_ann["order_id"]]
    assert await ids(http, f"/customers/{ann}/orders", status="FAILED") == []


async def test_a_customer_without_orders_has_an_empty_page_and_an_unknown_one_is_a_404(
    http: httpx.AsyncClient,
) -> None:
    assert await ids(http, f"/customers/{await register(http)}/orders") == []
    problem(await http.get(f"/customers/{uuid4()}/orders"), 404, "unknown-customer")


async def test_filters_that_match_nothing_give_an_empty_page(http: httpx.AsyncClient) -> None:
    assert await ids(http, "/orders", customer_id=str(uuid4())) == []


@pytest.mark.parametrize("limit", [1, 500])
async def test_the_smallest_and_largest_page_are_accepted(
    http: httpx.AsyncClient, limit: int
) -> None:
    assert len(await ids(http, "/orders", limit=limit)) <= limit


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("limit", "0"),
        ("limit", "501"),
        ("limit", "ten"),
        ("limit", ""),
        ("after", "0"),
        ("after", "-1"),
        ("after", "9223372036854775808"),
        ("status", "DONE"),
        ("status", "completed"),
        ("customer_id", "ann"),
        ("product_id", ""),
        ("custmer_id", "43e8ff2f-5d48-498f-a569-ca2cf9f7fae3"),
    ],
)
async def test_an_invalid_parameter_is_named(
    http: httpx.AsyncClient, field: str, value: str
) -> None:
    body: Body = problem(
        await http.get("/orders", params={field: value}), 422, "invalid-fields", field
    )
    assert field in body["detail"]

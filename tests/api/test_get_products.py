"""GET /products."""

from uuid import uuid4

import httpx
import pytest

from .client import WAIT, list_product, problem


async def walk(http: httpx.AsyncClient, after: str | None = None) -> list[str]:
    """The ids of all products after one of them, page by page as the links lead."""
    url, found = f"/products?limit=2{f'&after={after}' if after else ''}", list[str]()
    while url:
        response = await http.get(url)
        page = response.json()
        assert len(page["items"]) <= 2
        found += [item["product_id"] for item in page["items"]]
        url = response.links.get("next", {}).get("url", "").removeprefix("/api/v1")
        assert page["next_after"] == (found[-1] if url else None)
    return found


async def test_the_catalogue_is_listed_in_the_order_of_listing_page_by_page(
    http: httpx.AsyncClient,
) -> None:
    made = [await list_product(http) for _ in range(5)]
    assert (await walk(http))[-5:] == made
    assert await walk(http, made[1]) == made[2:]


async def test_what_is_listed_later_comes_after_the_last_product(http: httpx.AsyncClient) -> None:
    """The ids of keyed requests come of the key, so a later one may well be smaller."""
    body = {"name": "Lamp", "base_price": 1, "stock": 1}
    last, later = (await walk(http))[-1], list[str]()
    for _ in range(8):
        headers = {**WAIT, "Idempotency-Key": str(uuid4())}
        listed = await http.post("/products", json=body, headers=headers)
        later.append(listed.json()["product_id"])
    assert later != sorted(later)
    assert await walk(http, last) == later


async def test_a_product_is_listed_as_it_is_shown_alone(http: httpx.AsyncClient) -> None:
    before, product_id = await list_product(http), await list_product(http)
    response = await http.get("/products", params={"limit": "1", "after": before})
    assert int(response.headers["ledger-position"]) >= 1
    shown = await http.get(f"/products/{product_id}")
    assert response.json()["items"] == [shown.json()]


async def test_the_page_after_the_last_product_is_empty(http: httpx.AsyncClient) -> None:
    response = await http.get("/products", params={"after": await list_product(http)})
    assert response.json() == {"items": [], "next_after": None}


async def test_a_cursor_that_is_no_product_here_is_refused(http: httpx.AsyncClient) -> None:
    response = await http.get("/products", params={"after": str(uuid4())})
    problem(response, 404, "unknown-product", "after")


@pytest.mark.parametrize(
    ("field", "value"),
    [("limit", "0"), ("limit", "501"), ("after", "x"), ("after", ""), ("name", "tea")],
)
async def test_an_invalid_parameter_is_named(
    http: httpx.AsyncClient, field: str, value: str
) -> None:
    response = await http.get("/products", params={field: value})
    problem(response, 422, "invalid-fields", field)

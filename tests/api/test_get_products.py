"""GET /products."""

import httpx
import pytest

from .client import list_product, problem


async def test_the_catalogue_is_listed_by_id_page_by_page(http: httpx.AsyncClient) -> None:
    made = {await list_product(http) for _ in range(5)}
    url, found = "/products?limit=2", list[str]()
    while url:
        response = await http.get(url)
        assert len(response.json()["items"]) <= 2
        found += [item["product_id"] for item in response.json()["items"]]
        url = response.links.get("next", {}).get("url", "").removeprefix("/api/v1")
    assert found == sorted(found)
    assert len(set(found)) == len(found)
    assert made <= set(found)


async def test_a_product_is_listed_as_it_is_shown_alone(http: httpx.AsyncClient) -> None:
    product_id = await list_product(http)
    before = f"{product_id[:-1]}{int(product_id[-1], 16) - 1:x}" if product_id[-1] != "0" else ""
    params = {"limit": "1"} | ({"after": before} if before else {})
    response = await http.get("/products", params=params)
    assert int(response.headers["ledger-position"]) >= 1
    if before:
        shown = await http.get(f"/products/{product_id}")
        assert response.json()["items"] == [shown.json()]


async def test_the_page_after_the_last_product_is_empty(http: httpx.AsyncClient) -> None:
    last = "ffffffff-ffff-ffff-ffff-ffffffffffff"
    response = await http.get("/products", params={"after": last})
    assert response.json() == {"items": [], "next_after": None}


@pytest.mark.parametrize(
    ("field", "value"),
    [("limit", "0"), ("limit", "501"), ("after", "x"), ("after", ""), ("name", "tea")],
)
async def test_an_invalid_parameter_is_named(
    http: httpx.AsyncClient, field: str, value: str
) -> None:
    response = await http.get("/products", params={field: value})
    problem(response, 422, "invalid-fields", field)

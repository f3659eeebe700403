"""POST /products."""

from decimal import Decimal
from uuid import UUID, uuid4

import httpx
import pytest

from ledger.core.events import MAX_DESCRIPTION, MAX_NAME, MAX_STOCK

from .client import WAIT, Body, exact, nothing_appended, post, problem

GOOD = {"name": '"Lamp"', "description": '"Bright."', "base_price": "19.90", "stock": "7"}


def text(**fields: str) -> str:
    """A good body, with these fields written as they are; an empty one is left out."""
    written = {name: value for name, value in {**GOOD, **fields}.items() if value}
    return "{" + ", ".join(f'"{name}": {value}' for name, value in written.items()) + "}"


async def test_a_listed_product_is_shown(http: httpx.AsyncClient) -> None:
    response = await post(http, "/products", text(), WAIT)
    made = exact(response)
    assert response.status_code == 201
    assert made == {
        "product_id": made["product_id"],
        "name": "Lamp",
        "description": "Bright.",
        "base_price": Decimal("19.90"),
        "current_price": Decimal("19.90"),
        "stock": 7,
        "position": made["position"],
    }
    assert UUID(made["product_id"]).version == 7
    assert response.headers["location"] == f"/api/v1/products/{made['product_id']}"
    assert exact(await http.get(f"/products/{made['product_id']}")) == made


@pytest.mark.parametrize(
    "fields",
    [
        {"description": ""},
        {"stock": "0"},
        {"stock": str(MAX_STOCK)},
        {"stock": "1.0"},
        {"stock": "1e9"},
        {"stock": f"103.{'0' * 5000}"},
        {"stock": "0e999999"},
        {"description": r'"one\ntwo\tthree"'},
        {"base_price": "0.01"},
        {"base_price": "10000000000"},
        {"name": f'"{"é" * MAX_NAME}"'},
        {"description": f'"{"d" * MAX_DESCRIPTION}"'},
    ],
)
async def test_the_smallest_and_largest_values_are_accepted(
    http: httpx.AsyncClient, fields: dict[str, str]
) -> None:
    assert (await post(http, "/products", text(**fields), WAIT)).status_code == 201


@pytest.mark.parametrize(
    "fields",
    [
        {"name": ""},
        {"name": '""'},
        {"name": "7"},
        {"name": r'"\u001b]0;x\u0007"'},
        {"name": r'"\u2800"'},
        {"description": r'"a\u009bb"'},
        {"name": f'"{"n" * (MAX_NAME + 1)}"'},
        {"description": "null"},
        {"description": f'"{"d" * (MAX_DESCRIPTION + 1)}"'},
        {"base_price": ""},
        {"base_price": "0"},
        {"base_price": "19.901"},
        {"base_price": '"19.90"'},
        {"base_price": "10000000000.01"},
        {"stock": ""},
        {"stock": "-1"},
        {"stock": "1.5"},
        {"stock": str(MAX_STOCK + 1)},
        {"current_price": "1"},
        {"product_id": f'"{uuid4()}"'},
    ],
)
async def test_an_invalid_field_is_named(http: httpx.AsyncClient, fields: dict[str, str]) -> None:
    [field] = fields
    async with nothing_appended(http):
        problem(await post(http, "/products", text(**fields)), 422, "invalid-fields", field)


async def test_a_retry_with_the_same_key_is_the_same_product(http: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": str(uuid4()), **WAIT}

    async def made(body: str) -> Body:
        return exact(await post(http, "/products", body, headers))

    first = await made(text())
    async with nothing_appended(http):
        assert await made(text()) == first
        problem(await post(http, "/products", text(stock="8"), headers), 422, "key-reused")
